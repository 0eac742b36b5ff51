"""Core's own answers: losses, schedules and parameter groups as their names in the recipe say,
and clear refusals.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from tests.reference.tiny import train
from trainkit import Batch, Recorder
from trainkit.errors import RecipeError, UserError
from trainkit.training.build import build, compose

CONSTANT = ["scheduler.name=constant", "scheduler.warmup_epochs=0"]


def rates_of(tiny: Path, *overrides: str) -> list[float]:
    """Return the learning rate of every step."""
    recorder = Recorder()
    train(compose(tiny, overrides), observers=[recorder])
    return recorder.history.series("lr")[1]


# Losses.


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("{name: cross_entropy}", lambda x, t: nn.functional.cross_entropy(x, t)),
        ("{smoothing: 0.2}", lambda x, t: -(smooth(t, 0.2) * x.log_softmax(1)).sum(1).mean()),
        (
            "{name: bce}",
            lambda x, t: nn.functional.binary_cross_entropy_with_logits(x, smooth(t, 0)),
        ),
        (
            "{name: bce, smoothing: 0.1}",
            lambda x, t: nn.functional.binary_cross_entropy_with_logits(x, smooth(t, 0.1)),
        ),
        (
            "{name: bce, smoothing: 0.4, target_threshold: 0.2}",
            lambda x, t: nn.functional.binary_cross_entropy_with_logits(x, smooth(t, 0)),
        ),
    ],
)
def test_losses_are_what_their_names_say(tiny: Path, loss: str, expected: Any) -> None:
    run = build(compose(tiny, [f"train.loss={loss}"]))
    batch = run.hook.prepare_batch(batch=next(run.data.train.batches(0, 0)), run=run)
    value = run.hook.compute_loss(model=run.model, batch=batch, run=run)
    torch.testing.assert_close(value, expected(run.model(batch.inputs), batch.targets))


def smooth(targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    return nn.functional.one_hot(targets, 4) * (1 - smoothing) + smoothing / 4


def test_the_asymmetric_loss_is_timms(tiny: Path) -> None:
    run = build(compose(tiny, ["train.loss={name: asymmetric, smoothing: 0.1}"]))
    batch = next(run.data.train.batches(0, 0))
    value = run.hook.compute_loss(model=run.model, batch=batch, run=run)
    torch.testing.assert_close(
        value, timm.loss.AsymmetricLossSingleLabel(eps=0.1)(run.model(batch.inputs), batch.targets)
    )


def test_targets_may_be_probabilities(tiny: Path) -> None:
    run = build(compose(tiny))
    batch = next(run.data.train.batches(0, 0))
    soft = Batch(batch.inputs, nn.functional.one_hot(batch.targets, 4).float())
    one, other = (run.hook.compute_loss(model=run.model, batch=b, run=run) for b in (batch, soft))
    torch.testing.assert_close(one, other)


# The schedule.


def test_the_rate_warms_up_and_follows_a_cosine_by_steps(tiny: Path) -> None:
    rates = rates_of(tiny, "train.epochs=3", "scheduler.min_lr=1e-4", "scheduler.warmup_lr=1e-5")
    expected = []
    for t in range(18):
        warm = 1e-5 + t * (2e-3 - 1e-5) / 6
        cosine = 1e-4 + (2e-3 - 1e-4) * (1 + math.cos(math.pi * t / 18)) / 2
        expected.append(warm if t < 6 else cosine)
    assert rates == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "name", ["cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant"]
)
def test_every_schedule_moves_by_steps_within_its_bounds(tiny: Path, name: str) -> None:
    arguments = {"step": "{decay_epochs: 1}", "multistep": "{decay_milestones: [1, 2]}"}.get(
        name, "{}"
    )
    rates = rates_of(
        tiny, f"scheduler.name={name}", f"scheduler.args={arguments}", "train.epochs=3"
    )
    assert len(rates) == 18
    assert rates[0] == 1e-6
    assert all(0 <= rate <= 2e-3 * (1 + 1e-12) for rate in rates)
    assert len(set(rates[:6])) == 6  # the warm-up rises at every step
    assert (min(rates[7:]) < max(rates[7:])) == (name != "constant")


def test_layer_decay_scales_the_rate_of_each_layer(tiny: Path) -> None:
    run = build(compose(tiny, ["optimizer.layer_decay=0.5", *CONSTANT]))
    run.scheduler.step_update(1)
    rates = {}
    names = {id(p): name for name, p in run.model.named_parameters()}
    free = run.model.no_weight_decay()
    for group in run.optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            rates[name] = group["lr"]
            assert group["weight_decay"] == (0.0 if parameter.ndim <= 1 or name in free else 0.1)
    assert len(rates) == len(names)
    depth = len(run.model.blocks)
    assert rates["head.weight"] == pytest.approx(2e-3)
    for i in range(depth):
        assert rates[f"blocks.{i}.attn.qkv.weight"] == pytest.approx(2e-3 * 0.5 ** (depth - i))
    assert rates["patch_embed.proj.weight"] == pytest.approx(2e-3 * 0.5 ** (depth + 1))
    plain = build(compose(tiny, CONSTANT))
    assert {group["lr"] for group in plain.optimizer.param_groups} == {2e-3}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["scheduler.warmup_epochs=2"], "scheduler.warmup_epochs: 2.0 leaves none of 2 epochs"),
        (
            ["scheduler.args={decay_rat: 1}"],
            "scheduler.args: timm has no 'decay_rat'; did you mean 'decay_rate'?",
        ),
        (["optimizer.args={beta: 1}"], "optimizer: adamw does not take these arguments"),
        (["model.args={deepth: 1}"], "model: timm cannot make test_vit: "),
    ],
)
def test_arguments_that_timm_does_not_take_are_refused(
    tiny: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        build(compose(tiny, overrides))
    assert message in str(caught.value)


def test_a_metric_that_is_not_measured_is_refused(tiny: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        build(compose(tiny, ["checkpoint.metric=acuracy"]))
    assert (
        str(caught.value)
        == "command line `checkpoint.metric=acuracy`: checkpoint.metric: this run does not measure"
        " 'acuracy'; did you mean 'accuracy'? (it measures: accuracy, calibration_error, nll)"
    )


def test_a_second_order_optimizer_is_refused(tiny: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        compose(tiny, ["optimizer.name=adahessian"])
    assert (
        str(caught.value)
        == "command line `optimizer.name=adahessian`: optimizer.name: adahessian differentiates the"
        " gradient again, which the loop does not prepare for; choose another"
    )
