"""Conversion and its way back: what is touched, what stays, what is refused in which words."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn
from trainkit_plugins.batch_norm import (
    convert_batch_norm,
    converted_layers,
    is_converted,
    revert_batch_norm,
)


class Odd(nn.BatchNorm2d):
    """A BatchNorm that does something of its own."""

    def forward(self, input):
        return super().forward(input) + 1


class Named(nn.BatchNorm2d):
    """A BatchNorm with nothing of its own but the name."""


def net(norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    layers = {"conv": nn.Conv2d(3, 8, 3), "bn1": norm(8), "act": nn.ReLU(), "flat": nn.Flatten()}
    return nn.Sequential(OrderedDict(layers | {"fc": nn.Linear(72, 12), "bn2": nn.BatchNorm1d(12)}))


def snapshot(model):
    """Return everything that a conversion must leave alone."""
    return (
        {k: id(v) for k, v in [*model.named_parameters(), *model.named_buffers()]},
        list(model.state_dict()),
        {k: dict(m.__dict__) for k, m in model.named_modules()},
        {k: type(m) for k, m in model.named_modules()},
    )


def test_there_and_back_again():
    model = net(Named)
    before = snapshot(model)
    assert convert_batch_norm(model, ghost_size=4, channels_per_group=2, example_weight=0.1) == [
        "bn1",
        "bn2",
    ]
    changed = snapshot(model)
    assert changed[:2] == before[:2]
    assert isinstance(model.bn1, Named)
    assert list(converted_layers(model)) == ["bn1", "bn2"]
    assert (model.bn1.channel_groups, model.bn2.channel_groups) == (4, 6)
    assert revert_batch_norm(model) == ["bn1", "bn2"]
    assert snapshot(model) == before
    assert revert_batch_norm(model) == []


def test_several_conversions_compose():
    model = net()
    convert_batch_norm(model, ghost_size=4)
    convert_batch_norm(model, example_weight=0.2, only=["bn2"])
    convert_batch_norm(
        model, channel_groups=4, blocks="consecutive", only=lambda name, m: m.num_features == 8
    )
    fields = [
        (m.ghost_size, m.channel_groups, m.example_weight, m.blocks)
        for m in converted_layers(model).values()
    ]
    assert fields == [(4, 4, 0.0, "consecutive"), (4, None, 0.2, "any")]
    convert_batch_norm(model, example_weight=0.0)
    assert model.bn2.example_weight == 0.0
    again = net()
    convert_batch_norm(again, ghost_size=2)
    assert type(again.bn1) is type(model.bn1)


def test_only_chooses_and_the_rest_stays_plain():
    model = net()
    assert convert_batch_norm(model, ghost_size=2, only={"bn2"}) == ["bn2"]
    assert (is_converted(model.bn1), is_converted(model.bn2)) == (False, True)


def test_a_bare_layer_is_a_model():
    layer = nn.BatchNorm2d(4)
    assert convert_batch_norm(layer, ghost_size=2) == [""]
    assert is_converted(layer)
    assert revert_batch_norm(layer) == [""]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ghost_size": 0}, "ghost_size must be a whole number of at least 1, got 0"),
        ({"ghost_size": 2.0}, "ghost_size must be a whole number of at least 1, got 2.0"),
        ({"ghost_size": True}, "got True"),
        ({"channel_groups": -1}, "channel_groups must be"),
        ({"channel_groups": 2, "channels_per_group": 2}, "not both"),
        ({"example_weight": 1.5}, r"example_weight must be in \[0, 1\], got 1.5"),
        ({"example_weight": float("nan")}, "got nan"),
        ({"blocks": "random"}, "blocks must be 'any', 'strided' or 'consecutive', got 'random'"),
        ({"only": ["bn3"]}, "no BatchNorm layer 'bn3'; did you mean 'bn[12]'"),
        ({"only": ["conv"]}, "no BatchNorm layer 'conv'"),
        ({"only": []}, "chooses none of the 2 BatchNorm layers"),
        ({"only": lambda name, module: False}, "chooses none"),
        ({"channel_groups": 8}, "bn2 has 12 channels, not a multiple of channel_groups=8"),
        ({"channels_per_group": 3}, "bn1 has 8 channels, not a multiple of channels_per_group=3"),
    ],
)
def test_refusals_leave_the_model_alone(options, words):
    model = net()
    before = snapshot(model)
    with pytest.raises(ValueError, match=words):
        convert_batch_norm(model, **options)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (Odd(8), "bn1 is a .*Odd, a BatchNorm with a forward of its own"),
        (nn.SyncBatchNorm(8), "SyncBatchNorm, whose statistics are those of all processes"),
        (nn.LazyBatchNorm2d(), "LazyBatchNorm2d that has not seen its number of channels"),
    ],
)
def test_layers_that_cannot_be_converted_are_named(layer, words):
    model = net()
    model.bn1 = layer
    with pytest.raises(ValueError, match=words):
        convert_batch_norm(model, ghost_size=4)
    assert not converted_layers(model)
    assert convert_batch_norm(model, ghost_size=4, only=["bn2"]) == ["bn2"]


def test_a_lazy_layer_that_has_seen_data_is_an_ordinary_one():
    model = nn.Sequential(nn.LazyBatchNorm2d())
    model(torch.randn(2, 3, 4, 4))
    assert convert_batch_norm(model, ghost_size=4) == ["0"]


def test_a_model_without_batch_norm_hears_what_it_has():
    with pytest.raises(
        ValueError,
        match="Sequential has no BatchNorm layer; it normalizes with GroupNorm, LayerNorm",
    ):
        convert_batch_norm(nn.Sequential(nn.LayerNorm(3), nn.GroupNorm(1, 3)), ghost_size=4)
    with pytest.raises(
        ValueError, match="Linear has no BatchNorm layer; it has no normalization layer at all"
    ):
        convert_batch_norm(nn.Linear(2, 2), ghost_size=4)


def test_a_shared_layer_is_converted_once():
    layer = nn.BatchNorm2d(4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert convert_batch_norm(model, ghost_size=2) == ["0"]
    assert revert_batch_norm(copy.deepcopy(model)) == ["0"]
