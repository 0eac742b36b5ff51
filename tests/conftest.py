"""Fixtures shared by the tests of the host: small recipes that train in well under a second."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path

import hypothesis
import pytest
import torch

# Side by side each worker has one core; torch is told, and what a test starts is told too.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

# The same examples every time, and no deadline: a shared machine may be slow for a moment.
hypothesis.settings.register_profile("exact", derandomize=True, deadline=None)
hypothesis.settings.load_profile("exact")

TINY_DATA = Path(__file__).parent / "reference" / "tiny.py"

TINY_RECIPE = f"""\
seed: 3
model: {{name: test_vit}}
data: {{name: digits, image_size: 32, batch_size: 4}}
train: {{epochs: 2, device: cpu, log_every: 2}}
optimizer: {{name: adamw, lr: 2e-3, weight_decay: 0.1}}
scheduler: {{name: cosine, warmup_epochs: 1}}
plugins:
  {TINY_DATA}:TinyData: {{}}
"""


def pytest_configure() -> None:
    """Refuse an installation that is older than the checkout's entry points."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    for group, written in project["entry-points"].items():
        missing = written.keys() - {point.name for point in entry_points(group=group)}
        if missing:
            names = ", ".join(sorted(missing))
            raise pytest.UsageError(
                f"the installed trainkit lacks entry points of {group} ({names}): "
                "install the checkout anew, with `uv pip install --no-deps -e .`"
            )


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # Sums depend on how many threads share them; one also lets several test runs share a machine.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(True)


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave report.html out of a run: its plots take longer than the training."""
    from trainkit.commands import session

    monkeypatch.setattr(session, "write_report", lambda folder, *_: folder)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a file in a folder of its own and returns its path."""

    def make(text: str | bytes, name: str = "recipe.yaml") -> Path:
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return make


@pytest.fixture
def tiny(write: Callable[..., Path]) -> Path:
    """A recipe that trains timm's test_vit on 22 small images: five full steps and a short one
    in each epoch.
    """
    return write(TINY_RECIPE, "tiny.yaml")
