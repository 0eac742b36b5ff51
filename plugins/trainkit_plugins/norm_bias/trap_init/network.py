"""What a plain ReLU network is made of, and how far its units are from their kinks."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Units(NamedTuple):
    """Hidden units on a set of points: the smallest value before a ReLU, and the share of values
    that are positive.
    """

    smallest: Tensor
    active: Tensor


def linear_layers(model: nn.Module, ahead: Collection[str] = ()) -> list[nn.Linear] | str:
    """Return the linear layers of a plain ReLU network in order, or why the model is none.

    Args:
        model: any module.
        ahead: names of modules through which inputs go before they reach the network, and which are
            no part of it.
    """
    kinds: list[str] = []
    layers: list[nn.Linear] = []
    for name, module in model.named_modules():
        if (
            name.partition(".")[0] in ahead
            or next(module.children(), None) is not None
            or isinstance(module, nn.Flatten | nn.Identity)
        ):
            continue
        if isinstance(module, nn.Linear):
            layers.append(module)
            kinds.append("linear")
        elif isinstance(module, nn.ReLU):
            kinds.append("relu")
        elif not (isinstance(module, nn.Dropout) and module.p == 0):
            return f"has a {type(module).__name__}"
    if len(layers) < 2 or kinds != ["linear", "relu"] * (len(layers) - 1) + ["linear"]:
        return "does not alternate linear layers and ReLUs, with a linear layer at both ends"
    return layers


@torch.no_grad()
def inputs_of(layer: nn.Module, model: nn.Module, inputs: Tensor) -> Tensor:
    """Return what `layer` is given [N, ...] when `inputs` [N, ...] pass through `model` in
    evaluation mode.
    """
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        with evaluating(model):
            model(inputs)
    finally:
        handle.remove()
    return seen[0]


@torch.no_grad()
def hidden_units(model: nn.Module, inputs: Tensor) -> Units:
    """Pass ``inputs`` through a ReLU network and return what its ReLUs are given."""
    seen: list[Tensor] = []
    handles = [
        module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        for module in model.modules()
        if isinstance(module, nn.ReLU)
    ]
    try:
        with evaluating(model):
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    values = torch.cat([s.flatten() for s in seen])
    return Units(values.min(), (values > 0).float().mean())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for the length of the block."""
    training = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in training:
            module.training = flag
