"""The trial pass: what a model refuses is one line before training, and nothing of the run
changes by looking.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.reference.tiny import with_plugins
from trainkit import Plugin, Predictions, Run, UserError, hookimpl
from trainkit.checks.trial import trial_problems
from trainkit.training.build import build, compose


def refusal(tiny: Path, *overrides: str, plugins: tuple[Plugin, ...] = ()) -> str:
    with pytest.raises(UserError) as caught:
        build(with_plugins(tiny, overrides, *plugins))
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.num_classes=1000"],
            "model.num_classes: test_vit gives [N, 1000], and the 4 classes of",
        ),
        (["model.num_classes=0"], "model.num_classes: test_vit gives [N, 64], and the 4 classes"),
        (
            ["data.image_size=17"],
            "data.image_size: test_vit cannot take 2 inputs of 3 x 17 x 17: Input height (17)",
        ),
        (
            ["data.image_size=8"],
            "data.image_size: test_vit cannot take 2 inputs of 3 x 8 x 8: Input height (8)",
        ),
        (
            ["model.name=test_resnet", "model.args.features_only=true"],
            "model.args: test_resnet gives list, and the 4",
        ),
        (
            ["model.name=test_resnet", "model.args.global_pool=''"],
            "model.args: test_resnet cannot take 2 inputs of 3 x 32 x",
        ),
        (
            ["model.name=test_resnet", "model.args.output_stride=3"],
            "model: timm cannot make test_resnet: ",
        ),
        (["model.args.act_layer=guess"], "model: timm cannot make test_vit: "),
        (
            ["model.name=test_resnet", "model.args.global_pool=5"],
            "model: timm cannot make test_resnet: ",
        ),
    ],
)
def test_what_the_model_refuses_is_one_line_before_training(
    tiny: Path, overrides: list[str], message: str
) -> None:
    found = refusal(tiny, *overrides)
    assert message in found
    assert found.startswith(("command line `", f"{tiny}:"))
    assert "\n" not in found


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("num_classes=4", "model.args.num_classes: say it as model.num_classes"),
        ("in_chans=7", "model.args.in_chans: say it as model.in_chans"),
        ("img_size=64", "model.args.img_size: say it as data.image_size"),
        ("checkpoint_path=x.pth", "model.args.checkpoint_path: say it as model.checkpoint"),
        ("drop_rate=5", "model.args.drop_rate: should be a share of at least 0 and below 1; got 5"),
        ("drop_path_rate=half", "model.args.drop_path_rate: should be a share"),
        ("proj_drop_rate=-0.1", "model.args.proj_drop_rate: should be a share"),
        ("depth=1000000000000", "model.args.depth: is larger than anything in a model"),
        (
            "norm_layer={eps: [1000000000000]}",
            "model.args.norm_layer: is larger than anything in a model",
        ),
    ],
)
def test_arguments_that_core_says_or_no_model_takes_are_refused(
    tiny: Path, argument: str, message: str
) -> None:
    assert refusal(tiny, f"model.args.{argument}").startswith(
        f"command line `model.args.{argument}`: {message}"
    )


def test_an_image_size_said_twice_alike_is_no_mistake(tiny: Path) -> None:
    for said in ("32", "[32, 32]"):
        assert build(compose(tiny, [f"model.args.img_size={said}"])).model.patch_embed.img_size == (
            32,
            32,
        )


def test_a_batch_of_one_is_refused_where_a_batch_norm_would_see_one_value(tiny: Path) -> None:
    model = "model.name=test_resnet"
    for further in ([], ["train.accumulate=4"]):
        found = refusal(tiny, model, "data.image_size=8", "data.batch_size=1", *further)
        assert found.startswith(
            "command line `data.batch_size=1`: data.batch_size: a training batch of 1 leaves a"
        )
        assert "\n" not in found
    build(compose(tiny, [model, "data.image_size=8", "data.batch_size=2"]))
    build(compose(tiny, [model, "data.image_size=64", "data.batch_size=1"]))
    build(compose(tiny, ["data.batch_size=1"]))  # no batch norm


@pytest.mark.parametrize("data", ["digits", "glyphs"])
@pytest.mark.parametrize("size", [16_385, 10**12])
def test_an_image_larger_than_any_is_refused_while_the_recipe_is_read(
    tiny: Path, data: str, size: int
) -> None:
    with pytest.raises(UserError) as caught:
        compose(tiny, [f"data.name={data}", f"data.image_size={size}"])
    expected = (
        f"command line `data.image_size={size}`: data.image_size: should be less than or equal to "
        "16384"
    )
    assert str(caught.value) == f"{expected}; got {size}"


class Probe(nn.Module):
    """Counts its passes in a buffer and an attribute, draws, and asks for values, which the meta
    device has none of.
    """

    def __init__(self, outputs: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(3, outputs)
        self.register_buffer("passes", torch.zeros(()))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) != float(x.sum()):
            raise ValueError("this model takes no numbers that are none")
        self.passes += 1
        self.seen.append(len(x))
        return self.linear(x.mean((2, 3)) + torch.rand(()))


class Provides(Plugin):
    """Provides the probe; answers in core's place where it is asked to."""

    outputs: int = 4
    _model: Any = None

    @hookimpl
    def build_model(self) -> nn.Module:
        return Probe(self.outputs)


class Evaluates(Plugin):
    """Makes its own predictions, so that it is its business what the model gives."""

    @hookimpl
    def compute_criterion(self, output: Tensor) -> Tensor:
        return output.square().mean()

    @hookimpl
    def evaluate_batch(self, model: nn.Module, batch: Any) -> Predictions:
        return Predictions(model(batch.inputs)[:, :4], batch.targets)


def test_a_model_that_cannot_run_on_shapes_alone_is_tried_in_earnest_and_left_as_it_was(
    tiny: Path,
) -> None:
    run = build(with_plugins(tiny, [], Provides()))
    assert isinstance(run.model, Probe)
    assert run.model.passes == 0
    assert run.model.seen == []
    assert run.model.training
    state, weights = torch.get_rng_state(), [p.clone() for p in run.model.parameters()]
    assert trial_problems(run) == []
    assert torch.equal(state, torch.get_rng_state())
    assert all(
        torch.equal(a, b) and b.device.type == "cpu"
        for a, b in zip(weights, run.model.parameters(), strict=True)
    )


def test_outputs_count_only_where_core_measures_them(tiny: Path) -> None:
    assert "gives [N, 6], and the 4 classes" in refusal(tiny, plugins=(Provides(outputs=6),))
    run: Run = build(with_plugins(tiny, [], Provides(outputs=6), Evaluates()))
    assert isinstance(run.model, Probe)


@pytest.mark.parametrize("name", ["test_resnet", "convit_tiny", "levit_128s", "coat_tiny"])
def test_looking_leaves_modules_buffers_and_caches_alone(tiny: Path, name: str) -> None:
    run = build(compose(tiny, [f"model.name={name}", "data.image_size=32"]))
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    attributes = {path: dict(vars(module)) for path, module in run.model.named_modules()}
    assert trial_problems(run) == []
    after = run.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert {t.device.type for t in [*run.model.parameters(), *run.model.buffers()]} == {"cpu"}
    for path, module in run.model.named_modules():
        assert attributes[path].keys() == vars(module).keys()
        assert all(vars(module)[key] is value for key, value in attributes[path].items())
