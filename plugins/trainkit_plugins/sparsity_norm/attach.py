"""A layer in front of a model, without a change to the names of the model's weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .layers import MaskAsInput, MissingInput

NAME = "sparsity_norm"
"""Under which the model knows the layer: its buffers are `sparsity_norm.k` and so on in the
model's state.
"""


def attach(model: nn.Module, layer: MissingInput, input_size: Sequence[int]) -> RemovableHandle:
    """Let every call of `model` go through `layer` first.

    The layer becomes a submodule, called by a forward pre-hook: all other names in the model's
    state stay as they are, so weights of the model alone load with `strict=False`, and weights
    saved with the layer load into the model alone with `strict=False` too. Only calls of the model
    itself pass the layer; `model.forward_features(x)` does not.

    For `MaskAsInput` the model's first layer grows: its weights for the mask are 0, so that it
    starts as the model with zero imputation.

    Args:
        model: any module that takes the inputs as its first argument; changed in place.
        layer: the layer.
        input_size: of one input without the mask: [C, H, W], or [F].

    Returns:
        A handle whose `remove` takes the hook away again.

    Raises:
        ValueError: the model has such a layer already, the layer is not for such inputs, or it
            cannot be seen where its mask would enter.
    """
    if hasattr(model, NAME):
        raise ValueError(f"the model already has a layer {NAME}")
    layer.check(input_size)
    if isinstance(layer, MaskAsInput):
        widen(model, input_size, by=1 if layer.mask == "pixel" else input_size[0])
    model.register_module(NAME, layer)
    return model.register_forward_pre_hook(_through_layer)


def _through_layer(model: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    layer: Any = model.get_submodule(NAME)
    return (layer(arguments[0]), *arguments[1:])


def widen(model: nn.Module, input_size: Sequence[int], by: int) -> None:
    """Let the first layer of a timm model take `by` further channels (or features), with weights 0.

    Args:
        model: its `pretrained_cfg` names its first layer, as timm's do; changed in place.
        input_size: of one input as it is now: [C, H, W], or [F].
        by: how many.

    Raises:
        ValueError: the first layer is not named, or is neither a plain convolution nor a linear
            layer on whole inputs.
    """
    config = getattr(model, "pretrained_cfg", None) or {}
    names = config.get("first_conv") or ()
    if isinstance(names, str):
        names = [names]
    layers = [model.get_submodule(name) for name in names]
    channels, entries = input_size[0], torch.Size(input_size).numel()
    convolutions = [
        m
        for m in layers
        if isinstance(m, nn.Conv2d) and m.groups == 1 and m.in_channels == channels
    ]
    matrices = [m for m in layers if isinstance(m, nn.Linear) and m.in_features == entries]
    if not layers or len(convolutions) + len(matrices) < len(layers):
        raise ValueError(
            f"{type(model).__name__} does not say which of its layers takes the {channels} "
            "channels, so the mask cannot be fed to it; choose another method"
        )
    for convolution in convolutions:
        convolution.in_channels += by
        _grow(convolution, by)
    for matrix in matrices:
        matrix.in_features += by * entries // channels
        _grow(matrix, by * entries // channels)


def _grow(layer: nn.Conv2d | nn.Linear, by: int) -> None:
    weight = layer.weight.detach()
    more = weight.new_zeros(weight.shape[0], by, *weight.shape[2:])
    layer.weight = nn.Parameter(
        torch.cat([weight, more], dim=1), requires_grad=layer.weight.requires_grad
    )
