"""Sparsity normalization entry by entry, in the paper's letters: slow, and plain enough to be
read as the formula.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Row = Sequence[float]


def sparsity_norm(x: Row, k: float, mean: Row | None = None) -> list[float]:
    """Return K * (x - c) * m / ||m||_1 of one row; NaN is missing."""
    m = [0 if math.isnan(value) else 1 for value in x]
    c = [0.0] * len(x) if mean is None else mean
    size = sum(m)
    return [k * (x[i] - c[i]) / size if m[i] else 0.0 for i in range(len(x))]


def mean_count(rows: Sequence[Row]) -> float:
    """Return K: the mean of ||m||_1 over rows."""
    return sum(sum(not math.isnan(value) for value in row) for row in rows) / len(rows)


def column_means(rows: Sequence[Row]) -> list[float]:
    """Return the mean of the observed entries of each column; 0 where there is none."""
    means = []
    for column in zip(*rows, strict=True):
        known = [value for value in column if not math.isnan(value)]
        means.append(sum(known) / len(known) if known else 0.0)
    return means
