"""Convolutions whose gradient torch gets wrong in short floating-point types on a CPU, made right.

Where the map is small and the stride is not 1, some taps of a padded kernel see padding alone, and
their gradient is 0. In bfloat16 torch (2.15 at least, by way of oneDNN) leaves what the memory held
in their place: huge numbers, NaN, and others at every run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


class SoundConvolutions(TorchFunctionMode):
    """While on, in this thread, weights of convolutions that see padding alone get the gradient
    0.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call `func`; a convolution with its weight cut off from such taps."""
        if func in _CONVOLUTIONS:
            args, kwargs = _sound(*args, **(kwargs or {})), {}
        return func(*args, **(kwargs or {}))


def _sound(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Any, ...]:
    axes = weight.ndim - 2
    if not isinstance(padding, str) and weight.requires_grad and torch.is_grad_enabled():
        shape = tuple(input.shape[-axes:]), tuple(weight.shape[2:])
        live = live_taps(*shape, *(_each(value, axes) for value in (stride, padding, dilation)))
        if not all(map(all, live)):
            seen = functools.reduce(torch.logical_and, _along_axes(live, weight.device))
            weight = torch.where(seen, weight, 0)
    return input, weight, bias, stride, padding, dilation, groups


def _each(value: Any, axes: int) -> tuple[int, ...]:
    if isinstance(value, Sequence):
        values = tuple(value)
    else:
        values = (value,)
    if len(values) == 1:
        return values * axes
    return values


def _along_axes(live: tuple[tuple[bool, ...], ...], device: torch.device) -> list[Tensor]:
    found: list[Tensor] = []
    for axis, taps in enumerate(live):
        found.append(torch.tensor(taps, device=device).view(-1, *[1] * len(live[axis + 1 :])))
    return found


@functools.lru_cache(maxsize=1024)
def live_taps(
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[tuple[bool, ...], ...]:
    """Return for each axis which taps of a kernel see the map from at least one place; the
    others see padding alone.
    """
    found = []
    for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        starts = range(-p, n + p - d * (k - 1), s)
        found.append(tuple(any(0 <= start + tap * d < n for start in starts) for tap in range(k)))
    return tuple(found)
