"""What the report shows of the balancing variables, drawn on matplotlib axes that the caller
made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def draw_weights(
    axes: Any, mean: Sequence[float], deviation: Sequence[float], inverse: Sequence[float]
) -> None:
    """Draw class weights over the shots of a class, and what weights proportional to 1/shots would
    be.

    Args:
        axes: matplotlib axes.
        mean: mean weight at 1, 2, … shots [n]; NaN where there is none.
        deviation: its standard deviation [n].
        inverse: mean weight proportional to 1/shots [n].
    """
    at = [i for i, value in enumerate(mean) if math.isfinite(value)]
    shots = [i + 1 for i in at]
    low, high = [mean[i] - deviation[i] for i in at], [mean[i] + deviation[i] for i in at]
    axes.fill_between(shots, low, high, color="C0", alpha=0.2, linewidth=0)
    axes.plot(shots, [mean[i] for i in at], color="C0", marker="o", label="learned (± deviation)")
    axes.plot(
        shots,
        [inverse[i] for i in at],
        color="C1",
        linestyle=(0, (4, 3)),
        label="proportional to 1/shots",
    )
    axes.set_ylim(bottom=0)
    axes.set_xlabel("shots of the class")
    axes.set_ylabel("class weight ω")
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        borderaxespad=0,
        borderpad=0.2,
        frameon=False,
    )


def draw_multipliers(
    axes: Any, sizes: Sequence[float], gamma: Mapping[str, Sequence[float]]
) -> None:
    """Draw the step multiplier of each group over the size of the support set.

    Args:
        axes: matplotlib axes.
        sizes: mean size in each bin [bins]; NaN where there is none.
        gamma: for each group its mean multiplier in each bin [bins].
    """
    at = [i for i, value in enumerate(sizes) if math.isfinite(value)]
    for i, (label, values) in enumerate(gamma.items()):
        style = ("-", (0, (4, 2)), (0, (1, 1)))[i // 6 % 3]
        axes.plot(
            [sizes[j] for j in at],
            [values[j] for j in at],
            f"C{i % 6}",
            linestyle=style,
            marker="o",
            label=label,
        )
    axes.set_yscale("log")
    axes.set_xlabel("examples in the support set")
    axes.set_ylabel("step multiplier γ")
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(1.02, 1),
        ncols=1 + len(gamma) // 9,
        borderaxespad=0,
        frameon=False,
    )


def weight_table(mean: Sequence[float], inverse: Sequence[float]) -> list[list[str]]:
    """Return class weights by shots as rows of cells, a header first; at most 12 rows, evenly
    spread.
    """
    at = [i for i, value in enumerate(mean) if math.isfinite(value)]
    chosen = at
    if len(at) > 12:
        chosen = [at[round(i * (len(at) - 1) / 11)] for i in range(12)]
    rows = [
        [str(i + 1), f"{mean[i]:.3f}", f"{inverse[i]:.3f}", f"{(i + 1) * mean[i]:.3f}"]
        for i in chosen
    ]
    return [["shots", "ω", "ω if 1/shots", "shots · ω"], *rows]


def multiplier_table(
    sizes: Sequence[float], gamma: Mapping[str, Sequence[float]]
) -> list[list[str]]:
    """Return step multipliers by task size as rows of cells, a header first."""
    at = [i for i, value in enumerate(sizes) if math.isfinite(value)]
    rows = [[f"{sizes[i]:.0f}", *(f"{values[i]:.3f}" for values in gamma.values())] for i in at]
    return [["examples", *gamma], *rows]
