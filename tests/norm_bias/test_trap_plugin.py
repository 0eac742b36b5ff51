"""The `trap_init` plugin in small trainings: where it starts, that it stays, and what it
refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from trainkit_plugins.norm_bias.trap_init import hidden_units
from trainkit_plugins.norm_bias.trap_init.plugin import TrapInit

from trainkit import Run, UserError
from trainkit.log.history import History
from trainkit.log.records import Record
from trainkit.testing import Case
from trainkit.testing.training import Trace, make, undisturbed
from trainkit.training.build import build, compose

MLP: dict[str, Any] = {
    "model": {"name": "mlp", "args": {"drop_rate": 0.0, "hidden": [16, 12]}},
    "data": {"image_size": 4, "drop_last": False},
    "train": {"epochs": 4, "loss": {"smoothing": 0.1}},
    "optimizer": {"name": "sgd", "lr": 1e-3, "weight_decay": 0.0},
    "scheduler": {"name": "constant"},
}


def case(options: Mapping[str, Any]) -> Case:
    return Case("trap_init", options, recipe=MLP)


def train(options: Mapping[str, Any], **further: Any) -> Trace:
    with undisturbed():
        return case(options).train(**further)


def built(options: Mapping[str, Any], over: Mapping[str, Any] | None = None) -> Run:
    with undisturbed():
        return make(case(options).setup(over=over))


def test_the_network_starts_as_the_affine_model_with_every_unit_above_the_margin():
    run = built({"margin": 0.5})
    plugin = run.plugins["trap_init"]
    examples, affine = plugin._examples, plugin._affine
    wanted = examples.inputs.flatten(1).double() @ affine.weight.t() + affine.bias
    torch.testing.assert_close(run.model(examples.inputs).double(), wanted, rtol=1e-5, atol=1e-4)
    assert len(examples.inputs) == 27
    assert hidden_units(run.model, examples.inputs).smallest.item() > 0.499


def test_training_stays_where_the_default_start_goes_down():
    trapped = train({})
    losses, affine, active = (
        trapped.history.series(f"trap_init/{n}")[1] for n in ("loss", "affine_loss", "active")
    )
    assert len(losses) == 5  # at the start, and after each epoch
    assert affine == [affine[0]] * 5
    assert losses == pytest.approx([affine[0]] * 5, rel=1e-3)
    assert min(losses) > affine[0] * (1 - 1e-5)
    assert active == [1.0] * 5


def test_noise_comes_from_the_plugins_own_stream_and_moves_the_start():
    with_noise, again, other = (built({"noise": 0.1}, {"seed": seed}) for seed in (0, 0, 1))
    one, two, three = (
        torch.cat([p.flatten() for p in r.model.parameters()]) for r in (with_noise, again, other)
    )
    calm = torch.cat([p.flatten() for p in built({}).model.parameters()])
    assert torch.equal(one, two)
    assert not torch.equal(one - calm, three - calm)
    assert (one - calm).std().item() == pytest.approx(0.1, rel=0.1)


def test_plan_says_where_it_starts_and_warns_of_a_learning_rate_that_jumps_out():
    calm, wild = (built({}, {"optimizer": {"lr": lr}}) for lr in (1e-3, 50.0))
    lines = calm.plugins["trap_init"].explain(calm)
    assert lines[0].startswith("starts as the affine model of 27 training examples: loss 0.")
    assert lines[1].startswith("largest curvature ")
    assert len(lines) == 2
    assert (
        wild.plugins["trap_init"].explain(wild)[2]
        == "optimizer.lr is 50, above that: training may jump out"
    )


RECIPE = """\
model: {name: mlp, in_chans: 1, args: {hidden: [16]}}
data: {name: digits, image_size: 3}
train: {epochs: 1, loss: {smoothing: 0.1}}
plugins: {trap_init: {}}
"""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.name=test_resnet", "model.args={}", "data.image_size=32"],
            "test_resnet has a Conv2d; mlp is one",
        ),
        (
            ["model.args.act=gelu"],
            r"yaml:1: model: trap_init needs a plain ReLU network, and mlp has a GELU",
        ),
        (["model.args.batch_norm=true"], "has a BatchNorm1d"),
        (
            ["model.args.hidden=[16, 3]"],
            "a layer of 3 units is narrower than the rank of the affine map, 9",
        ),
        (["data.augment={}"], "data.augment: trap_init needs a finite set of training examples"),
        (
            ["train.loss.smoothing=0", "data.image_size=8", "data.val_fraction=0.9"],
            "no affine model that minimises it on these data",
        ),
    ],
)
def test_what_cannot_start_as_an_affine_model_is_refused(write, overrides, message):
    with undisturbed(), pytest.raises(UserError, match=message):
        build(compose(write(RECIPE), overrides))


def test_several_ranks_are_refused(write, monkeypatch):
    run = built({})
    monkeypatch.setattr(run.device, "world", 2)
    with pytest.raises(UserError, match="each of 2 ranks reads a part; train on one"):
        run.plugins["trap_init"]._read(run)


def test_the_report_tells_whether_it_stayed():
    rows = [
        {"trap_init/loss": 0.8 + x, "trap_init/affine_loss": 0.8, "trap_init/active": 1.0}
        for x in (0, 0.01)
    ]
    (section,) = TrapInit().report(History([Record(i, 0, dict(row)) for i, row in enumerate(rows)]))
    assert section.text.startswith(
        "The loss on the training data was 0.8 at the start and 0.81 at the end; that of the best "
        "affine model is 0.8. In the end 100.0% of the hidden values were positive"
    )
    assert TrapInit().report(History([])) == []
