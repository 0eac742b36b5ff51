"""What is learned from the training rows, in one pass: how much of them is observed, and its
mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .normalization import observed


@dataclass(frozen=True)
class Statistics:
    """Sums over rows, by channel of an image or by feature of a row.

    Attributes:
        rows: how many rows.
        spatial: the shape of an image's channels, (H, W); of rows of features, ().
        count: observed entries [C].
        total: sum of the observed entries [C].
    """

    rows: int
    spatial: tuple[int, ...]
    count: Tensor
    total: Tensor

    def __add__(self, other: Statistics) -> Statistics:
        """Return the statistics of both sets of rows together.

        Raises:
            ValueError: their inputs have different shapes.
        """
        if self.shape != other.shape:
            raise ValueError(
                f"inputs of shape {self.shape} and of {other.shape} are not of one data set"
            )
        return Statistics(
            self.rows + other.rows, self.spatial, self.count + other.count, self.total + other.total
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an input: (C, H, W), or (F,)."""
        return (len(self.count), *self.spatial)

    @property
    def mean_count(self) -> float:
        """K: the mean of ||m||_1 over rows."""
        return float(self.count.sum()) / self.rows

    @property
    def mean_count_by_channel(self) -> Tensor:
        """The mean number of observed entries of a row in each channel [C]."""
        return self.count / self.rows

    @property
    def rate(self) -> float:
        """The share of all entries that is observed."""
        return self.mean_count / math.prod(self.shape)

    @property
    def mean(self) -> Tensor:
        """The mean of the observed entries by channel or feature [C]; 0 where there is none."""
        return self.total / self.count.clamp(min=1)

    def aligned(self, values: Tensor) -> Tensor:
        """Return a number per channel [C] in the shape that goes with inputs: [C, 1, 1], or [F];
        in float32.
        """
        return values.float().view(-1, *(1,) * len(self.spatial))


def statistics_of(
    batches: Iterable[Tensor | tuple[Tensor, Tensor | None]], *, whole_pixels: bool = False
) -> Statistics:
    """Return the statistics of inputs.

    Sums are in float64, on the CPU: the same on every machine for the same batches.

    Args:
        batches: inputs [N, F] or [N, C, H, W] with NaN for what is missing, or pairs of inputs and
            masks.
        whole_pixels: as in `observed`.

    Raises:
        ValueError: there is no row, nothing is observed, or shapes differ.
    """
    found: Statistics | None = None
    for batch in batches:
        x, m = batch if isinstance(batch, tuple) else (batch, None)
        m = observed(x, m, whole_pixels=whole_pixels)
        rest = tuple(i for i in range(x.ndim) if i != 1)
        total = torch.where(m, x, 0).sum(rest, dtype=torch.float64).cpu()
        one = Statistics(len(x), tuple(x.shape[2:]), m.sum(rest, dtype=torch.float64).cpu(), total)
        if len(x):
            if found is not None:
                one = found + one
            found = one
    if found is None:
        raise ValueError("there are no training rows")
    if not found.count.any():
        raise ValueError("nothing is observed in the training rows")
    return found
