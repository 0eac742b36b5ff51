"""What the paper looks at: the spread of the adaptive learning rate, and the sizes of the
gradient's coordinates.

Everything here reads and never writes, draws no random numbers, and stays on the tensors' device.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from ..common.precision import promoted


def sample_coordinates(tensors: Sequence[Tensor], size: int) -> list[Tensor]:
    """Return about `size` coordinates, at equal distances through the tensors laid end to end.

    Args:
        tensors: any shapes; complex ones count as pairs of real coordinates.
        size: number wanted. All coordinates are returned if there are no more than that; otherwise
            between size/2 and size of them, from each tensor in proportion to its length.

    Returns:
        One flat real tensor per given tensor, possibly empty.

    Raises:
        ValueError: size below 1.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size!r}")
    flat = [_real(t.detach()).reshape(-1) for t in tensors]
    stride = max(1, math.ceil(sum(t.numel() for t in flat) / size))
    pieces, start = [], 0
    for t in flat:
        pieces.append(t[start::stride])
        start = (start - t.numel()) % stride
    return pieces


def steps_taken(optimizer: Optimizer) -> int:
    """Return the largest number of steps that a parameter has taken with an adaptive rate; 0 if
    there is none.

    0 before the first step, and for ever with an optimizer that keeps no second moment per
    parameter.
    """
    return max((int(state["step"]) for state, _ in _held(optimizer)), default=0)


def adaptive_rate_quantiles(
    optimizer: Optimizer, levels: Sequence[float], size: int = 65_536
) -> Tensor:
    """Return quantiles over coordinates of Adam's adaptive learning rate psi = sqrt(1 - beta2^t) /
    (sqrt(v) + eps).

    Its spread early in training is what the variance argument of Liu et al. 2020 (Eq. 1) is about.
    Coordinates that never had a gradient (v = 0: kernel taps that only ever see padding, say) are
    left out.

    Args:
        optimizer: any of this room, or torch's Adam, AdamW or RAdam, after its first step.
        levels: in [0, 1].
        size: number of coordinates looked at, see `sample_coordinates`.

    Returns:
        One entry per level, float32 or wider, on the parameters' device; NaN if every coordinate
        was left out.

    Raises:
        ValueError: no parameter has a second moment yet.
    """
    held = _held(optimizer)
    if not held:
        raise ValueError(
            f"{type(optimizer).__name__} has no second moment yet: measure after its first step"
        )
    pieces = sample_coordinates([state["exp_avg_sq"] for state, _ in held], size)
    rates = [
        torch.where(
            v > 0.0,
            (1.0 - group["betas"][1] ** state["step"]) ** 0.5 / (v.sqrt() + group["eps"]),
            torch.nan,
        )
        for v, (state, group) in zip(map(promoted, pieces), held, strict=True)
    ]
    psi = torch.cat(rates)
    return torch.nanquantile(psi, torch.tensor(list(levels), dtype=psi.dtype, device=psi.device))


def gradient_histogram(
    gradients: Sequence[Tensor], low: int = -40, high: int = 8, size: int = 65_536
) -> Tensor:
    """Return which share of the gradient's coordinates has which binary exponent.

    Liu et al. 2020 (Fig. 2) follow this histogram through the first updates: without warm-up it
    collapses towards small magnitudes within ten of them.

    Args:
        gradients: dense tensors of one device.
        low: exponent of the first bin.
        high: exponent after the last bin.
        size: number of coordinates looked at, see `sample_coordinates`.

    Returns:
        float32 tensor of high - low + 1 shares that add up to 1. Entry 0 is that of |g| < 2^low and
        zeros, entry k >= 1 that of 2^(low + k - 1) <= |g| < 2^(low + k); the last one has
        everything larger, infinity and NaN too.

    Raises:
        ValueError: low not below high, or no gradient.
    """
    if low >= high:
        raise ValueError(f"low must be below high, got low={low!r} and high={high!r}")
    if not gradients:
        raise ValueError("there is no gradient to count: call this after backward")
    g = torch.cat([promoted(piece) for piece in sample_coordinates(gradients, size)]).abs()
    _, exponent = torch.frexp(g)  # g = mantissa * 2^exponent with the mantissa in [1/2, 1)
    last = high - low
    index = (exponent.long() - low).clamp(0, last)
    index = torch.where(g == 0.0, 0, torch.where(g.isfinite(), index, last))
    counts = torch.zeros(last + 1, dtype=torch.int64, device=g.device)
    return counts.scatter_add_(0, index, torch.ones_like(index)) / max(1, g.numel())


def _held(optimizer: Optimizer) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the state and the group of every parameter that has a step count and a second
    moment.
    """
    return [
        (optimizer.state[theta], group)
        for group in optimizer.param_groups
        for theta in group["params"]
        if {"step", "exp_avg_sq"} <= optimizer.state.get(theta, {}).keys()
        and {"betas", "eps"} <= group.keys()
    ]


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
