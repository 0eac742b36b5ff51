"""The plots that every run has: loss, validation metrics, learning rate, throughput."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from trainkit.config.direction import BETTER, goodness
from trainkit.log.history import History
from trainkit.report.curves import smooth, thin
from trainkit.report.figures import PALETTE, figure, legend_above, style
from trainkit.report.formats import label, number, tick

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

ABOUT = {
    "accuracy": ("Accuracy", "Share of the validation examples classified correctly."),
    "nll": (
        "Negative log likelihood",
        "Of the true classes, over the validation examples; lower is better.",
    ),
    "calibration_error": (
        "Calibration error",
        "How far the stated confidence is from the share that is correct; lower is better.",
    ),
}
"""Heading and explanation of core's metrics."""


@dataclass(frozen=True)
class Plot:
    """A figure with its heading and one or two sentences on how to read it."""

    title: str
    caption: str
    figure: Figure


def core_plots(history: History) -> list[Plot]:
    """Return the plots of everything that core logs; those with nothing to show are left out."""
    with style():
        lr = line_plot(
            history, "lr", "Learning rate", "The largest of all parameter groups, at every step."
        )
        found = [loss_plot(history), *metric_plots(history), lr]
    return list(filter(None, found))


def scalars(history: History, name: str) -> tuple[Floats, Floats]:
    """Return the steps [n] at which the scalar `name` was logged, and its values [n] there."""
    import numpy as np

    rows = []
    for step, v in zip(*history.series(name), strict=True):
        if not isinstance(v, list):
            rows.append((step, v))
    both = np.array(rows, dtype=float).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _drawn(history: History, name: str) -> tuple[Floats, Floats]:
    """Return steps and values of a scalar as they are drawn: no spike of a long run is left out."""
    import numpy as np

    if history.every == 1:
        return scalars(history, name)
    steps, values = history.extremes(name)
    return np.array(steps, dtype=float), np.array(values, dtype=float)


