"""Which alpha is best, by more than chance?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from .alphas import Point, points

Metric = Literal["nll", "accuracy"]


@dataclass(frozen=True)
class Gain:
    """A mean paired difference, alpha against 0, and half of its 95% interval (normal
    approximation).
    """

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ± {self.half:.4f}"


def choose(curve: Sequence[Point], metric: Metric) -> Point:
    """Return the best point: least nll, or most accuracy and of those the least nll. Ties go to the
    least alpha.

    Points whose nll is not finite are left out.

    Raises:
        ValueError: there is no other.
    """
    usable = [point for point in curve if math.isfinite(point.nll)]
    if not usable:
        raise ValueError("no alpha gives finite predictions")
    return min(usable, key=lambda p: (-p.accuracy if metric == "accuracy" else 0.0, p.nll, p.alpha))


def choose_alpha(scores: Tensor, alphas: Sequence[float], metric: Metric) -> float:
    """Return the best alpha, or 0 unless the best is better than 0 by more than chance.

    The best of several alphas on some examples is often just the luckiest; so its paired gain over
    alpha 0 must have a 95% interval that excludes no gain, or inference is left as it is.

    Args:
        scores: [len(alphas), 3, N] of `sweep`.
        alphas: what was measured; 0 is among them.
        metric: by which to choose.

    Raises:
        ValueError: no alpha gives finite predictions.
    """
    known = list(map(float, alphas))
    best = choose(points(scores, alphas), metric).alpha
    row, sign = (0, -1) if metric == "nll" else (2, 1)
    found = gain(scores[known.index(best), row], scores[known.index(0.0), row])
    return best if sign * found.mean > found.half else 0.0


def gain(values: Tensor, baseline: Tensor) -> Gain:
    """Return the mean difference of paired values [N] to a baseline [N], with its 95% interval."""
    difference = values - baseline
    half = math.nan
    if difference.numel() > 1:
        half = 1.96 * float(difference.std()) / difference.numel() ** 0.5
    return Gain(float(difference.mean()), half)


def halves(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Split examples into those of even and those of odd position: both halves have their share of
    every class even where the examples are sorted by class.

    Raises:
        ValueError: there are not two examples.
    """
    if scores.shape[2] < 2:
        raise ValueError(
            f"{scores.shape[2]} example cannot be split into one half to tune on and one to "
            "report on"
        )
    return scores[:, :, 0::2], scores[:, :, 1::2]
