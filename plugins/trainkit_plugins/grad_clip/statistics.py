"""Slopes, correlations and bootstrap intervals of many samples at once: one sample per row."""

import math

import torch
from torch import Tensor


def slope(x: Tensor, y: Tensor) -> Tensor:
    """Return the least-squares slope of ``y`` on ``x`` for each row of [B, n]; NaN where x does
    not vary.
    """
    x, y = _centred(x), _centred(y)
    return (x * y).sum(1) / x.square().sum(1)


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """Return the linear correlation for each row of [B, n]; NaN where x or y does not vary."""
    x, y = _centred(x), _centred(y)
    spread = x.square().sum(1).sqrt() * y.square().sum(1).sqrt()
    return ((x * y).sum(1) / spread).clamp(-1, 1)


def spearman(x: Tensor, y: Tensor) -> Tensor:
    """Return the correlation of ranks (ties share their mean rank) for each row of [B, n]."""
    return pearson(_ranks(x), _ranks(y))


def block_resamples(n: int, resamples: int, generator: torch.Generator) -> Tensor:
    """Return indices [resamples, n] of a circular block bootstrap with blocks of ceil(n ** (1/3))
    neighbours.

    Reference: Politis and Romano 1992, a circular block-resampling procedure for stationary data.
    """
    length = math.ceil(n ** (1 / 3) - 1e-9)
    starts = torch.randint(n, (resamples, math.ceil(n / length), 1), generator=generator)
    return ((starts + torch.arange(length)) % n).flatten(1)[:, :n]


def percentile_interval(samples: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """Return the lower and upper end [k] of the central ``level`` of ``samples`` [B, k], column by
    column.

    NaN samples are left out; a column of nothing else gives NaN.
    """
    tail = (1 - level) / 2
    low, high = torch.nanquantile(
        samples, torch.tensor([tail, 1 - tail], dtype=samples.dtype), dim=0
    )
    return low, high


def _centred(x: Tensor) -> Tensor:
    x = x - x.mean(1, keepdim=True)
    # What is left of a constant row is rounding, and a quotient of roundings would look like a
    # result.
    scale = x.abs().amax(1, keepdim=True)
    return torch.where(scale > 1e-12, x, 0.0)


def _ranks(x: Tensor) -> Tensor:
    ordered = x.sort(dim=1).values.contiguous()
    below = torch.searchsorted(ordered, x.contiguous(), right=False)
    through = torch.searchsorted(ordered, x.contiguous(), right=True)
    return (below + through + 1).to(torch.float64) / 2
