"""Runs that must fail on a number that is not finite, and what they may leave behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.reference.tiny import train, with_plugins
from trainkit import Plugin
from trainkit.checks.states import not_a_number
from trainkit.errors import TrainingError
from trainkit.training.checkpoint import read_state

SGD = ["optimizer={name: sgd, lr: 0.05}", "scheduler.name=constant", "scheduler.warmup_epochs=0"]
OFTEN = ["checkpoint.every_steps=1", "train.log_every=100"]
NAN, INF = float("nan"), float("inf")


def failed(recipe: Path, folder: Path, overrides: list[str], *plugins: Plugin) -> str:
    """Train until it fails; return what was said."""
    folder.mkdir(exist_ok=True)
    with pytest.raises(TrainingError) as caught:
        train(with_plugins(recipe, [*SGD, *overrides], *plugins), folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def saved(folder: Path) -> dict[str, Any]:
    """Return the last checkpoint, in which every number is one."""
    state = read_state(folder / "checkpoints" / "last.pt")
    assert (
        not_a_number({part: state[part] for part in ("model", "optimizer", "scheduler", "plugins")})
        is None
    )
    for file in folder.rglob("*.safetensors"):
        assert not_a_number(load_file(file)) is None
    return state
