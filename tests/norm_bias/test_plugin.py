"""The `norm_bias` plugin in small trainings: what it adds, where it stops, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from trainkit_plugins.norm_bias import squared_norm
from trainkit_plugins.norm_bias.plugin import NormBias

import trainkit.testing
from trainkit import Plugin, Run, UserError, decaying_parameters, hookimpl
from trainkit.commands.verify import differences
from trainkit.log.history import History
from trainkit.log.records import Record
from trainkit.testing import Case
from trainkit.testing.training import Trace, undisturbed
from trainkit.training.build import build, compose

SGD: dict[str, Any] = {
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.0},
    "scheduler": {"name": "constant"},
}


def train(
    options: Mapping[str, Any], over: Mapping[str, Any] | None = None, **further: Any
) -> Trace:
    with undisturbed():
        return Case("norm_bias", options, recipe=SGD).train(over=over, **further)


def series(trace: Trace, name: str) -> list[float]:
    return list(trace.history.series(name)[1])


class Watch:
    """Keeps the parameters and gradients that come to each step, after all plugins."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []

    @hookimpl
    def before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        params = [p.detach() for group in optimizer.param_groups for p in group["params"]]
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        self.seen.append(
            tuple(torch.cat([t.double().flatten() for t in ts]) for ts in (params, grads))
        )


class DecayAll(Plugin):
    """Decays every parameter alike, biases too."""

    citation = ""

    @hookimpl(wrapper=True)
    def build_param_groups(self, run):
        groups = yield
        for group in groups:
            group["weight_decay"] = run.recipe.optimizer.weight_decay
        return groups


@trainkit.testing.parametrize(
    Case("norm_bias", {"mu_squared": 100.0, "coefficient": 0.1}, recipe=SGD),
    Case("norm_bias", {"form": "squared", "target": "weights", "coefficient": 0.1}, recipe=SGD),
)
def test_norm_bias_conforms(check):
    check()


@pytest.mark.parametrize(
    "over", [{}, {"train": {"accumulate": 2}}, {"train": {"precision": "bf16"}}]
)
def test_a_target_of_zero_is_weight_decay_on_everything_bit_for_bit(over):
    pulled = train({"mu_squared": 0.0, "coefficient": 0.01}, over)
    with undisturbed():
        decayed = Case(DecayAll, {}, recipe=SGD).train(
            over=over | {"optimizer": {"weight_decay": 0.01}}
        )
    assert next(differences(pulled.state["model"], decayed.state["model"]), None) is None
    assert series(pulled, "loss") == series(decayed, "loss")


@pytest.mark.parametrize("train_section", [{}, {"accumulate": 2}, {"precision": "fp16"}])
def test_the_push_joins_the_final_gradient_once_per_step_and_before_clipping(train_section):
    # In the recipe grad_clip stands first.
    over = {"plugins": {"grad_clip": {"max_norm": 1e9}}, "train": train_section}
    watch, plain = Watch(), Watch()
    pulled = train({"mu_squared": 1e5, "coefficient": 0.02}, over, observers=[watch])
    train({"coefficient": 0.0}, over, observers=[plain])
    # In fp16 the scaler skips steps until its scale fits; the first that counts is the same for
    # both.
    first = next(i for i, (_, grad) in enumerate(plain.seen) if grad.isfinite().all())
    (phi, grad), (phi_0, grad_0) = watch.seen[first], plain.seen[first]
    assert torch.equal(phi, phi_0)
    torch.testing.assert_close(grad, grad_0 - 0.02 * phi, rtol=1e-6, atol=1e-6)
    assert series(pulled, "grad_clip/norm_before")[first] == pytest.approx(
        grad.norm().item(), rel=1e-5
    )
    assert len(watch.seen) == len(series(pulled, "norm_bias/squared_norm")) == pulled.state["step"]


