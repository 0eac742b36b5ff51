"""The campaign of benchmarks/crashes.py at its smallest: a few runs are struck, and end as if
they had not been.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_runs_that_are_struck_end_with_the_same_bits() -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "crashes.py"
    words = [
        "--signals",
        "9",
        "--kills",
        "1",
        "--full",
        "4",
    ]  # two workers, two ranks, and three phases are among them
    done = subprocess.run(
        [sys.executable, str(script), *words], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "14 trials, 0 faults" in done.stdout
