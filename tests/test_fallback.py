"""Muon's second rule: which parameters it moves, and that it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import timm
import timm.optim
import torch
from torch import nn

from tests.reference.tiny import train
from trainkit.commands.plan import make_plan
from trainkit.config.optimizer import OptimizerSpec
from trainkit.errors import UserError
from trainkit.hooks.run import Run
from trainkit.optim.param_groups import decay_groups, layer_groups
from trainkit.training.build import build, compose

HEAD = ("head.weight", "patch_embed.proj.weight")


def left(run: Run) -> set[str]:
    """Return the names of the parameters in groups for the second rule."""
    names = {id(p): name for name, p in run.model.named_parameters()}
    found = set()
    for group in run.optimizer.param_groups:
        if group.get("use_fallback"):
            found.update(names[id(p)] for p in group["params"])
    return found


def moved(run: Run) -> dict[str, torch.Tensor]:
    """Take one step along given gradients; return the parameters after it."""
    for number, p in enumerate(run.model.parameters()):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(number))
    run.optimizer.step()
    return {name: p.detach() for name, p in run.model.named_parameters()}


@pytest.mark.parametrize(("name", "twin"), [("muon", "adamwlegacy"), ("nmuon", "nadamw")])
def test_the_head_moves_as_under_adamw(tiny: Path, name: str, twin: str) -> None:
    settings = "scheduler.name=constant"
    ours = moved(build(compose(tiny, [f"optimizer.name={name}", settings])))
    same = ["optimizer.args={betas: [0.9, 0.95], eps: 1e-7}", settings]
    theirs = moved(build(compose(tiny, [f"optimizer.name={twin}", *same])))
    for weight in HEAD:
        assert torch.equal(ours[weight], theirs[weight])
    hidden = "blocks.0.mlp.fc1.weight"
    assert not torch.equal(ours[hidden], theirs[hidden])
    alone = moved(build(compose(tiny, [f"optimizer.name={name}", "optimizer.fallback=[]"])))
    assert not torch.equal(alone["head.weight"], theirs["head.weight"])


@pytest.mark.parametrize(
    ("model", "expected", "others"),
    [
        ("test_vit", {"head.weight", "patch_embed.proj.weight", "pos_embed"}, {"blocks.0.attn"}),
        ("test_efficientnet", {"classifier.weight", "conv_stem.weight"}, {"blocks.0.0.conv_exp"}),
        ("test_convnext", {"head.fc.weight", "stem.0.weight"}, {"stages.0.blocks.0.mlp"}),
    ],
)
def test_head_first_layer_embeddings_and_depthwise_kernels_are_left_to_it(
    tiny: Path, model: str, expected: set[str], others: set[str]
) -> None:
    run = build(compose(tiny, ["optimizer.name=nadamuon", f"model.name={model}"]))
    found = left(run)
    assert expected <= found
    assert not any(name.startswith(tuple(others)) for name in found)
    for name, module in run.model.named_modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            assert f"{name}.weight" in found


@pytest.mark.parametrize("layers", [None, 0.7])
def test_the_groups_are_those_of_timms_own_factory(layers: float | None) -> None:
    patterns = ["head.*", "*.qkv.weight"]
    model = cast(nn.Module, timm.create_model("test_vit", num_classes=4))
    made = timm.optim.create_optimizer_v2(
        model, "muon", lr=1.0, weight_decay=0.1, layer_decay=layers, fallback_list=patterns
    )
    names = [name for name, _ in model.named_parameters()]
    fallback = {name for name in names if name.startswith("head.") or name.endswith("qkv.weight")}
    if layers is None:
        ours = decay_groups(model, 0.1, fallback)
    else:
        ours = layer_groups(model, OptimizerSpec(weight_decay=0.1, layer_decay=layers), fallback)

    def settings(groups: Any) -> dict[int, tuple[bool, float, float]]:
        found = {}
        for group in groups:
            said = (
                group.get("use_fallback", False),
                group["weight_decay"],
                group.get("lr_scale", 1.0),
            )
            for p in group["params"]:
                found[id(p)] = said
        return found

    assert settings(ours) == settings(made.param_groups)


def test_patterns_take_the_place_of_the_default(tiny: Path) -> None:
    said = ["optimizer.name=muon", "optimizer.fallback=[head.*]"]
    assert left(build(compose(tiny, said))) == {"head.weight", "head.bias"}
    assert left(build(compose(tiny, ["optimizer.name=muon", "optimizer.fallback=[]"]))) == set()
    assert left(build(compose(tiny, ["optimizer.name=adamw"]))) == set()


def test_the_plan_shows_the_groups(tiny: Path) -> None:
    groups = {
        group["name"]: group["rule"] for group in make_plan(tiny, ["optimizer.name=muon"])["groups"]
    }
    assert groups["decay"] == "matrices and kernels; made orthogonal where the shape allows it"
    assert groups["decay_fallback"].endswith("embeddings and depthwise kernels")
    said = ["optimizer.name=muon", "optimizer.fallback=[head.*]"]
    rules = [group["rule"] for group in make_plan(tiny, said)["groups"]]
    assert "matrices and kernels; by the optimizer's fallback: head.*" in rules


def test_a_resolved_recipe_has_the_patterns(tiny: Path, tmp_path: Path) -> None:
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(compose(tiny, ["optimizer.fallback=[head.*]"]).recipe.dump())
    assert compose(resolved).recipe.optimizer.fallback == ("head.*",)


def test_a_run_under_muon_trains(tiny: Path) -> None:
    run, _ = train(compose(tiny, ["optimizer.name=lookahead_muon"]))
    assert run.step == 12


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.fallback=[head.*]"], "optimizer.fallback: adamw has one rule for all"),
        (
            ["optimizer.name=muon", "optimizer.fallback=[head.*, heads.*]"],
            "optimizer.fallback.1: no parameter is called 'heads.*'",
        ),
        (
            ["optimizer.name=muon", "optimizer.args.fallback_list=[head.*]"],
            "args.fallback_list: say it as optimizer.fallback",
        ),
    ],
)
def test_what_has_no_second_rule_or_no_such_parameter_is_refused(
    tiny: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        build(compose(tiny, overrides))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