def test_the_log_tells_the_squared_norm_and_the_distance_at_every_step():
    watch = Watch()
    trace = train({"mu_squared": 50.0}, observers=[watch])
    wanted = [phi.square().sum().item() for phi, _ in watch.seen]
    assert series(trace, "norm_bias/squared_norm") == pytest.approx(wanted, rel=1e-5)
    assert series(trace, "norm_bias/distance") == pytest.approx([n - 50 for n in wanted], rel=1e-4)


@pytest.mark.parametrize("target", ["all", "weights"])
def test_auto_is_a_multiple_of_the_norm_at_the_start_and_outlives_a_stop(target):
    options = {"auto_multiple": 1.5, "coefficient": 0.5, "target": target}
    whole, stopped = train(options), train(options, stops=[2])
    start = series(whole, "norm_bias/squared_norm")[0]
    assert whole.state["plugins"]["norm_bias"] == {
        "mu_squared": pytest.approx(1.5 * start, rel=1e-6)
    }
    assert series(whole, "norm_bias/distance")[0] == pytest.approx(-0.5 * start, rel=1e-5)
    assert next(differences(whole.state["model"], stopped.state["model"]), None) is None


def test_only_matrices_and_kernels_may_count_or_be_pushed():
    kinds = {}
    for target, pushed in (("all", "target"), ("all", "weights"), ("weights", "target")):
        watch, plain = Watch(), Watch()
        options = {"mu_squared": 1e5, "target": target, "pushed": pushed}
        trace = train(options | {"coefficient": 0.02}, observers=[watch])
        train(options | {"coefficient": 0.0}, observers=[plain])
        moved = watch.seen[0][1] != plain.seen[0][1]
        kinds[target, pushed] = series(trace, "norm_bias/squared_norm")[0], moved
    run = built({"mu_squared": 1.0})
    matrices = {id(p) for p in decaying_parameters(run.model).values()}
    groups = [p for group in run.optimizer.param_groups for p in group["params"]]
    is_matrix = torch.cat([torch.full((p.numel(),), id(p) in matrices) for p in groups])
    vectors = sum(p.detach().square().sum().item() for p in groups if id(p) not in matrices)
    assert kinds["all", "target"][0] == kinds["all", "weights"][0]
    assert kinds["weights", "target"][0] == pytest.approx(
        kinds["all", "target"][0] - vectors, rel=1e-5
    )
    assert torch.equal(kinds["all", "weights"][1], kinds["weights", "target"][1])
    assert not kinds["all", "weights"][1][~is_matrix].any()
    # A number that is 0 is not moved by a multiple of itself.
    assert kinds["all", "target"][1][~is_matrix].any()
    assert kinds["all", "weights"][1][is_matrix].float().mean() > 0.9


def built(options: dict[str, Any], **over: Any) -> Run:
    with undisturbed():
        return build(Case("norm_bias", options, recipe=SGD).setup(over=over))


