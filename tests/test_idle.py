"""Settings that never act in a run: noted by name before training, in the plan and in the
summary.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from torch import nn

from tests.reference.tiny import with_plugins
from trainkit import Plugin, Run, hookimpl, train
from trainkit.commands.plan import make_plan
from trainkit.commands.plan_page import show
from trainkit.errors import PluginError
from trainkit.training.build import build, compose


def notes(tiny: Path, *overrides: str) -> list[str]:
    """Return the notes of a run of 2 epochs of 6 steps."""
    return build(compose(tiny, overrides)).log.notes


@pytest.mark.parametrize(
    ("override", "note"),
    [
        ("checkpoint.every_steps=12", "checkpoint.every_steps: 12 steps, and this run has 12"),
        (
            "checkpoint.keep_best=3",
            "checkpoint.keep_best: 3 weights, and this run is measured 2 time(s)",
        ),
        (
            "train.evaluate_every=3",
            "train.evaluate_every: 3 epochs, and this run has 2: only its end is measured",
        ),
        (
            "train.log_every=13",
            "train.log_every: 13 steps, and this run has 12: only ends of epochs log",
        ),
        (
            "train.accumulate=7",
            "train.accumulate: 7 micro-batches, and an epoch has 6: each is one step",
        ),
        (
            "plugins.ema.start_step=11",
            "plugins.ema.start_step: this run has 12 steps: the average only follows the",
        ),
        (
            "plugins.early_stopping={patience: 2}",
            "plugins.early_stopping.patience: 2 validations, and this run has 2",
        ),
        (
            "plugins.smoothness={every: 13}",
            "plugins.smoothness.every: 13 steps, and this run has 12",
        ),
        (
            "plugins.spectral_rank={every: 13}",
            "plugins.spectral_rank.every: 13 steps, and this run has 12",
        ),
        (
            "plugins.mixup={switch_prob: 0.2}",
            "plugins.mixup.switch_prob: does nothing unless mixup_alpha and",
        ),
        (
            "plugins.radam={betas: [0.9, 0.5]}",
            "plugins.radam.betas: rectified never, and this run has 12 steps",
        ),
        (
            "plugins.adam_warmup={warmup_steps: 13}",
            "plugins.adam_warmup.warmup_steps: 13 steps, and this run has 12:",
        ),
        (
            "plugins.adam_2k={}",
            "plugins.adam_2k.freeze_steps: the first update comes after 2,000 steps: there is none",
        ),
        (
            "plugins.radam_monitor={first: 3, every: 13}",
            "plugins.radam_monitor.every: 13 steps, and this run has 12",
        ),
    ],
)
def test_what_first_acts_after_the_end_is_noted(tiny: Path, override: str, note: str) -> None:
    (found,) = notes(tiny, override)
    assert found.startswith(note)


@pytest.mark.parametrize(
    "override",
    [
        "checkpoint.every_steps=11",
        "checkpoint.keep_best=2",
        "train.evaluate_every=2",
        "train.log_every=12",
        "train.accumulate=6",
        "plugins.ema.start_step=10",
        "plugins.early_stopping={patience: 1}",
        "plugins.smoothness={every: 12}",
        "plugins.mixup={cutmix_alpha: 1, switch_prob: 0.2}",
        "plugins.radam={}",
        "plugins.adam_warmup={warmup_steps: 12}",
        "plugins.adam_2k={freeze_steps: 11}",
        "plugins.radam_monitor={}",
    ],
)
def test_what_acts_at_the_last_step_or_before_is_not(tiny: Path, override: str) -> None:
    assert notes(tiny, override) == []


def test_what_a_plugin_takes_the_place_of_is_noted(tiny: Path) -> None:
    found = notes(
        tiny, "plugins.radam={}", "optimizer.args={betas: [0.5, 0.6]}", "optimizer.momentum=0.5"
    )
    assert found == [
        "radam takes the place of adamw: optimizer.args are not used",
        "radam takes the place of adamw: optimizer.momentum is not used",
    ]

    class Still(Plugin):
        @hookimpl
        def build_scheduler(self, optimizer: Any) -> Any:
            from timm.scheduler import StepLRScheduler

            return StepLRScheduler(optimizer, decay_t=1)

    run = build(
        with_plugins(tiny, ["scheduler.min_lr=1e-5", "scheduler.args={cycle_limit: 3}"], Still())
    )
    assert run.log.notes == [
        "Still takes the place of the schedule: scheduler.warmup_epochs is not used",
        "Still takes the place of the schedule: scheduler.min_lr is not used",
        "Still takes the place of the schedule: scheduler.args are not used",
    ]


def test_layer_decay_that_finds_a_single_layer_is_noted(tiny: Path) -> None:
    class Single(Plugin):
        @hookimpl
        def build_model(self) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))

    for decay, expected in ((0.5, ["optimizer.layer_decay"]), (1, [])):
        run = build(with_plugins(tiny, [f"optimizer.layer_decay={decay}"], Single()))
        assert [note.partition(":")[0] for note in run.log.notes] == expected
    assert notes(tiny, "optimizer.layer_decay=0.5") == []


def test_plan_and_summary_say_the_notes_and_a_resolved_recipe_says_the_same(
    tiny: Path, tmp_path: Path
) -> None:
    changes = ["train.epochs=1", "scheduler.warmup_epochs=0", "checkpoint.every_steps=100"]
    expected = ["checkpoint.every_steps: 100 steps, and this run has 6"]
    plan = make_plan(tiny, changes)
    assert plan["notes"] == expected
    text = io.StringIO()
    show(plan, Console(width=200, file=text))
    page = [line.strip() for line in text.getvalue().splitlines()]
    assert page[page.index("notes") + 1] == expected[0]
    folder = train(tiny, *changes, run_dir=tmp_path / "run").folder
    assert json.loads((folder / "summary.json").read_text())["notes"] == expected
    assert notes(folder / "recipe.yaml") == expected


def test_a_plugin_whose_idle_is_no_mapping_is_named(tiny: Path) -> None:
    class Wrong(Plugin):
        def idle(self, run: Run) -> dict[str, str]:
            return ["every"]  # type: ignore[return-value]

    with pytest.raises(PluginError, match=r"plugin Wrong: idle returned \['every'\]"):
        build(with_plugins(tiny, [], Wrong()))
