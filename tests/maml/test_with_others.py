"""`maml` beside plugins that change what batch norms do, in half precision too."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from trainkit_plugins.maml.kernels import batch_norm
from trainkit_plugins.maml.norms import what_forbids
from trainkit_plugins.maml.operations import TaskOperations

from trainkit import UserError
from trainkit.testing import Case

TASKS = {"ways": 3, "shots": 2, "queries": 3, "tasks": 2, "steps": 1, "inner_lr": 0.1, "workers": 1}
TASKS |= {"steps_per_epoch": 2, "val_episodes": 2, "test_episodes": 2}
RECIPE = {
    "model": {"name": "test_resnet", "in_chans": 1},
    "data": {"name": "glyphs", "image_size": 16, "letters": 12, "variants": 1},
    "train": {"epochs": 1},
    "optimizer": {"name": "adam", "weight_decay": 0.0},
}


def case(
    plugin: str, options: dict[str, object], tasks: dict[str, object] | None = None, **train: object
) -> Case:
    data = {k: v for k, v in RECIPE["data"].items() if k != "batch_size"}
    recipe = RECIPE | {"data": data, "train": RECIPE["train"] | train}
    return Case(plugin, options, recipe=recipe | {"plugins": {"maml": TASKS | (tasks or {})}})


@pytest.mark.parametrize(
    ("plugin", "options"),
    [
        ("ghost_batch_norm", {"size": 4}),
        ("ghost_batch_norm", {"size": 2, "blocks": "consecutive"}),
        ("batch_group_norm", {"channel_groups": 4}),
        ("norm_decay", {"where": "all"}),
    ],
)
def test_changed_batch_norms_are_meta_learned_through(
    plugin: str, options: dict[str, object]
) -> None:
    with_it, without = (case(plugin, options).train(on=on) for on in (True, False))
    losses = [
        [r.values["loss"] for r in t.records if "loss" in r.values] for t in (with_it, without)
    ]
    assert all(map(math.isfinite, losses[0]))
    assert len(losses[0]) == 2
    changed = [
        not torch.equal(v, without.state["model"][k]) for k, v in with_it.state["model"].items()
    ]
    assert any(changed)


@pytest.mark.parametrize(
    ("plugin", "tasks", "message"),
    [
        (
            "ghost_batch_norm",
            {"norm_statistics": "support"},
            r"maml.norm_statistics: .* ghost_batch_norm makes several",
        ),
        (
            "batch_group_norm",
            {"norm_statistics": "support"},
            r"maml.norm_statistics: .* batch_group_norm makes several",
        ),
        (
            "example_weighing",
            {},
            r"maml.norm_statistics: example_weighing mixes into running averages",
        ),
        ("sparsity_bias", {}, r"plugins.sparsity_bias: needs batches of inputs and targets"),
    ],
)
def test_what_would_mean_nothing_is_refused(
    plugin: str, tasks: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        case(plugin, {}, tasks).train()


def test_running_averages_may_be_weighed_with_examples() -> None:
    assert what_forbids("running", {"maml", "example_weighing"}) is None
    assert what_forbids("running", {"maml", "ghost_batch_norm"}) is None
    assert what_forbids("batch", {"maml", "ghost_batch_norm"}) is None


def second_derivative(x: torch.Tensor) -> torch.Tensor:
    x = x.detach().requires_grad_()
    y = F.batch_norm(x, None, None, training=True).float()
    (first,) = torch.autograd.grad(y.pow(3).mean(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.float().square().sum(), x)
    return second


@pytest.mark.parametrize("deviation", [0.3, 0.01, 0.003])
def test_norms_of_half_precision_are_differentiated_twice_in_float32(deviation: float) -> None:
    """The smaller the deviation the larger the derivatives: at 0.01 torch's own second one is
    NaN.
    """
    torch.manual_seed(0)
    x = (deviation * torch.randn(6, 4, 3, 3)).half()
    with TaskOperations():
        found = second_derivative(x)
    wanted = second_derivative(x.float())
    assert found.dtype == torch.float16
    assert (found.float() - wanted).abs().max() < 0.01 * wanted.abs().max()
    assert torch.equal(
        batch_norm(x.float(), None, None, training=True),
        F.batch_norm(x.float(), None, None, None, None, True),
    )


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_trains_on_maps_of_one_place(precision: str) -> None:
    """The scale at which a float16 run begins overflows in an inner gradient: the step is
    skipped, not the run.
    """
    trace = case(
        "early_stopping", {}, {"steps_per_epoch": 8, "steps": 2}, precision=precision
    ).train(on=False)
    losses = [r.values["loss"] for r in trace.records if "loss" in r.values]
    assert len(losses) == 8
    assert all(map(math.isfinite, losses))
    assert all(v.isfinite().all() for v in trace.state["model"].values())
    steps = max(int(s["step"]) for s in trace.state["optimizer"]["state"].values())
    assert 0 < steps < 8 if precision == "fp16" else steps == 8
