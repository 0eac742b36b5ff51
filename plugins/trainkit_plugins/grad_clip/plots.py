"""What the report shows of clipping and of smoothness, drawn on matplotlib axes that the caller
made.
"""

from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from .fit import Estimate, Fit, suggest_threshold

# More places than this along an axis nobody can tell apart, and each costs a few bytes of the page.
_PLACES = 400


def draw_norms(
    axes: Any, steps: Sequence[int], before: Sequence[float], after: Sequence[float], limit: float
) -> None:
    """Draw finite norms before and after clipping over steps, logarithmically.

    A long run is drawn as the median and the range of runs of steps.

    Args:
        axes: matplotlib axes.
        steps: steps [n].
        before: norms before clipping [n].
        after: norms after clipping [n].
        limit: threshold on the norm; a line marks it unless it is infinite.
    """
    parts = _parts(len(steps), _PLACES)
    at = [median(steps[p]) for p in parts]
    for values, color, label in (
        (before, "C0", "before clipping"),
        (after, "C1", "after clipping"),
    ):
        if len(parts) < len(steps):
            low, high = [min(values[p]) for p in parts], [max(values[p]) for p in parts]
            axes.fill_between(at, low, high, color=color, alpha=0.25, linewidth=0)
        axes.plot(at, [median(values[p]) for p in parts], color=color, linewidth=1.1, label=label)
    if limit < float("inf"):
        axes.axhline(
            limit, color="C2", linestyle=(0, (4, 3)), linewidth=1, label=f"threshold {limit:g}"
        )
    if min(before) > 0 and min(after) > 0:
        axes.set_yscale("log")
    axes.set_ylabel("gradient norm")
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3,
        borderaxespad=0,
        borderpad=0.2,
        frameon=False,
    )


def draw_share(axes: Any, steps: Sequence[int], clipped: Sequence[float]) -> None:
    """Draw the share of steps that were clipped, each point of the line over at least 10 steps
    if there are as many.
    """
    parts = _parts(len(steps), max(1, min(60, len(steps) // 10)))
    edges = [steps[p.start] for p in parts] + [steps[-1] + 1]
    shares = [fmean(clipped[p]) for p in parts]
    axes.stairs(shares, edges, color="C1", fill=True, alpha=0.35)
    axes.stairs(shares, edges, color="C1", baseline=None, linewidth=1.1)
    axes.set_ylim(0, 1.03)
    axes.set_yticks([0, 0.5, 1], ["0", "50%", "100%"])
    axes.set_ylabel("steps clipped")
    axes.set_xlabel("step")


def draw_scatter(
    axes: Any, steps: Sequence[int], norms: Sequence[float], smoothness: Sequence[float], fit: Fit
) -> Any:
    """Draw smoothness against gradient norm on log axes with the fitted line; return what a colour
    bar needs.

    Args:
        axes: matplotlib axes.
        steps: steps [n], which colour the points.
        norms: positive gradient norms [n].
        smoothness: positive smoothness [n].
        fit: the line.
    """
    points = axes.scatter(norms, smoothness, c=steps, s=14, alpha=0.85, linewidths=0)
    low, high = min(norms), max(norms)
    line = [low * (high / low) ** (i / 100) for i in range(101)]
    l0, l1 = fit.l0.value, fit.l1.value
    name = f"{l0:.3g} + {l1:.3g} · norm"
    axes.plot(line, [l0 + l1 * g for g in line], color="#000000", linewidth=1.2, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("gradient norm")
    axes.set_ylabel("smoothness along the step")
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0, borderpad=0.2, frameon=False
    )
    return points


def fit_table(fit: Fit, observed: Sequence[float]) -> list[list[str]]:
    """Return the fit and the suggested thresholds as rows of cells, a header first."""
    rows = [["quantity", "value", f"{fit.level:.0%} interval"]]
    for name, estimate in (
        ("slope of log smoothness on log norm", fit.slope),
        ("correlation of the logarithms (Pearson)", fit.pearson),
        ("correlation of the ranks (Spearman)", fit.spearman),
        ("L0, the part that does not depend on the norm", fit.l0),
        ("L1, the part proportional to the norm", fit.l1),
    ):
        rows.append([name, f"{estimate.value:.3g}", _interval(estimate)])
    found = suggest_threshold(fit, observed)
    for name, (max_norm, rate) in (
        ("threshold by theory, min(10 L0, L0/L1)", found.theory),
        ("threshold by quantile, 90% of the norms", found.quantile),
    ):
        rows.append(
            [
                name,
                f"{max_norm:.3g}" if max_norm > 0 else "none (L0 is 0)",
                f"would clip {rate:.1%} of steps",
            ]
        )
    return rows


def _interval(estimate: Estimate) -> str:
    return f"{estimate.low:.3g} to {estimate.high:.3g}"


def _parts(n: int, count: int) -> list[slice]:
    count = min(n, count)
    return [slice(i * n // count, (i + 1) * n // count) for i in range(count)]
