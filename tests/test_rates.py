"""Learning rates as timm's training script has them: from a base for so many examples, and changed
between epochs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import timm.scheduler
import torch

from tests.reference.tiny import train
from trainkit.commands.plan import make_plan
from trainkit.commands.verify import differences
from trainkit.config.optimizer import OptimizerSpec
from trainkit.errors import UserError
from trainkit.training.build import build, compose
from trainkit.training.checkpoint import read_state, run_state
from trainkit.training.loop import fit

PEAK = 2e-3
STEPS = 6  # of the tiny recipe in an epoch
BASE = ["~optimizer.lr", "optimizer.lr_base=0.1"]


# A base for so many examples.


@pytest.mark.parametrize(
    ("name", "scale", "rule", "rate"),
    [
        ("sgd", "auto", "linear", 0.1 * 2),
        ("rmsproptf", "auto", "linear", 0.1 * 2),
        ("adamw", "auto", "sqrt", 0.1 * 2**0.5),
        ("lamb", "auto", "sqrt", 0.1 * 2**0.5),
        ("nadamuon", "auto", "sqrt", 0.1 * 2**0.5),
        ("sgd", "sqrt", "sqrt", 0.1 * 2**0.5),
        ("adamw", "linear", "linear", 0.1 * 2),
    ],
)
def test_a_base_grows_with_the_examples_of_a_step(
    name: str, scale: Any, rule: str, rate: float
) -> None:
    spec = OptimizerSpec(name=name, lr_base=0.1, lr_base_scale=scale)
    assert (spec.lr, spec.lr_rule, spec.peak_lr(512)) == (None, rule, rate)


def test_a_run_counts_all_examples_of_a_step(tiny: Path) -> None:
    run = build(compose(tiny, [*BASE, "optimizer.lr_base_size=2", "train.accumulate=2"]))
    assert run.peak_lr == 0.1 * 2.0  # the square root of 4 * 2 / 2
    assert {group["initial_lr"] for group in run.optimizer.param_groups} == {0.2}


def test_the_plan_says_how_the_rate_comes_about(tiny: Path) -> None:
    plan = make_plan(tiny, [*BASE, "optimizer.name=sgd", "optimizer.lr_base_size=8"])
    assert plan["optimizer"]["is"] == "SGD; peak lr 0.05 = lr_base 0.1 times 4 / 8 examples a step"
    assert {group["lr"] for group in plan["groups"]} == {0.05}
    plan = make_plan(tiny, [*BASE, "optimizer.lr_base_size=1"])
    assert "0.2 = lr_base 0.1 times the square root of 4 / 1" in plan["optimizer"]["is"]


def test_a_resolved_recipe_keeps_its_base(tiny: Path, tmp_path: Path) -> None:
    resolved = tmp_path / "resolved.yaml"
    first = compose(tiny, BASE).recipe
    resolved.write_text(first.dump())
    assert compose(resolved).recipe.dump() == first.dump()
    assert compose(resolved).recipe.optimizer.lr_base == 0.1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lr_base=0.1"], "lr and lr_base both say the peak learning rate"),
        (["optimizer.lr=null"], "lr is null; give a number, or lr_base"),
        (["optimizer.lr_base_size=8"], "lr_base_size does nothing without lr_base"),
        (["optimizer.lr_base_scale=sqrt"], "lr_base_scale does nothing without lr_base"),
        (["optimizer.layer_decay_min_scale=0.1"], "does nothing without layer_decay; leave it out"),
        (["optimizer.layer_decay_no_opt_scale=0.1"], "does nothing without layer_decay"),
        (["scheduler.name=plateau"], "plateau waits for a validation to say that the metric has"),
        (["scheduler.name=none"], "say constant"),
        (["scheduler.interval=batch"], "scheduler.interval: should be 'step' or 'epoch'"),
        (["scheduler.args.step_on_epochs=true"], "say it as scheduler.interval"),
    ],
)
def test_settings_of_rates_that_cannot_act_are_refused(
    tiny: Path, overrides: Sequence[str], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        build(compose(tiny, overrides))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# Between epochs.

SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine": {"warmup_epochs": 2, "min_lr": 1e-5},
    "cosine, cooldown": {"args": {"cooldown_epochs": 3}},
    "cosine, prefix": {"warmup_epochs": 3, "args": {"warmup_prefix": True}},
    "cosine, cycles": {"args": {"cycle_limit": 3, "cycle_decay": 0.5, "k_decay": 2.0}},
    "cosine, noise": {"args": {"noise": [0.3, 0.8], "noise_pct": 0.5, "noise_seed": 7}},
    "step": {"warmup_epochs": 2, "args": {"decay_epochs": 2.4, "decay_rate": 0.97}},
    "multistep": {"args": {"decay_milestones": [3, 7], "decay_rate": 0.1}},
    "poly": {"warmup_epochs": 1, "args": {"decay_rate": 0.9}},
    "tanh": {"warmup_epochs": 1},
    "wsd": {"warmup_epochs": 2, "args": {"decay_epochs": 4}},
    "rsqrt": {"warmup_epochs": 2, "args": {"decay_epochs": 4}},
    "constant": {"warmup_epochs": 3},
}


def timms_rates(name: str, said: dict[str, Any], epochs: int) -> list[float]:
    """Return the rate of each epoch as timm's script has it, which steps its own schedule between
    them. The script adds cooldown, prefixed warm-up and further cycles to its length.
    """
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=PEAK)
    args = said.get("args", {})
    length = epochs - args.get("cooldown_epochs", 0)
    if args.get("warmup_prefix"):
        length -= said["warmup_epochs"]
    length //= args.get("cycle_limit", 1)
    settings = {key: value for key, value in said.items() if key != "args"} | args
    schedule, total = timm.scheduler.create_scheduler_v2(
        optimizer, sched=name, num_epochs=length, warmup_lr=1e-6, **settings
    )
    assert total == epochs
    found = []
    for epoch in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        schedule.step(epoch + 1)
    return found


@pytest.mark.parametrize("which", SCHEDULES)
def test_rates_between_epochs_are_timms_to_the_last_bit(tiny: Path, which: str) -> None:
    said, name = SCHEDULES[which], which.partition(",")[0]
    section = json.dumps({"name": name, "interval": "epoch", **said})
    run = build(compose(tiny, [f"scheduler={section}", "train.epochs=12"]))
    found = []
    for step in range(1, 12 * STEPS + 1):
        found.append(run.optimizer.param_groups[0]["lr"])
        run.scheduler.step_update(step)
    expected = timms_rates(name, said, 12)
    assert found == [rate for rate in expected for _ in range(STEPS)]


NOISY = [
    "train.epochs=3",
    'scheduler={"name": "cosine", "interval": "epoch", "args": {"noise": 0.3}}',
]


@pytest.mark.parametrize("stop", [5, STEPS, STEPS + 1, 2 * STEPS])
def test_rates_between_epochs_go_on_exactly(tiny: Path, tmp_path: Path, stop: int) -> None:
    whole, _ = train(compose(tiny, NOISY), tmp_path / "whole")
    _, checkpointer = train(compose(tiny, NOISY), tmp_path / "parts", until=stop)
    rest = build(compose(tiny, NOISY), tmp_path / "parts")
    checkpointer.restore(rest, read_state(tmp_path / "parts" / "checkpoints" / "last.pt"))
    fit(rest, checkpointer)
    assert list(differences(run_state(whole), run_state(rest))) == []


def test_rates_do_not_wait_for_a_validation(tiny: Path) -> None:
    often, seldom = (
        train(compose(tiny, [*NOISY, f"train.evaluate_every={every}"]))[0] for every in (1, 3)
    )
    for first, second in zip(often.model.parameters(), seldom.model.parameters(), strict=True):
        assert torch.equal(first, second)


def test_what_comes_after_the_last_epoch_is_noted(tiny: Path) -> None:
    said = '{"name": "multistep", "interval": "epoch", "args": {"decay_milestones": [1, 3]}}'
    run = build(compose(tiny, [f"scheduler={said}"]))
    (note,) = run.log.notes
    assert note.startswith("scheduler.args.decay_milestones: 3 after the end, this run has 2")
    plan = make_plan(tiny, [f"scheduler={said}"])
    assert "changed between epochs only" in plan["scheduler"]["is"]
