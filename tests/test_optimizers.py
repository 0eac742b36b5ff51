"""The optimizer of a recipe: what it is given it holds, and what would do nothing is refused
where it is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import timm
import timm.optim
import torch

from trainkit.commands.plan import make_plan
from trainkit.config.optimizer import OptimizerSpec
from trainkit.errors import UserError
from trainkit.models.anatomy import exempt_names
from trainkit.optim.param_groups import decay_groups, layer_groups
from trainkit.training.build import build, compose
from trainkit.training.trainable import trained


def refusal(tiny: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        build(compose(tiny, overrides))
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "arguments", "held"),
    [
        (
            "adamw",
            "{betas: [0.8, 0.95], eps: 1e-6, amsgrad: true}",
            {"betas": (0.8, 0.95), "eps": 1e-6},
        ),
        (
            "sgd",
            "{nesterov: false, dampening: 0.1}",
            {"nesterov": False, "dampening": 0.1, "momentum": 0.9},
        ),
        ("lion", "{betas: [0.9, 0.98], foreach: false}", {"betas": (0.9, 0.98), "foreach": False}),
        (
            "adan",
            "{betas: [0.9, 0.8, 0.7], no_prox: true}",
            {"betas": (0.9, 0.8, 0.7), "no_prox": True},
        ),
    ],
)
def test_every_argument_that_is_taken_reaches_the_groups(
    tiny: Path, name: str, arguments: str, held: dict[str, Any]
) -> None:
    run = build(compose(tiny, [f"optimizer.name={name}", f"optimizer.args={arguments}"]))
    for group in run.optimizer.param_groups:
        found = {
            key: tuple(group[key]) if isinstance(group[key], list) else group[key] for key in held
        }
        assert found == held


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["optimizer.name=sgd", "optimizer.args.betas=[0.5, 0.6]"],
            "sgd does not take these arguments: 'betas'",
        ),
        (
            ["optimizer.name=lion", "optimizer.args.eps=1e-3"],
            "lion does not take these arguments: 'eps'",
        ),
        (
            ["optimizer.args.filter_bias_and_bn=false"],
            "args.filter_bias_and_bn: the parameter groups are made before",
        ),
        (
            ["optimizer.args.fallback_list=[head.*]"],
            "args.fallback_list: say it as optimizer.fallback",
        ),
        (
            ["optimizer.args.layer_decay_min_scale=0.1"],
            "args.layer_decay_min_scale: say it as optimizer.layer_decay_min_scale",
        ),
        (["optimizer.args.layer_decay=0.7"], "args.layer_decay: say it as optimizer.layer_decay"),
        (["optimizer.args.lr=1"], "args.lr: say it as optimizer.lr"),
        (["optimizer.args.opt=sgd"], "args.opt: say it as optimizer.name"),
        (
            ["optimizer.name=sgd", "optimizer.args.momentum=0.5"],
            "args.momentum: say it as optimizer.momentum",
        ),
        (
            ["optimizer.momentum=0.5"],
            "optimizer.momentum: adamw has no momentum of this kind; leave it out",
        ),
        (
            ["optimizer.args.beta=1"],
            "adamw does not take these arguments: 'beta'; did you mean 'betas'?",
        ),
    ],
)
def test_what_would_do_nothing_is_refused(tiny: Path, overrides: list[str], message: str) -> None:
    found = refusal(tiny, *overrides)
    assert message in found
    assert found.startswith(f"command line `{overrides[-1]}`: optimizer")
    assert "\n" not in found


@pytest.mark.parametrize(
    ("name", "argument", "message"),
    [
        ("adamw", "betas=[0.9]", "should be 2 numbers, each at least 0 and below 1; got [0.9]"),
        ("adamw", "betas=[0.9, 1000000000000]", "should be 2 numbers"),
        ("adan", "betas=[0.9, 0.9]", "should be 3 numbers"),
        ("adamw", "eps=-1", "should be a number of at least 0; got -1"),
        ("adamw", "eps=.nan", "should be a finite number; got nan"),
        ("adamw", "amsgrad=2", "should be true or false; got 2"),
        ("adamw", "foreach=word", "should be true or false; got 'word'"),
        ("lars", "trust_coeff=many", "should be a finite number; got 'many'"),
        ("muon", "ns_steps=1000000000000", "should be at most 100"),
        ("adamw", "maximize=true", "its steps raise the loss"),
        ("lars", "trust_coeff=-1", "its steps raise the loss"),
        ("rmsprop", "alpha=5", "three steps on a handful of numbers give no finite ones"),
        ("adamw", "differentiable=true", "a leaf Variable that requires grad"),
        ("muon", "ns_coefficients=guess", "Unknown coefficients preset"),
    ],
)
def test_wrong_values_are_refused_in_one_line(
    tiny: Path, name: str, argument: str, message: str
) -> None:
    found = refusal(tiny, f"optimizer.name={name}", f"optimizer.args.{argument}")
    assert message in found
    assert found.startswith(f"command line `optimizer.args.{argument}`: optimizer")
    assert "\n" not in found


def test_all_wrong_arguments_are_said_at_once_and_with_their_lines(tiny: Path) -> None:
    text = tiny.read_text().replace(
        "weight_decay: 0.1}", "weight_decay: 0.1,\n  args: {beta: 1,\n    lr: 2}}"
    )
    tiny.write_text(text)
    lines = refusal(tiny).splitlines()
    assert [line.rpartition("tiny.yaml:")[2].split(":")[0] for line in lines] == ["6", "7"]


def test_an_optimizer_of_a_library_that_is_not_here_is_refused(tiny: Path) -> None:
    assert "optimizer.name: fusedadam is not here" in refusal(tiny, "optimizer.name=fusedadam")


# Weight decay.


@pytest.mark.parametrize(
    "name", ["xcit_nano_12_p16_224", "test_vit", "levit_128s", "beit_base_patch16_224"]
)
@pytest.mark.parametrize("layers", [False, True])
def test_the_same_parameters_decay_as_in_timms_own_groups(name: str, layers: bool) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=10)
    free = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    if layers:
        expected = timm.optim.param_groups_layer_decay(
            model, 0.1, no_weight_decay_list=free, layer_decay=0.5
        )
        found = layer_groups(model, OptimizerSpec(weight_decay=0.1, layer_decay=0.5))
    else:
        expected = timm.optim.param_groups_weight_decay(model, 0.1, no_weight_decay_list=free)
        found = decay_groups(model, 0.1)

    def decays(groups: Any) -> dict[int, float]:
        return {id(p): group["weight_decay"] for group in groups for p in group["params"]}

    assert decays(found) == decays(expected)


@pytest.mark.parametrize(("floor", "stop"), [(0.0, None), (0.4, None), (0.0, 0.6), (0.3, 0.3)])
def test_layers_are_scaled_and_left_out_as_in_timms_own_groups(
    floor: float, stop: float | None
) -> None:
    def model_of() -> torch.nn.Module:
        with torch.device("meta"):
            return cast(torch.nn.Module, timm.create_model("test_vit", num_classes=4))

    ours, theirs = model_of(), model_of()
    spec = OptimizerSpec(
        weight_decay=0.1,
        layer_decay=0.7,
        layer_decay_min_scale=floor,
        layer_decay_no_opt_scale=stop,
    )
    made = timm.optim.create_optimizer_v2(
        theirs,
        "sgd",
        lr=1.0,
        weight_decay=0.1,
        layer_decay=0.7,
        layer_decay_min_scale=floor,
        layer_decay_no_opt_scale=stop,
    )

    def settings(model: torch.nn.Module, groups: Any) -> dict[str, tuple[float, float]]:
        names = {id(p): name for name, p in model.named_parameters()}
        found = {}
        for group in groups:
            for p in group["params"]:
                found[names[id(p)]] = (group["lr_scale"], group["weight_decay"])
        return found

    assert settings(ours, layer_groups(ours, spec)) == settings(theirs, made.param_groups)
    assert trained(ours) == trained(theirs)
    assert (len(trained(ours)) < len(list(ours.parameters()))) == (stop == 0.6)


@pytest.mark.parametrize(
    ("name", "value", "note"),
    [
        ("min_scale", 0.01, ["layer_decay_min_scale: does nothing, because the least factor is 0"]),
        ("no_opt_scale", 0.01, ["layer_decay_no_opt_scale: does nothing, because the least"]),
        ("min_scale", 0.5, []),
        ("no_opt_scale", 0.5, []),
    ],
)
def test_bounds_of_layer_decay_that_no_layer_meets_are_noted(
    tiny: Path, name: str, value: float, note: list[str]
) -> None:
    said = ["optimizer.layer_decay=0.7", f"optimizer.layer_decay_{name}={value}"]
    run = build(compose(tiny, said))
    assert len(run.log.notes) == len(note)
    assert all(part in run.log.notes[0] for part in note)
    plan = make_plan(tiny, said)
    assert (plan["model"]["trainable"] < plan["model"]["parameters"]) == (
        name == "no_opt_scale" and not note
    )


def test_a_models_exemptions_are_read_as_patterns() -> None:
    with torch.device("meta"):
        model = timm.create_model("xcit_nano_12_p16_224")
    assert "pos_embed.token_projection.weight" in exempt_names(model)
    assert "cls_token" in exempt_names(model)
    assert exempt_names(torch.nn.Linear(2, 2)) == set()
