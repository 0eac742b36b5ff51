"""A plugin that only watches leaves everything as it is: weights, and what every other plugin
logs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.pairs import recipe_of
from benchmarks.pairs_page import Job
from trainkit.config.locations import dump
from trainkit.errors import UserError
from trainkit.hooks.discovery import installed
from trainkit.testing.training import Trace, train
from trainkit.training.build import compose

WATCHERS = ("smoothness", "radam_monitor", "sparsity_bias", "spectral_rank", "tensorboard", "wandb")
ONLY_MEASURING = {"spectral_rank": {"mode": "minimize", "threshold": 0.0, "every": 2}}


def trained(plugins: tuple[str, ...], like: tuple[str, ...], folder: Path) -> Trace:
    """Train some of the plugins of a pair on the recipe of the pair."""
    data: dict[str, Any] = recipe_of(Job(like))
    needed = {name for name in data["plugins"] if name not in like}
    data["plugins"] = {
        name: ONLY_MEASURING.get(name, options)
        for name, options in data["plugins"].items()
        if name in plugins or name in needed
    }
    path = folder / "recipe.yaml"
    path.write_text(dump(data), encoding="utf-8")
    return train(lambda: compose(path))


def seen_to_differ(watcher: str, other: str, folder: Path) -> list[str]:
    """Return what is different where the watcher is on: weights, and logged values that the run
    has without it.
    """
    try:
        alone = trained((other,), (other, watcher), folder)
        together = trained((other, watcher), (other, watcher), folder)
    except UserError:
        return []  # they do not go together, and the page says why
    with_it, without = together.state["model"], alone.state["model"]
    found = [name for name in without if not torch.equal(with_it[name], without[name])]
    values = [
        {(r.step, n): repr(v) for r in t.records for n, v in r.values.items()}
        for t in (alone, together)
    ]
    return found + [
        f"{name} at step {step}"
        for (step, name), v in values[0].items()
        if values[1].get((step, name)) != v
    ]


@pytest.mark.parametrize(
    ("watcher", "other"),
    [
        ("smoothness", "learning_to_balance"),
        ("smoothness", "mixup"),
        ("spectral_rank", "ghost_batch_norm"),
        ("sparsity_bias", "ema"),
    ],
)
def test_a_watcher_is_not_seen(watcher: str, other: str, tmp_path: Path) -> None:
    assert seen_to_differ(watcher, other, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("watcher", WATCHERS)
def test_no_watcher_is_seen_beside_any_plugin(watcher: str, tmp_path: Path) -> None:
    seen = {
        other: seen_to_differ(watcher, other, tmp_path)
        for other in sorted(installed())
        if other != watcher
    }
    assert {other: found for other, found in seen.items() if found} == {}
