"""What the report shows of the bias, drawn on matplotlib axes that the caller made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import torch

from .bias import Correlation, SparsityBias

Points = tuple[Sequence[float], ...]
"""Of some rows: observed entries, output, truth."""

_GROUPS = 8


def describe(
    axes: Sequence[Any],
    before: tuple[str, Points],
    after: tuple[str, Points],
    series: Sequence[tuple[Sequence[int], Sequence[float]]],
) -> tuple[str, list[list[str]]]:
    """Draw the bias before, after, and in training; return a text and a table on it.

    Args:
        axes: three matplotlib axes.
        before: title and rows.
        after: title and rows.
        series: the steps of each measurement and the correlation then, with the output and with the
            truth.
    """
    for panel, (title, points) in zip(axes, (before, after), strict=False):
        draw_points(panel, points)
        panel.set_title(title)
    if axes[0].get_legend_handles_labels()[1]:
        axes[0].legend(loc="best")
    low = min(panel.get_ylim()[0] for panel in axes[:2])
    high = max(panel.get_ylim()[1] for panel in axes[:2])
    for panel in axes[:2]:
        panel.set_ylim(low, high)
    draw_series(axes[2], series)
    rows = [["rows shown", "correlation with the output", "correlation with the truth"]]
    for title, points in (before, after):
        found = SparsityBias(*(torch.tensor(values, dtype=torch.float64) for values in points))
        rows.append([title, _said(found.correlation), _said(found.true_correlation)])
    text = (
        "Each point is a validation row: how many entries of its input are observed, and what the "
        "model makes of it. Lines join the means of rows with about equally many. Where the "
        "output's line rises or falls and that of the truth does not, the model reads the number "
        "of observed entries as if it said something."
    )
    return text, rows


def draw_points(axes: Any, points: Points) -> None:
    """Draw outputs of rows over their observed entries, and the means of outputs and truth in
    groups of rows.

    Args:
        axes: matplotlib axes.
        points: observed entries, outputs and truth of some rows.
    """
    rows = sorted((c, o, t) for c, o, t in zip(*points, strict=True) if c > 0 and math.isfinite(o))
    axes.set_xlabel("observed entries")
    axes.set_ylabel("output")
    if not rows:
        return
    axes.scatter(
        [c for c, _, _ in rows], [o for _, o, _ in rows], s=5, color="C0", alpha=0.35, linewidths=0
    )
    size = max(1, len(rows) // _GROUPS)
    groups = [rows[i : i + size] for i in range(0, len(rows) - size + 1, size)]
    at = [math.exp(fmean(math.log(c) for c, _, _ in group)) for group in groups]
    axes.plot(
        at,
        [fmean(o for _, o, _ in group) for group in groups],
        color="C0",
        marker="o",
        label="output",
    )
    known = [[t for _, _, t in group if math.isfinite(t)] for group in groups]
    true = [
        (a, fmean(values), _error(values)) for a, values in zip(at, known, strict=True) if values
    ]
    if true:
        x, y, half = (list(column) for column in zip(*true, strict=True))
        axes.errorbar(x, y, half, color="C1", marker="s", elinewidth=1, label="truth, 95% interval")
    axes.set_xscale("log")


def _error(values: Sequence[float]) -> float:
    """Return half of the 95% interval of a mean."""
    return 1.96 * stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def draw_series(axes: Any, series: Sequence[tuple[Sequence[int], Sequence[float]]]) -> None:
    """Draw the correlations over steps.

    Args:
        axes: matplotlib axes.
        series: steps and values, of the output's and of the truth's.
    """
    for (steps, values), colour, name in zip(
        series, ("C0", "C1"), ("output", "truth"), strict=True
    ):
        if any(math.isfinite(value) for value in values):
            axes.plot(
                steps, values, color=colour, marker="." if len(steps) < 30 else None, label=name
            )
    axes.axhline(0, color="#000000", linewidth=0.7)
    axes.set_ylim(-1.05, 1.05)
    axes.set_xlabel("step")
    axes.set_title("correlation with log(observed)")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="best")


def _said(found: Correlation) -> str:
    if not math.isfinite(found.value):
        return "not defined"
    return f"{found.value:.2f} (95%: {found.low:.2f} to {found.high:.2f})"
