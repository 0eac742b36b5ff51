"""Figures as SVG elements: their colours follow the page, and no figure is too large for it."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from trainkit.report.figures import PALETTE, style
from trainkit.report.formats import tick

if TYPE_CHECKING:
    from matplotlib.figure import Figure


MAX_POINTS = 2000
"""Markers that an SVG may hold one by one; more of them become one bitmap."""


_COORDINATES = re.compile(r' (?:d|x|y|points)="[^"]*"')


_LONG_DECIMAL = re.compile(r"(\.\d\d)\d+")


_REFERENCE = re.compile(r'(\bid="|url\(#|href="#)')


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
    variables = {}
    for name, (light, _) in PALETTE.items():
        variables[light] = name
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
            if super().__call__(value, position):
                return tick(value)
            return ""

    for axis in (axis for axes in drawn.axes for axis in (axes.xaxis, axes.yaxis)):
        if type(axis.get_major_formatter()) is LogFormatterSciNotation:
            axis.set_major_formatter(Plain())
        if type(axis.get_minor_formatter()) is LogFormatterSciNotation:
            axis.set_minor_formatter(Plain(minor_thresholds=(1.2, 0.4)))
