"""What the paper looks at: the spread of the adaptive learning rate, and the sizes of the gradient's
coordinates.

Everything here reads and never writes, draws no random numbers, and stays on the tensors' device.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer


def sample_coordinates(tensors: Sequence[Tensor], size: int) -> list[Tensor]:
    """Return about `size` coordinates, at equal distances through the tensors laid end to end.

    Args:
        tensors: any shapes; complex ones count as pairs of real coordinates.
        size: number wanted. All coordinates are returned if there are no more than that; otherwise between
            size/2 and size of them, from each tensor in proportion to its length.

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


def adaptive_rate_quantiles(optimizer: Optimizer, levels: Sequence[float], size: int = 65_536) -> Tensor:
    """Return quantiles over coordinates of Adam's adaptive learning rate psi = sqrt(1 - beta2^t) / (sqrt(v)
    + eps).

    Its spread early in training is what the variance argument of Liu et al. 2020 (Eq. 1) is about.

    Args:
        optimizer: any of this room, or torch's Adam, AdamW or RAdam, after its first step.
        levels: in [0, 1].
        size: number of coordinates looked at, see `sample_coordinates`.

    Returns:
        One entry per level, float32 or wider, on the parameters' device.

    Raises:
        ValueError: no parameter has a second moment yet.
    """
    held = [
        (optimizer.state[theta], group)
        for group in optimizer.param_groups
        for theta in group["params"]
        if "exp_avg_sq" in optimizer.state.get(theta, {})
    ]
    if not held:
        raise ValueError(f"{type(optimizer).__name__} has no second moment yet: measure after its first step")
    pieces = sample_coordinates([state["exp_avg_sq"] for state, _ in held], size)
    rates = [
        (1.0 - group["betas"][1] ** state["step"]) ** 0.5 / (_wide(v).sqrt() + group["eps"])
        for v, (state, group) in zip(pieces, held, strict=True)
    ]
    psi = torch.cat(rates)
    return torch.quantile(psi, torch.tensor(list(levels), dtype=psi.dtype, device=psi.device))


def gradient_histogram(gradients: Sequence[Tensor], low: int = -40, high: int = 8, size: int = 65_536) -> Tensor:
    """Count the gradient's coordinates by the binary exponent of their magnitude.

    Liu et al. 2020 (Fig. 2) follow this histogram through the first updates: without warm-up it collapses
    towards small magnitudes within ten of them.

    Args:
        gradients: dense tensors of one device.
        low: exponent of the first bin.
        high: exponent after the last bin.
        size: number of coordinates looked at, see `sample_coordinates`.

    Returns:
        int64 tensor of high - low + 1 counts. Entry 0 counts |g| < 2^low and zeros, entry k >= 1 counts
        2^(low + k - 1) <= |g| < 2^(low + k); the last one takes everything larger, infinity and NaN too.

    Raises:
        ValueError: low not below high, or no gradient.
    """
    if low >= high:
        raise ValueError(f"low must be below high, got low={low!r} and high={high!r}")
    if not gradients:
        raise ValueError("there is no gradient to count: call this after backward")
    g = torch.cat([_wide(piece) for piece in sample_coordinates(gradients, size)]).abs()
    _, exponent = torch.frexp(g)  # g = mantissa * 2^exponent with the mantissa in [1/2, 1)
    last = high - low
    index = (exponent.long() - low).clamp(0, last)
    index = torch.where(g == 0.0, 0, torch.where(g.isfinite(), index, last))
    return torch.zeros(last + 1, dtype=torch.int64, device=g.device).scatter_add_(0, index, torch.ones_like(index))


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
