"""The log and the report of a long run: what logging costs as the file grows, and what the report
needs.

Run: python benchmarks/long_run.py [--steps 1500000] [--json FILE]

A run folder with so many logged steps is made up: loss and learning rate at every step, a plugin's
numbers at every tenth, a vector at every thousandth, a validation in each of 100 epochs. Then
`trainkit report` and the table are made from it, each in a process of its own; time is processor
time, memory the most that was resident (needs Linux).
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from trainkit.log.records import Log

RECIPE = (
    "model: {name: mlp, in_chans: 1}\ndata: {name: digits, image_size: 8}\nplugins: {grad_clip: "
    "{}}\n"
)
REPORT = (
    "import sys; from pathlib import Path; from trainkit.report.page import write_report\n"
    "from trainkit_plugins.grad_clip.plugin import GradClip\n"
    "write_report(Path(sys.argv[1]), [GradClip()])"
)
TABLE = (
    "import sys; from pathlib import Path; from trainkit.log.history import History; folder = "
    "Path(sys.argv[1])\nHistory.read(folder / 'metrics.jsonl').write_csv(folder / 'metrics.csv')"
)


def log_steps(path: Path, steps: int) -> tuple[float, float]:
    """Log as a run does; return the seconds of 1,000 steps with a checkpoint, of the first and
    of the last tenth.
    """
    log, seconds = Log(path), []
    for start in range(0, steps, 1000):
        began = time.process_time()
        for step in range(start + 1, min(start + 1000, steps) + 1):
            log.record("loss", 2 * math.exp(-step / steps) + 0.1 * math.sin(step * step))
            log.record("lr", 1e-3 * (1 - step / steps))
            if step % 10 == 0:
                log.record("grad_clip/norm_before", 1 + step % 7)
                log.record("grad_clip/norm_after", 1)
                log.record("grad_clip/clipped", float(step % 7 > 0))
            log.commit(step, (step - 1) * 100 // steps)
            if step % 1000 == 0:
                log.record("shares", torch.linspace(0, 1, 64))
            if log.pending >= 20:
                log.flush()
        if start % (steps // 100 // 1000 * 1000 or 1000) == 0:
            log.record("val/accuracy", 1 - math.exp(-(start + 1000) / steps))
            log.commit(start + 1000, start * 100 // steps)
        log.flush()
        log.state_dict()
        seconds.append(time.process_time() - began)
    tenth = max(1, len(seconds) // 10)
    return sum(seconds[:tenth]) / tenth, sum(seconds[-tenth:]) / tenth


def measured(code: str, *arguments: str) -> tuple[float, float]:
    """Return processor seconds and resident megabytes of a process of Python."""
    wrapped = (
        f"{code}\n"
        "import re, resource, sys; used = resource.getrusage(resource.RUSAGE_SELF)\n"
        # ru_maxrss would be that of this process, from which the other was forked.
        "peak = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())\n"
        "print(used.ru_utime + used.ru_stime, int(peak[1]) / 1024, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", wrapped, *arguments], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds, megabytes = map(float, done.stderr.split()[-2:])
    return seconds, megabytes


def main() -> None:
    """Make the folder, measure, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1_500_000)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    given = parser.parse_args()
    steps, target = given.steps, given.json
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipe.yaml").write_text(RECIPE)
        first, last = log_steps(folder / "metrics.jsonl", steps)
        rows = {
            "1,000 steps and a checkpoint, first tenth": (first, math.nan),
            "1,000 steps and a checkpoint, last tenth": (last, math.nan),
            "report.html": measured(REPORT, name),
            "metrics.csv": measured(TABLE, name),
        }
        size = (folder / "metrics.jsonl").stat().st_size
    print(f"{steps:,} steps, metrics.jsonl of {size / 1e6:.0f} MB")
    for what, (seconds, megabytes) in rows.items():
        memory = "" if math.isnan(megabytes) else f"{megabytes:8.0f} MB"
        print(f"{what:45} {seconds:8.2f} s {memory}")
    if target is not None:
        facts = {
            what: {"seconds": s, "megabytes": None if math.isnan(m) else m}
            for what, (s, m) in rows.items()
        }
        target.write_text(json.dumps({"steps": steps, "bytes": size, **facts}, indent=2) + "\n")


if __name__ == "__main__":
    main()
