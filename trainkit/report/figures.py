"""How every plot of the report looks: one style for core and for plugins, legible on light and dark
pages.

Plots are drawn once, in the colours of the light page. In the SVG each of these colours is then
replaced by a CSS variable, for which the page has one value for light and one for dark. matplotlib
is imported only when a plot is drawn, only its object interface is used (no pyplot), and no setting
outlives a `with` block; only the name of a colour map, `trainkit`, stays known.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trainkit.report.formats import tick

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

MAX_POINTS = 2000
"""Markers that an SVG may hold one by one; more of them become one bitmap."""

_COORDINATES = re.compile(r' (?:d|x|y|points)="[^"]*"')
_LONG_DECIMAL = re.compile(r"(\.\d\d)\d+")
_REFERENCE = re.compile(r'(\bid="|url\(#|href="#)')


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


def to_svg(drawn: Figure, prefix: str) -> str:
    """Return `drawn` as an `<svg>` element to be put into a page.

    Args:
        drawn: any matplotlib figure. One with an opaque background keeps all of its colours.
        prefix: put before the ids in it, so that several figures can stand in one page.
    """
    from matplotlib.colors import to_rgba

    _rasterize(drawn)
    _plain_log_labels(drawn)
    buffer = io.BytesIO()
    with style():
        drawn.savefig(buffer, format="svg", dpi=200)
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :].strip()
    # The page has this rule itself, limited to plots; in here it would apply to the whole page.
    text = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL
    )
    text = _COORDINATES.sub(lambda match: _LONG_DECIMAL.sub(r"\1", match[0]), text)
    text = _REFERENCE.sub(rf"\g<1>{prefix}-", text)
    text = re.sub(r"\n\s*", "\n", text)
    head, rest = text.split(">", 1)
    view_box = re.search(r'viewBox="[^"]*"', head)
    text = f"<svg {view_box[0] if view_box else ''}>{rest}"
    if to_rgba(drawn.get_facecolor())[3] == 0:
        text = _follow_page(text)
    return text


def _follow_page(svg: str) -> str:
    variables = {light: name for name, (light, _) in PALETTE.items()}
    variables |= {"#000000": "plot-ink", "#ffffff": "plot-paper"}
    return re.sub(
        r"((?:fill|stroke|stop-color): )(#[0-9a-f]{6})\b",
        lambda m: f"{m[1]}var(--{variables[m[2]]})" if m[2] in variables else m[0],
        svg,
    )


def _rasterize(drawn: Figure) -> None:
    """Turn what would need very many SVG elements into a bitmap; axes and text stay sharp."""
    import numpy as np

    for axes in drawn.axes:
        for line in axes.lines:
            if (
                line.get_marker() not in ("None", "", " ", None)
                and len(np.ravel(line.get_xdata())) > MAX_POINTS
            ):
                line.set_rasterized(True)
        for collection in axes.collections:
            if (
                max(len(np.asarray(collection.get_offsets())), len(collection.get_paths()))
                > MAX_POINTS
            ):
                collection.set_rasterized(True)


def _plain_log_labels(drawn: Figure) -> None:
    """Write 0.1, 1, 10 on log axes where matplotlib would write powers of ten in its own font."""
    from matplotlib.ticker import LogFormatterSciNotation

    class Plain(LogFormatterSciNotation):
        def __call__(self, value: float, position: int | None = None) -> str:
            return tick(value) if super().__call__(value, position) else ""

    for axis in (axis for axes in drawn.axes for axis in (axes.xaxis, axes.yaxis)):
        if type(axis.get_major_formatter()) is LogFormatterSciNotation:
            axis.set_major_formatter(Plain())
        if type(axis.get_minor_formatter()) is LogFormatterSciNotation:
            axis.set_minor_formatter(Plain(minor_thresholds=(1.2, 0.4)))


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


def thin(x: Floats, y: Floats, buckets: int = 900) -> tuple[Floats, Floats]:
    """Return at most `2 * buckets` of the points [n], the lowest and the highest of each bucket.

    The drawn line keeps every spike, however many steps a run has. Values that are not finite are
    left out unless nothing else is in their bucket.
    """
    import numpy as np

    if len(x) <= 2 * buckets:
        return x, y
    kept: list[int] = []
    for part in np.array_split(np.arange(len(x)), buckets):
        finite = part[np.isfinite(y[part])]
        if len(finite) == 0:
            kept.append(int(part[0]))
            continue
        kept.extend(sorted({int(finite[y[finite].argmin()]), int(finite[y[finite].argmax()])}))
    return x[kept], y[kept]


def smooth(y: Sequence[float] | Floats, window: int) -> Floats:
    """Return the centred, triangle-weighted mean of `y` [n] over `window` values on either side.

    Values that are not finite have no weight; the result is NaN only where nothing finite is in
    reach.
    """
    import numpy as np

    values = np.asarray(y, dtype=float)
    if window <= 1 or len(values) < 3:
        return values
    reach = min(window, len(values))
    kernel = np.concatenate([np.arange(1, reach + 1), np.arange(reach - 1, 0, -1)]).astype(float)
    finite = np.isfinite(values)

    def total(of: Floats) -> Floats:
        return np.convolve(of, kernel)[reach - 1 : reach - 1 + len(values)]

    weight = total(finite.astype(float))
    summed = total(np.where(finite, values, 0.0))
    mean: Floats = np.divide(summed, weight, out=np.full(len(values), np.nan), where=weight > 0)
    return mean
