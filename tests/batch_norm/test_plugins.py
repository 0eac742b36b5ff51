"""The four plugins in runs: what they say, what they do to one another, what they leave, and
what they refuse.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from trainkit_plugins.batch_norm import convert_batch_norm, converted_layers, revert_batch_norm
from trainkit_plugins.batch_norm.grouping import described_blocks, fitting_groups

from tests.conftest import TINY_DATA
from tests.reference.tiny import train
from tests.test_distributed import on_two_ranks
from trainkit import Run, UserError
from trainkit.commands.plan import make_plan
from trainkit.commands.session import start
from trainkit.training.build import build, compose

ALL = [
    "plugins.ghost_batch_norm.size=4",
    "plugins.batch_group_norm={channel_groups: 32, examples: 2}",
    "plugins.norm_decay={scale: 0.1, shift: 0.2}",
    "plugins.example_weighing.alpha=tune",
]
RECIPE = f"""\
seed: 3
model: {{name: test_resnet}}
data: {{name: digits, image_size: 32, batch_size: 8}}
train: {{epochs: 2, device: cpu}}
optimizer: {{name: sgd, lr: 5e-2, weight_decay: 0.01}}
plugins:
  {TINY_DATA}:TinyData: {{}}
"""


@pytest.fixture
def recipe(write: Callable[..., Path]) -> Path:
    return write(RECIPE)


def built(recipe: Path, *overrides: str) -> Run:
    return build(compose(recipe, overrides))


def explained(recipe: Path, plugin: str, *overrides: str) -> list[str]:
    found = {p["name"]: p["explains"] for p in make_plan(recipe, overrides)["plugins"]}
    lines: list[str] = found[plugin]
    return lines


def test_plan_tells_what_all_four_together_do(recipe: Path) -> None:
    plan = make_plan(recipe, ALL)
    said = {p["name"]: "\n".join(p["explains"]) for p in plan["plugins"]}
    blocks = "15 batch norms: each micro-batch of 8 examples, on each rank, becomes 4 blocks of 2"
    assert said["ghost_batch_norm"] == blocks
    assert said["batch_group_norm"].splitlines() == [
        blocks,
        (
            "32 groups of channels in 8 layers: bn1, layer1.0.bn1, layer1.0.bn2, layer3.0.bn3 … "
            "layer4.0.downsample.2"
        ),
        (
            "24 groups of channels in 5 layers (32 does not divide their channels): layer2.0.bn1, "
            "layer2.0.bn2, layer2.0.downsample.2, layer3.0.bn1 … layer3.0.bn2"
        ),
        "16 groups of channels in 2 layers (32 does not divide their channels): conv1.1, conv1.4",
    ]
    assert "0 until training is over, then that of 0, 0.01, " in said["example_weighing"]
    assert said["norm_decay"].splitlines() == [
        (
            "2 of 15 batch norms decay (a path to the output passes no further norm): layer4.0.bn2,"
            " layer4.0.downsample.2"
        ),
        "the other 13 do not: a later norm undoes what it would do",
        (
            "scale by 0.1 toward one, shift by 0.2 toward zero: SGD's own weight decay, as "
            "optimizer.weight_decay is for other weights"
        ),
    ]
    groups = [
        (group["name"], group["tensors"], group["weight_decay"], group["rule"])
        for group in plan["groups"]
    ]
    assert groups[2:] == [
        ("norm_scale", 2, 0.1, "exposed batch norms, toward one"),
        ("norm_shift", 2, 0.2, "exposed batch norms, toward zero"),
    ]
    changes = {row["plugin"]: row["changes"] for row in plan["model"]["changes"]}
    assert changes["example_weighing"][0].startswith(
        "15 x BatchNorm2d -> GeneralizedBatchNorm2d: conv1.1, conv1.4"
    )
    assert changes["batch_group_norm"][0].startswith(
        "settings changed in 15 module(s): conv1.1, conv1.4"
    )


def test_fields_do_not_depend_on_the_order_in_the_recipe(recipe: Path) -> None:
    found = set()
    for order in permutations([*ALL[:2], "plugins.example_weighing.alpha=0.1"]):
        layers = converted_layers(built(recipe, *order).model)
        found.add(
            tuple(
                (n, v.ghost_size, v.channel_groups, v.example_weight, v.blocks)
                for n, v in layers.items()
            )
        )
    assert len(found) == 1
    assert next(iter(found))[2] == ("bn1", 2, 32, 0.1, "any")


def test_what_limits_more_counts(recipe: Path) -> None:
    def sizes(ghost: str, examples: str) -> set[int | None]:
        overrides = [
            f"plugins.ghost_batch_norm.size={ghost}",
            f"plugins.batch_group_norm.examples={examples}",
        ]
        return {
            layer.ghost_size for layer in converted_layers(built(recipe, *overrides).model).values()
        }

    assert sizes("4", "2") == sizes("2", "4") == sizes("2", "null") == sizes("null", "2") == {2}
    assert sizes("null", "null") == {None}


@pytest.mark.parametrize(
    ("channels", "wanted", "groups"),
    [(64, 32, 32), (40, 32, 20), (24, 32, 24), (37, 32, 1), (48, 7, 6), (1, 1, 1)],
)
def test_groups_that_do_not_divide_the_channels(channels: int, wanted: int, groups: int) -> None:
    assert fitting_groups(channels, wanted) == groups


def test_blocks_in_words() -> None:
    assert described_blocks(64, 16, "strided").endswith("becomes 4 blocks of 16 (strided)")
    assert described_blocks(64, 16, "any").endswith("becomes 4 blocks of 16")
    assert described_blocks(65, 16, "consecutive").endswith(
        "becomes 4 blocks of 16, the last of 17 (consecutive)"
    )
    assert described_blocks(16, 16, "strided").endswith("is one block, as in plain batch norm")
    assert described_blocks(16, None, "strided").endswith("is one block, as in plain batch norm")


def test_a_micro_batch_that_is_one_block_is_noted(recipe: Path) -> None:
    overrides = ["plugins.ghost_batch_norm.size=8", "train.epochs=1"]
    run, _ = train(compose(recipe, [*overrides, "data.batch_size=8", "train.accumulate=2"]))
    assert run.log.notes == [
        "ghost_batch_norm: a micro-batch has 8 examples, not more than size 8, and is one block, as"
        " in plain batch norm; raise data.batch_size or lower size"
    ]
    run, _ = train(compose(recipe, [*overrides, "data.batch_size=9"]))
    assert run.log.notes == []


def test_norms_decay_once_and_keep_their_learning_rates(recipe: Path) -> None:
    decay = "plugins.norm_decay={scale: 0.1, shift: 0.2, where: all}"
    run = built(recipe, decay, "optimizer={name: adamw, weight_decay: 0.05, layer_decay: 0.5}")
    by_tensor = {id(p): group for group in run.optimizer.param_groups for p in group["params"]}
    norms = [m for m in run.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {by_tensor[id(norm.weight)]["weight_decay"] for norm in norms} == {0.1}
    assert {by_tensor[id(norm.bias)]["weight_decay"] for norm in norms} == {0.2}
    plain = built(recipe, "optimizer={name: adamw, weight_decay: 0.05, layer_decay: 0.5}")
    scales = {
        id(p): group["lr_scale"] for group in plain.optimizer.param_groups for p in group["params"]
    }
    wanted = [scales[id(p)] for p in plain.model.parameters()]
    assert [by_tensor[id(p)]["lr_scale"] for p in run.model.parameters()] == wanted
    assert len(set(wanted)) > 2


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "radam"])
def test_strong_decay_brings_scales_to_one_and_shifts_to_zero(recipe: Path, optimizer: str) -> None:
    """Also of norms that begin elsewhere: timm starts the last norm of each block at zero."""
    overrides = [
        "plugins.norm_decay={scale: 5, shift: 5, where: all}",
        f"optimizer={{name: {optimizer}, lr: 0.1}}",
    ]
    overrides += ["plugins.radam={lr: 0.1}"] if optimizer == "radam" else []
    run, _ = train(compose(recipe, [*overrides, "scheduler={name: constant}", "train.epochs=4"]))
    norms = [m for m in run.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    begun = [m for m in built(recipe).model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert any(not norm.weight.any() for norm in begun)
    far = torch.cat(
        [norm.weight.detach() - 1 for norm in norms] + [norm.bias.detach() for norm in norms]
    )
    assert far.abs().mean() < 0.2


def test_tuning_measures_the_weights_that_are_kept(recipe: Path, tmp_path: Path) -> None:
    """Also where the average of the weights is what is validated, and the best epoch is not the
    last.
    """
    overrides = ["train.epochs=4", "plugins.ema={decay: 0.5}"]
    folder = start(recipe, [*overrides, *ALL], tmp_path / "run", []).folder
    summary = json.loads((folder / "summary.json").read_text())
    found = json.loads((folder / "example_weighing.json").read_text())
    assert summary["best"]["epoch"] <= 3
    curve = {point["alpha"]: point for point in found["curve"]}
    for name in ("nll", "accuracy"):
        assert curve[0.0][name] == pytest.approx(summary["best"][name], abs=1e-5)
    best = min(found["curve"], key=lambda point: point["nll"])
    assert found["alpha"] in (best["alpha"], 0.0)
    assert found["examples"] == 10
    note = f"example_weighing: alpha {found['alpha']:g} by nll on the 10 validation examples"
    assert note in str(summary["notes"])
    assert "Alpha at inference" in (folder / "report.html").read_text()
    state = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["plugins"][
        "example_weighing"
    ]
    assert (state["chosen"], state["weights"]) == (found["alpha"], {})


def test_weights_are_plain_timms(recipe: Path, tmp_path: Path) -> None:
    folder = start(
        recipe, [*ALL, "plugins.batch_group_norm.channel_groups=null"], tmp_path / "run", []
    ).folder
    weights = folder / "weights.safetensors"
    model = timm.create_model("test_resnet", num_classes=4, checkpoint_path=str(weights)).eval()
    assert load_file(weights).keys() == model.state_dict().keys()
    inputs = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        plain = model(inputs)
        convert_batch_norm(model, ghost_size=2, example_weight=0.0)
        assert torch.equal(model(inputs), plain)
        convert_batch_norm(model, example_weight=0.5)
        assert not torch.allclose(model(inputs), plain)
        revert_batch_norm(model)
        assert torch.equal(model(inputs), plain)


def test_a_fixed_alpha_is_noted_and_used_in_validation(recipe: Path) -> None:
    run, checkpointer = train(compose(recipe, ["plugins.example_weighing.alpha=0.5"]))
    plain, without = train(compose(recipe, []))
    assert all(
        torch.equal(a, b)
        for a, b in zip(run.model.parameters(), plain.model.parameters(), strict=True)
    )
    assert checkpointer.outcome.final["nll"] != without.outcome.final["nll"]
    assert "convert_batch_norm(model, example_weight=0.5) gives these metrics" in run.log.notes[0]


@pytest.mark.parametrize(
    "name", ["ghost_batch_norm", "batch_group_norm", "example_weighing", "norm_decay"]
)
def test_a_model_without_batch_norm_is_refused_with_the_line(
    write: Callable[..., Path], name: str
) -> None:
    path = write(RECIPE.replace("test_resnet", "test_vit") + f"  {name}: {{}}\n")
    with pytest.raises(
        UserError,
        match=rf"recipe\.yaml:8: plugins\.{name}: VisionTransformer has no (BatchNorm|batch n)",
    ):
        built(path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["plugins.norm_decay={}", "optimizer={name: lamb}"],
            "Lamb takes steps that grow with the weights .*; set tow",
        ),
        (
            ["plugins.norm_decay={}", "model={name: xcit_nano_12_p8_224, args: {img_size: 32}}"],
            "passes another norm, which undoes it; set where to all",
        ),
        (
            ["plugins.norm_decay={scale: -1}"],
            "plugins.norm_decay.scale: should be greater than or equal to 0",
        ),
        (["plugins.example_weighing.alpha=2"], r"plugins\.example_weighing\.alpha"),
        (["plugins.example_weighing.alpha=tuned"], "'tune'"),
        (
            ["plugins.ghost_batch_norm.size=0"],
            r"plugins\.ghost_batch_norm\.size: should be greater than or equal to 1",
        ),
        (["plugins.batch_group_norm.groups=8"], r"did you mean 'channel_groups'\?"),
    ],
)
def test_what_cannot_be_is_refused(recipe: Path, overrides: Sequence[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        built(recipe, *overrides)


@pytest.mark.slow
def test_two_ranks_tune_on_all_examples_and_agree(recipe: Path, tmp_path: Path) -> None:
    two = on_two_ranks(recipe, tmp_path / "two", *ALL)
    found = json.loads((tmp_path / "two" / "example_weighing.json").read_text())
    assert found["examples"] == 10
    assert two[0]["metrics"] == two[1]["metrics"]
    assert {p["alpha"]: p["nll"] for p in found["curve"]}[0.0] == pytest.approx(
        two[0]["metrics"]["nll"], abs=0.5
    )
    for name in ("bn1.weight", "layer4.0.bn2.weight"):
        assert torch.equal(*(rank["weights"][name] for rank in two))


@pytest.mark.slow  # torch's compiler takes seconds
def test_all_four_compiled(recipe: Path) -> None:
    overrides: list[Any] = [*ALL, "train.epochs=1", "data.drop_last=true"]
    run, checkpointer = train(compose(recipe, [*overrides, "train.compile=true"]))
    plain, without = train(compose(recipe, overrides))
    assert checkpointer.outcome.final["nll"] == pytest.approx(
        without.outcome.final["nll"], rel=0.05
    )
    assert len(run.log.notes) == len(plain.log.notes) == 1
