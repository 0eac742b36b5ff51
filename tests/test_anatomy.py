"""The parts of a model that techniques ask for."""

from __future__ import annotations

import pytest
import timm
import torch

from trainkit import classifiers, decaying_parameters, first_layers


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("test_resnet", ["fc"]),
        ("test_vit", ["head"]),
        ("deit_tiny_distilled_patch16_224", ["head", "head_dist"]),
        ("crossvit_tiny_240", ["head.0", "head.1"]),
        ("levit_128s", ["head.linear", "head_dist.linear"]),
    ],
)
def test_classifiers_are_those_that_timm_names(name: str, wanted: list[str]) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
        assert classifiers(model) == wanted
        assert classifiers(timm.create_model(name, num_classes=0)) == []


def test_classifiers_of_models_without_timms_names() -> None:
    assert classifiers(torch.nn.Linear(2, 2)) == []
    with torch.device("meta"):
        model = timm.create_model("test_vit")
    model.pretrained_cfg = {}
    assert classifiers(model) == ["head"]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("test_resnet", ["conv1.0"]), ("test_vit", ["patch_embed.proj"])],
)
def test_first_layers_are_those_that_timm_names(name: str, wanted: list[str]) -> None:
    with torch.device("meta"):
        assert first_layers(timm.create_model(name)) == wanted
    assert first_layers(torch.nn.Linear(2, 2)) == []


def test_matrices_and_kernels_decay_but_for_what_the_model_exempts() -> None:
    with torch.device("meta"):
        model = timm.create_model("test_vit")
    model.patch_embed.requires_grad_(False)  # what decays does not depend on what is trained
    found = decaying_parameters(model)
    assert found["patch_embed.proj.weight"] is model.patch_embed.proj.weight
    assert "blocks.0.attn.qkv.weight" in found
    assert not {"pos_embed", "cls_token", "norm.weight", "blocks.0.attn.qkv.bias"} & found.keys()
