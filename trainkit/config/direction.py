"""Which way a metric improves, for all who compare its values."""

from __future__ import annotations

import math
from typing import Literal

Direction = Literal["max", "min"]

BETTER: dict[str, Direction] = {
    "accuracy": "max",
    "top5": "max",
    "nll": "min",
    "calibration_error": "min",
}
"""Core's metrics of classes; what others measure, they or the recipe say."""


def goodness(value: float, direction: Direction) -> float:
    """Return a number that is larger the better `value` is; -inf for NaN, which is never better."""
    if math.isnan(value):
        return -math.inf
    return float(value) if direction == "max" else -float(value)
