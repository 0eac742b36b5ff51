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
from functools import cache
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib import RcParams
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


@cache
def _settings() -> RcParams:
    from matplotlib import rc_params_from_file

    with as_file(files("trainkit.report") / "report.mplstyle") as path:
        return rc_params_from_file(path, use_default_template=False)


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
        matplotlib.rcParams["image.cmap"] = "trainkit"
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
