"""Metrics against alpha, drawn on matplotlib axes that the caller made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .alphas import Point

MEASURES = {
    "nll": "negative log likelihood",
    "accuracy": "accuracy",
    "calibration_error": "calibration error",
}
"""What is drawn, one axes each: attribute of a point, and its name."""


def draw_curves(axes: Sequence[Any], chosen: float, curves: dict[str, Sequence[Point]]) -> None:
    """Draw each measure of `MEASURES` against alpha, the chosen alpha marked.

    Args:
        axes: matplotlib axes, one for each measure.
        chosen: the alpha to mark.
        curves: points in order of alpha, by the name of the data they were measured on; the first
            is drawn whole, further ones dashed.
    """
    for place, (measure, label) in zip(axes, MEASURES.items(), strict=True):
        for i, (name, points) in enumerate(curves.items()):
            alphas, values = [p.alpha for p in points], [getattr(p, measure) for p in points]
            line = {"linestyle": "-" if i == 0 else (0, (4, 2)), "color": f"C{i}"}
            place.plot(alphas, values, marker="o", label=name, **line)
        place.axvline(
            chosen, color="C2", linewidth=1, linestyle=(0, (1, 1.5)), label=f"chosen: {chosen:g}"
        )
        _spread(place, [p.alpha for points in curves.values() for p in points])
        place.set_xlabel("alpha")
        place.set_ylabel(label)
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].figure.legend(
        handles, labels, loc="outside upper left", ncols=len(labels), frameon=False
    )


def _spread(axes: Any, alphas: Sequence[float]) -> None:
    """Give small alphas room, and zero a place: linear to the smallest of them, logarithmic
    above.
    """
    positive = sorted({alpha for alpha in alphas if alpha > 0})
    if not positive:
        return
    axes.set_xscale("symlog", linthresh=positive[0])
    ticks = sorted(
        {
            0.0,
            positive[0],
            positive[-1],
            *(a for a in (0.01, 0.1, 1.0) if positive[0] <= a <= positive[-1]),
        }
    )
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(-0.15 * positive[0], positive[-1] * 1.2)


def curve_table(points: Sequence[Point], chosen: float) -> list[list[str]]:
    """Return the points as rows of cells, a header first; the chosen alpha has a star."""
    rows = [["alpha", "accuracy", "nll", "calibration error"]]
    for p in points:
        mark = " *" if p.alpha == chosen else ""
        rows.append(
            [
                f"{p.alpha:g}{mark}",
                f"{p.accuracy:.4f}",
                f"{p.nll:.4f}",
                f"{p.calibration_error:.4f}",
            ]
        )
    return rows
