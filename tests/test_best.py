"""`on_best` tells of the weights that a run keeps, by the one rule of the checkpointer."""

from __future__ import annotations

import math
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from pydantic import PrivateAttr
from safetensors.torch import load_file
from torch import Tensor

from tests.reference.tiny import train, with_plugins
from trainkit import Plugin, Run, hookimpl
from trainkit.training.build import build, compose
from trainkit.training.loop import evaluate


class Told(Plugin):
    """Gives each validation the value that a test wants, and remembers what it is told."""

    values: tuple[float, ...] = ()

    _epochs: list[int] = PrivateAttr(default_factory=list)
    _weights: dict[str, Tensor] = PrivateAttr(default_factory=dict)

    @hookimpl(wrapper=True)
    def build_metrics(self, run: Run) -> Generator[None, Any, Any]:
        """Replace the accuracy."""
        return Given((yield), self.values, run)

    @hookimpl
    def on_best(self, model: Any, metrics: Any, run: Run) -> None:
        """Remember the epoch and the weights."""
        assert math.isnan(metrics["accuracy"]) or metrics["accuracy"] == self.values[run.epoch]
        self._epochs.append(run.epoch)
        self._weights = {name: t.clone() for name, t in model.state_dict().items()}


class Given:
    """Metrics whose accuracy is given, epoch by epoch."""

    def __init__(self, own: Any, values: tuple[float, ...], run: Run) -> None:
        self._own, self._values, self._run = own, values, run

    def compute(self) -> dict[str, float]:
        """Return the metrics with the given accuracy."""
        return dict(self._own.compute()) | {"accuracy": self._values[self._run.epoch]}

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count one batch."""
        self._own.update(logits, targets)

    def reset(self) -> None:
        """Forget everything counted."""
        self._own.reset()

    def keys(self) -> list[str]:
        """Return the names of the metrics."""
        return list(self._own.keys())


@pytest.mark.parametrize(
    ("values", "mode", "told"),
    [
        ((0.2, 0.4, 0.4, 0.3), "max", [0, 1]),  # of equal values the earlier one
        ((0.4, 0.2, 0.3, 0.1), "min", [0, 1, 3]),
        ((math.nan, math.nan, 0.1, math.inf), "max", [0, 2]),  # not finite is worst
    ],
)
def test_it_is_told_when_the_best_so_far_is_kept(
    tiny: Path, tmp_path: Path, values: tuple[float, ...], mode: str, told: list[int]
) -> None:
    plugin = Told(values=values)
    overrides = ["train.epochs=4", f"checkpoint.mode={mode}", "checkpoint.metric=accuracy"]
    setup = with_plugins(tiny, overrides, plugin)
    run, _ = train(setup, tmp_path / "run")
    assert plugin._epochs == told
    kept = load_file(tmp_path / "run" / "weights.safetensors")
    assert all(bool((kept[name] == plugin._weights[name]).all()) for name in kept)
    assert run.plugin(Told) is plugin


def test_whoever_only_measures_keeps_nothing(tiny: Path) -> None:
    plugin = Told(values=(0.5,))
    run = build(with_plugins(tiny, [], plugin))
    evaluate(run)
    assert plugin._epochs == []


def test_a_plugin_is_given_by_its_class_or_said_to_be_absent(tiny: Path) -> None:
    run = build(compose(tiny))
    with pytest.raises(LookupError, match="no plugin of class Told is on; name it in `requires`"):
        run.plugin(Told)
