"""Figures of the report, into axes that are passed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def draw_steps(axes: Any, curves: Mapping[str, Sequence[float]]) -> None:
    """Plot accuracy against the number of inner steps, one line per test."""
    for name, curve in curves.items():
        axes.plot(range(len(curve)), curve, marker="o", markersize=3, label=name)
    axes.set(xlabel="inner steps", ylabel="accuracy")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(curves) > 1:
        axes.legend()
