"""Which way a metric improves is said once."""

from __future__ import annotations

import math
from typing import Literal

import pytest

from trainkit import goodness
from trainkit.config.direction import BETTER
from trainkit.training.metrics import classification_metrics


@pytest.mark.parametrize(("direction", "best"), [("max", 3.0), ("min", -2.0)])
def test_the_best_value_has_the_largest_goodness(
    direction: Literal["max", "min"], best: float
) -> None:
    values = [1.0, math.nan, -2.0, 3.0]
    assert max(values, key=lambda value: goodness(value, direction)) == best
    assert goodness(math.nan, direction) == -math.inf


def test_the_metrics_of_classes_say_the_same_to_torchmetrics() -> None:
    metrics = classification_metrics(10)
    said = {name: metrics[name].higher_is_better for name in metrics}
    assert said == {name: direction == "max" for name, direction in BETTER.items()}
