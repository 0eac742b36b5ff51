"""The plain networks that trainkit adds to timm's registry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from trainkit_data.tabular.models import Mlp

from tests.reference.tiny import train
from trainkit.errors import UserError
from trainkit.models.row_models import row_models
from trainkit.training.build import build, compose

Write = Callable[..., Path]


def test_timm_makes_them_by_name() -> None:
    assert all(timm.is_model(name) for name in row_models())
    model = timm.create_model("mlp", in_chans=7, num_classes=3, hidden=[5, 4], act="tanh")
    assert list(model.state_dict()) == [
        f"{layer}.{part}"
        for layer in ("layers.0", "layers.2", "head")
        for part in ("weight", "bias")
    ]
    x = torch.randn(6, 7)
    hidden = x
    for layer in (model.layers[0], model.layers[2]):
        hidden = torch.tanh(hidden @ layer.weight.T + layer.bias)
    torch.testing.assert_close(model(x), hidden @ model.head.weight.T + model.head.bias)


def test_images_are_flattened() -> None:
    model = timm.create_model("mlp", in_chans=2, img_size=3, num_classes=4, hidden=[5])
    x = torch.randn(6, 2, 3, 3)
    assert model.layers[0].in_features == 18
    assert torch.equal(model(x), model(x.flatten(1)))


def test_parts_have_timms_names() -> None:
    model = timm.create_model("mlp", in_chans=7, num_classes=3, hidden=[5, 4])
    x = torch.randn(2, 7)
    assert model.get_classifier() is model.head
    assert torch.equal(model.forward_head(model.forward_features(x)), model(x))
    assert torch.equal(
        model.forward_head(model.forward_features(x), pre_logits=True), model.forward_features(x)
    )
    assert isinstance(model.get_submodule(model.pretrained_cfg["first_conv"]), nn.Linear)
    model.reset_classifier(0)
    assert model(x).shape == (2, 4)


def test_no_hidden_layer_is_a_linear_model_and_extras_stand_where_they_should() -> None:
    linear = Mlp(4, [], 2)
    torch.testing.assert_close(linear(torch.eye(4)), linear.head.weight.T + linear.head.bias)
    assert linear.pretrained_cfg["first_conv"] == "head"
    kinds = [type(layer).__name__ for layer in Mlp(4, [3], 2, "gelu", True, 0.1).layers]
    assert kinds == ["Linear", "BatchNorm1d", "GELU", "Dropout"]


def test_an_autoencoder_has_its_inputs_as_outputs() -> None:
    model = timm.create_model("autoencoder", in_chans=9, num_classes=9)
    assert [type(layer).__name__ for layer in model.layers] == ["Linear", "Sigmoid"]
    assert model(torch.zeros(2, 9)).shape == (2, 9)
    assert (
        timm.create_model("autoencoder", in_chans=2, img_size=3, num_classes=0).head.out_features
        == 18
    )
    with pytest.raises(ValueError, match="9 inputs has 9 outputs, and the data want 3; take mlp"):
        timm.create_model("autoencoder", in_chans=9, num_classes=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"hidden": [0]},
            r"hidden is a list of whole numbers above 0, such as \[100, 100\]; got \[0\]",
        ),
        ({"hidden": [1.5]}, "whole numbers"),
        ({"act": "step"}, "timm has no activation 'step'"),
        ({"drop_rate": 1.0}, r"drop_rate is in \[0, 1\)"),
        ({"pretrained": True}, "no pretrained weights of mlp"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model("mlp", in_chans=3, **arguments)


def test_a_recipe_trains_one_on_images(write: Write) -> None:
    text = (
        "model: {name: mlp, in_chans: 1, args: {hidden: [20]}}\ndata: {name: digits, image_size: "
        "8}\ntrain: {epochs: 2, device: cpu}\noptimizer: {lr: 1e-2}\n"
    )
    run, checkpointer = train(compose(write(text)))
    assert run.model.layers[0].in_features == 64
    assert checkpointer.outcome.final["accuracy"] > 0.8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{name: mlp, args: {hiden: [3]}}",
            "recipe.yaml:1: model: timm cannot make mlp: .*'hiden'",
        ),
        (
            "{name: mlp, args: {act: step}}",
            "recipe.yaml:1: model: timm cannot make mlp: timm has no activation 'step'",
        ),
        (
            "{name: test_vit}",
            (
                "recipe.yaml:1: model.name: test_vit takes images, and these data are rows of 13 "
                "features"
            ),
        ),
        (
            "{name: autoencoder}",
            "an autoencoder of 13 inputs has 13 outputs, and the data want 3; take mlp",
        ),
        ("{name: mpl}", "timm .* has no model 'mpl'; did you mean 'mlp'"),
    ],
)
def test_a_recipe_with_a_model_that_does_not_fit_is_refused(
    write: Write, text: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build(compose(write(f"model: {text}\ndata: {{name: table, path: wine}}\n")))