def loss_plot(history: History) -> Plot | None:
    """Return the training loss, raw and smoothed, with the validation loss; None if neither was
    logged.
    """
    import numpy as np

    steps, losses = scalars(history, "loss")
    val_steps, val_losses = scalars(history, "val/nll")
    if not len(steps) and not len(val_steps):
        return None
    drawn, axes = figure()
    smoothed = losses
    window = max(1, min(len(steps) // 25, 2000))
    if window > 2:
        smoothed = smooth(losses, window)
        axes.plot(
            *thin(*_drawn(history, "loss")),
            color="C0",
            linewidth=0.6,
            alpha=0.5 if len(steps) < 1500 else 0.25,
        )
        axes.plot(*thin(steps, smoothed, 400), color="C0", label="training, smoothed")
    elif len(steps):
        axes.plot(steps, losses, color="C0", label="training", marker=_marker(steps))
    if len(val_steps):
        axes.plot(
            val_steps, val_losses, color="C1", label="validation (nll)", marker=_marker(val_steps)
        )
    every = np.concatenate([_drawn(history, "loss")[1], val_losses])
    core = np.concatenate([smoothed, val_losses])
    _loss_scale(axes, every, core)
    count, at = history.not_finite("loss")
    if count:
        broken = np.array(at, dtype=float)
        floor = axes.get_xaxis_transform()
        axes.plot(
            *thin(broken, np.zeros(len(broken)), 200),
            "x",
            color="C3",
            transform=floor,
            clip_on=False,
            label="not finite",
        )
    _value_axis(axes, "loss")
    _step_axis(axes)
    legend_above(axes)
    return Plot("Loss", _loss_caption(axes, every, count, window, history.every), drawn)


def spans_decades(values: Sequence[float] | Floats) -> bool:
    """Return whether values that fall towards zero need a log axis for their end to be seen."""
    return min(values) > 0 and max(values) / min(values) > 30


def _loss_scale(axes: Any, every: Floats, core: Floats) -> None:
    """Fit the y axis to the curves and nearly all raw losses, so that one spike does not flatten
    the rest.
    """
    import numpy as np

    every, core = every[np.isfinite(every)], core[np.isfinite(core)]
    if not len(every) or not len(core):
        return
    low = min(core.min(), np.quantile(every, 0.002))
    high = max(core.max(), np.quantile(every, 0.998))
    if low > 0 and spans_decades(core):
        axes.set_yscale("log")
        low, high = np.log10([low, high])
    if high > low:
        edges = np.array([low - 0.04 * (high - low), high + 0.04 * (high - low)])
        axes.set_ylim(10**edges if axes.get_yscale() == "log" else edges)


def _loss_caption(axes: Any, every: Floats, broken: int, window: int, apart: int) -> str:
    import numpy as np

    parts = []
    if window > 2 and apart == 1:
        parts.append(
            f"Thin: every step. Thick: weighted mean over {number(window)} steps on either side."
        )
    elif window > 2:
        reach = number(window * apart)
        parts.append(
            "Thin: the lowest and highest of each stretch. "
            f"Thick: weighted mean over {reach} steps on either side, of every {number(apart)}th."
        )
    low, high = axes.get_ylim()
    outside = int(np.sum((every < low) | (every > high)))
    if outside and apart > 1:
        parts.append("Some values are outside the plot.")
    elif outside:
        parts.append(
            f"{number(outside)} {'value is' if outside == 1 else 'values are'} outside the plot."
        )
    if broken:
        parts.append(
            f"The loss was not finite at {number(broken)} {'step' if broken == 1 else 'steps'}."
        )
    return " ".join(parts)


def metric_plots(history: History) -> list[Plot]:
    """Return one plot per validation metric over epochs; the top-5 accuracy shares the one of
    accuracy.
    """
    plots = []
    for name in history.names:
        if not name.startswith("val/") or name == "val/top5":
            continue
        if name == "val/accuracy" and "val/top5" in history.names:
            shown = [name, "val/top5"]
        else:
            shown = [name]
        plot = _metric_plot(history, shown)
        if plot is not None:
            plots.append(plot)
    return plots


def _metric_plot(history: History, names: Sequence[str]) -> Plot | None:
    drawn, axes = figure()
    empty = True
    for name in names:
        epochs, values, finite = [], [], []
        for record in history.records:
            value = record.values.get(name, [])
            if isinstance(value, list):
                continue
            epochs.append(record.epoch + 1)
            values.append(value)
            if math.isfinite(value):
                finite.append((value, record.epoch + 1))
        empty = empty and not finite
        axes.plot(epochs, values, marker=_marker(epochs), label=label(name))
        better = BETTER.get(name.removeprefix("val/"))  # for other metrics no best value is marked
        if better and finite and name == names[0]:
            best = max((v for v, _ in finite), key=partial(goodness, direction=better))
            _mark_best(axes, best, finite)
            if better == "min" and spans_decades([v for v, _ in finite]):
                axes.set_yscale("log")
    if empty:
        return None
    axes.set_xlabel("epoch")
    _value_axis(axes, label(names[0]) if len(names) == 1 else "share correct")
    _whole_numbers(axes)
    if len(names) > 1:
        legend_above(axes)
    short = label(names[0])
    title, about = ABOUT.get(
        names[0].removeprefix("val/"), (short.capitalize(), "On the validation data.")
    )
    if len(names) > 1:
        title, about = "Accuracy", about[:-1] + "; top5: in five guesses."
    return Plot(title, about, drawn)


def _mark_best(axes: Any, best: float, finite: Sequence[tuple[float, int]]) -> None:
    """Ring the first epoch with the best value; the value stands above the axes, where it covers
    no data.
    """
    epoch = next(e for v, e in finite if v == best)
    ring = {"markersize": 6.5, "markerfacecolor": "white", "markeredgewidth": 1.4}
    axes.plot([epoch], [best], "o", color="C0", zorder=4, **ring)
    axes.annotate(
        f"best {number(best)} after epoch {epoch}",
        (1, 1),
        xycoords="axes fraction",
        xytext=(0, 2.5),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color=PALETTE["plot-label"][0],
    )


def line_plot(history: History, name: str, title: str, caption: str) -> Plot | None:
    """Return the scalar `name` over steps, its axis labelled as `title`; None if never logged."""
    import numpy as np
    from matplotlib.ticker import FuncFormatter

    steps, values = scalars(history, name)
    if not np.isfinite(values).any():
        return None
    drawn, axes = figure()
    steps, values = _drawn(history, name)
    finite = values[np.isfinite(values)]
    restless = np.abs(np.diff(finite)).sum() > 20 * np.ptp(finite)
    width = 1.4
    if restless:
        width = 0.7
    axes.plot(*thin(steps, values), marker=_marker(steps), color="C0", linewidth=width)
    axes.set_ylabel(title.lower())
    if finite.min() >= 0 and finite.max() > 0:
        axes.set_ylim(0, 1.1 * finite.max())
    _step_axis(axes)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    return Plot(title, caption, drawn)


def _marker(x: Sequence[float] | Floats) -> str:
    """Few points are shown one by one; a single one would be invisible without."""
    if len(x) <= 40:
        return "o"
    return ""


def _value_axis(axes: Any, name: str) -> None:
    axes.set_ylabel(name + (" (log scale)" if axes.get_yscale() == "log" else ""))


def _step_axis(axes: Any) -> None:
    axes.set_xlabel("step")
    _whole_numbers(axes)


def _whole_numbers(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(value):,}"))