def test_what_the_model_exempts_from_decay_is_no_matrix_or_kernel():
    run = built(
        {}, model={"name": "test_vit", "args": {"drop_rate": 0.0}}, data={"image_size": 160}
    )
    names = {id(p): name for name, p in run.model.named_parameters()}
    found = {names[id(p)] for p in decaying_parameters(run.model).values()}
    assert {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= found
    assert not {"pos_embed", "cls_token", "norm.weight", "blocks.0.attn.qkv.bias"} & found


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["optimizer.weight_decay=0.1"],
            r"command line .*optimizer.weight_decay: is 0.1 and pulls to zero",
        ),
        (
            ["~optimizer.weight_decay"],
            r"tiny.yaml:\d+: optimizer.weight_decay: is 0.05 by default and pulls to zero",
        ),
    ],
)
def test_weight_decay_beside_the_pull_must_be_asked_for(write, overrides, message):
    text = """\
model: {name: test_resnet, in_chans: 1}
data: {name: digits, image_size: 32}
optimizer: {name: sgd, weight_decay: 0}
plugins: {norm_bias: {}}
"""
    path = write(text, "tiny.yaml")
    with undisturbed():
        with pytest.raises(UserError, match=message):
            build(compose(path, overrides))
        for allowed in (
            "plugins.norm_bias.with_weight_decay=true",
            "plugins.norm_bias.coefficient=0",
        ):
            build(compose(path, [*overrides, allowed]))
        # A decay of what is not pushed is no second pull.
        build(compose(path, []))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mu_squared": "atuo"}, "should be a number of at least 0, or auto; got 'atuo'"),
        ({"mu_squared": True}, "should be a number"),
        ({"mu_squared": -1}, "should be a number of at least 0"),
        ({"mu_squared": float("inf")}, "should be a number"),
        ({"mu_squared": 0, "form": "squared"}, "use form: absolute"),
        (
            {"mu_squared": 5, "auto_multiple": 3},
            "auto_multiple does nothing when mu_squared is a number",
        ),
        ({"coefficient": -1}, "coefficient"),
    ],
)
def test_options_without_a_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NormBias(**options)


def test_plan_says_where_the_norm_stands_and_how_long_the_way_is():
    run = built({"auto_multiple": 4.0, "coefficient": 1e-2})
    plugin = run.plugins["norm_bias"]
    now = squared_norm(run.model.parameters()).item()
    first, second = plugin.explain(run)
    count = f"{sum(p.numel() for p in run.model.parameters()):,}"
    assert (
        first
        == f"sum of squares of {count} parameters: {now:.6g} now, pulled to {4 * now:.6g} (4 times"
        f" that at the start); {count} of them are pushed"
    )
    # Steps of 2 lr c / (1 - momentum) of itself each: log(4) / (2 * 0.05 * 0.01 / 0.1) = 138.6.
    assert (
        second == "the pull alone takes about 139 steps to get there at lr 0.05; this run has 358"
    )
    assert plugin.state_dict() == {}
    run = built({"mu_squared": 9.0}, optimizer={"name": "adamw"})
    _, adaptive = run.plugins["norm_bias"].explain(run)
    assert adaptive.startswith("AdamW rescales gradients")


def history(norms: list[float], goal: float) -> History:
    rows = [{"norm_bias/squared_norm": n, "norm_bias/distance": n - goal} for n in norms]
    return History([Record(step, 0, dict(row)) for step, row in enumerate(rows, start=1)])


def test_the_report_tells_whether_the_norm_has_arrived():
    (arrived,) = NormBias().report(history([100 - 90 * 0.5**i for i in range(40)], 100.0))
    assert "its target is 100. Over the last tenth of the steps it was 0.00% away" in arrived.text
    assert "not arrived" not in arrived.text
    (late,) = NormBias().report(history([10.0 + i for i in range(40)], 100.0))
    assert "It has not arrived" in late.text
    (decay,) = NormBias().report(history([10.0, 9.0], 0.0))
    assert (
        decay.text
        == "The sum of squares was 10 at the first step and 9 at the last; its target is 0, which"
        " is weight decay."
    )
    assert NormBias().report(history([float("nan")], 1.0)) == []


@pytest.mark.slow
def test_two_ranks_are_pushed_alike(write, tmp_path):
    from tests.test_distributed import on_two_ranks

    text = f"""\
seed: 3
model: {{name: test_resnet}}
data: {{name: digits, image_size: 32, batch_size: 4}}
train: {{epochs: 2, device: cpu, log_every: 2}}
plugins:
  {Path(__file__).parents[1] / "reference" / "tiny.py"}:TinyData: {{}}
  norm_bias: {{coefficient: 0.1, with_weight_decay: true}}
"""
    first, second = on_two_ranks(write(text, "ranks.yaml"), tmp_path / "two")
    assert all(
        torch.equal(first["weights"][name], second["weights"][name])
        for name, _ in first["weights"].items()
    )
