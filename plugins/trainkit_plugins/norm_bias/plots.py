"""What the report shows of the norm and its target, drawn on matplotlib axes that the caller
made.
"""

from collections.abc import Sequence
from statistics import median
from typing import Any

# More places than this along an axis nobody can tell apart, and each costs a few bytes of the page.
_PLACES = 500


def draw_squared_norm(axes: Any, steps: Sequence[int], norms: Sequence[float], goal: float) -> None:
    """Draw the sum of squares over steps, and a line at its target.

    Args:
        axes: matplotlib axes.
        steps: steps [n].
        norms: sums of squares [n].
        goal: the target.
    """
    parts = _parts(len(steps))
    at = [median(steps[p]) for p in parts]
    axes.plot(at, [median(norms[p]) for p in parts], color="C0", label="squared norm")
    axes.axhline(goal, color="C2", linestyle=(0, (4, 3)), linewidth=1, label=f"target {goal:.6g}")
    axes.set_ylabel("sum of squares")
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        borderaxespad=0,
        borderpad=0.2,
        frameon=False,
    )


def draw_distance(axes: Any, steps: Sequence[int], distances: Sequence[float]) -> None:
    """Draw the size of the distance to the target over steps, logarithmically: its range and its
    median.

    Args:
        axes: matplotlib axes.
        steps: steps [n].
        distances: squared norm minus target [n]; what is exactly 0 is drawn at the smallest other.
    """
    sizes = [abs(d) for d in distances]
    parts = _parts(len(steps))
    at = [median(steps[p]) for p in parts]
    if not any(sizes):
        axes.plot(at, [0.0 for _ in at], color="C1")
    else:
        floor = min(s for s in sizes if s > 0)
        sizes = [max(s, floor) for s in sizes]
        if len(parts) < len(steps):
            low, high = [min(sizes[p]) for p in parts], [max(sizes[p]) for p in parts]
            axes.fill_between(at, low, high, color="C1", alpha=0.25, linewidth=0)
        axes.plot(at, [median(sizes[p]) for p in parts], color="C1")
        axes.set_yscale("log")
    axes.set_ylabel("distance to the target")
    axes.set_xlabel("step")


def _parts(n: int) -> list[slice]:
    count = min(n, _PLACES)
    return [slice(i * n // count, (i + 1) * n // count) for i in range(count)]
