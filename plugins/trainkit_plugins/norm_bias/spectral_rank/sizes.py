"""The size of the feature map at which each convolution of a model works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...common.preserve import forked_streams, kept_modes

Sizes = dict[str, tuple[int, int]]


@torch.no_grad()
def input_sizes(model: nn.Module, forward: Callable[[], Any]) -> Sizes:
    """Run ``forward`` and return height and width of the input of each 2-D convolution that took
    part.

    The model is in evaluation mode meanwhile; training flags and torch's random state are put back.
    A layer used several times has its largest input.

    Args:
        model: whose layers to look at, by name.
        forward: passes anything through the model, such as ``lambda: model(torch.zeros(1, 3, 224,
            224))``.
    """
    found: Sizes = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim >= 3:
                height, width = inputs[0].shape[-2:]
                old = found.get(name, (0, 0))
                found[name] = max(old, (height, width), key=lambda size: size[0] * size[1])

        return hook

    handles = [
        m.register_forward_pre_hook(note(k))
        for k, m in model.named_modules()
        if isinstance(m, nn.Conv2d)
    ]
    try:
        with kept_modes(model), forked_streams(model):
            model.eval()
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return found
