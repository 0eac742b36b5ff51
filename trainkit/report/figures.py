"""How every plot of the report looks: one style for core and for plugins, legible on light and dark
pages.

Plots are drawn once, in the colours of the light page. `svg.py` then replaces each of these colours
by a CSS variable, for which the page has one value for light and one for dark. matplotlib is
imported only when a plot is drawn, only its object interface is used (no pyplot), and no setting
outlives a `with` block; only the name of a colour map, `trainkit`, stays known.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

SERIES = {
    "plot-blue": ("#2f62c9", "#82aaff"),
    "plot-orange": ("#d96c12", "#f6a55c"),
    "plot-green": ("#178067", "#56c9a7"),
    "plot-pink": ("#b8357a", "#f088bd"),
    "plot-violet": ("#7350c7", "#b49cf7"),
    "plot-ochre": ("#87671f", "#d6b970"),
}
"""Line colours on the light page and on the dark one, in the order in which plots use them (C0,
C1, …).
"""

PALETTE = {
    **SERIES,
    "plot-ink": ("#21252d", "#e7e9ee"),
    "plot-label": ("#565d6b", "#a4abb9"),
    "plot-axis": ("#a9afba", "#555c69"),
    "plot-grid": ("#e6e8ec", "#2b303a"),
    "plot-paper": ("#fefefe", "#181b22"),
}
"""Every colour that follows the page: CSS variable, value on the light page, value on the dark
one.
"""

MAP = ("#4a6ee0", "#b455a8", "#ee8a3c")
"""The default colour map, from low to high; unlike matplotlib's own, none of it vanishes in a
dark page.
"""

WIDTH, HEIGHT = 4.6, 2.7
"""Inches of a plot that takes half of a wide page. Text is sized for it to be read on a phone
too.
"""


def _color(name: str) -> str:
    return PALETTE[name][0]


def _settings() -> dict[str, Any]:
    from cycler import cycler

    muted, axis = _color("plot-label"), _color("plot-axis")
    ticks = {
        f"{xy}tick.{key}": value
        for xy in "xy"
        for key, value in {
            "color": axis,
            "labelcolor": muted,
            "labelsize": 8,
            "major.size": 3,
            "major.width": 0.7,
            "minor.size": 1.5,
            "minor.pad": (
                5
            ),  # so that labels of minor ticks on log axes stand in line with the others
            "minor.width": 0.5,
        }.items()
    }
    return ticks | {
        "figure.figsize": (WIDTH, HEIGHT),
        "figure.facecolor": "none",
        "figure.constrained_layout.use": True,
        "font.size": 8,
        "text.color": _color("plot-ink"),
        "axes.facecolor": "none",
        "axes.edgecolor": axis,
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.labelcolor": muted,
        "axes.labelsize": 8,
        "axes.titlecolor": _color("plot-ink"),
        "axes.titlelocation": "left",
        "axes.titlesize": 8.5,
        "axes.prop_cycle": cycler(color=[light for light, _ in SERIES.values()]),
        "axes.formatter.limits": (-4, 6),
        "axes.formatter.use_mathtext": False,
        "axes.formatter.useoffset": False,
        "image.cmap": "trainkit",
        "grid.color": _color("plot-grid"),
        "grid.linewidth": 0.7,
        "lines.linewidth": 1.4,
        "lines.markersize": 3.5,
        "lines.solid_capstyle": "round",
        "scatter.marker": "o",
        "legend.fontsize": 8,
        "legend.handlelength": 1.5,
        "legend.columnspacing": 1.4,
        "legend.facecolor": _color("plot-paper"),
        "legend.edgecolor": "none",
        "legend.framealpha": 0.85,
        "svg.fonttype": "none",
        "svg.hashsalt": "trainkit",
    }


@contextmanager
def style() -> Iterator[None]:
    """Give what is drawn in the block the look of the report; the user's own settings come back
    after it.

    `Plugin.report` is called in such a block, so a plain `matplotlib.figure.Figure()` made there
    looks alike.
    """
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap

    if "trainkit" not in matplotlib.colormaps:
        matplotlib.colormaps.register(LinearSegmentedColormap.from_list("trainkit", MAP))
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_settings())
        yield


def figure(
    rows: int = 1, columns: int = 1, *, width: float = 0.0, height: float = 0.0, **options: Any
) -> tuple[Figure, Any]:
    """Return a figure in the style of the report, and its axes, as `pyplot.subplots` would.

    In a report, line colours are `"C0"` to `"C5"`, and black and white follow the page. A figure
    wider than 5.5 inches gets a row of the page for itself.

    Args:
        rows: of axes.
        columns: of axes.
        width: inches; default: 4.6 for one column, 9.6 for more.
        height: inches; default: 2.7 for each row.
        options: further arguments of `matplotlib.figure.Figure.subplots`, such as `sharex`.
    """
    from matplotlib.figure import Figure

    with style():
        made = Figure(figsize=(width or (WIDTH if columns == 1 else 9.6), height or HEIGHT * rows))
        return made, made.subplots(rows, columns, **options)


def legend_above(axes: Any, columns: int = 4) -> None:
    """Put the legend of `axes` above them, where it covers no data."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=columns,
        borderaxespad=0,
        borderpad=0.2,
        frameon=False,
    )
