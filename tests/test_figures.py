"""The style of plots, and how they become SVG that follows the page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.figure import Figure

from trainkit import figure
from trainkit.report import figures
from trainkit.report.curves import smooth, thin
from trainkit.report.figures import PALETTE, style
from trainkit.report.svg import to_svg


def test_figures_are_styled_and_leave_the_users_settings_alone() -> None:
    before = dict(matplotlib.rcParams)
    drawn, axes = figure()
    with style():
        axes.plot([1, 2], [3, 4])
        to_svg(drawn, "a")
    assert dict(matplotlib.rcParams) == before
    assert not axes.spines["top"].get_visible()
    assert axes.lines[0].get_color() == PALETTE["plot-blue"][0]


def test_axes_come_as_subplots_gives_them() -> None:
    drawn, axes = figure(2, 3, sharex=True, height=4)
    assert axes.shape == (2, 3)
    assert tuple(drawn.get_size_inches()) == (9.6, 4)


def test_colours_become_variables_of_the_page() -> None:
    with style():
        drawn, axes = figure()
        axes.plot([1, 2], [3, 4], color="C1")
        axes.plot([1, 2], [4, 3], color="black")
        axes.plot([1, 2], [4, 4], color="#123456")
        svg = to_svg(drawn, "a")
    assert "stroke: var(--plot-orange)" in svg
    assert "stroke: var(--plot-ink)" in svg
    assert "stroke: #123456" in svg, "a colour that is not the palette's is the author's own"
    assert not set(re.findall("#[0-9a-f]{6}", svg)) & {light for light, _ in PALETTE.values()}


def test_a_figure_with_a_background_keeps_its_colours() -> None:
    drawn = Figure(facecolor="white")
    drawn.subplots().plot([1, 2], [3, 4], color="black")
    assert "var(--" not in to_svg(drawn, "a")


def test_svg_is_well_formed_small_and_can_stand_beside_another() -> None:
    with style():
        both = []
        for prefix in ("one", "two"):
            drawn, axes = figure()
            axes.scatter([1, 2], [3, 4])
            axes.set_xlabel("a < b & c")
            both.append(to_svg(drawn, prefix))
    namespaces = 'xmlns="s" xmlns:xlink="x"'
    page = ElementTree.fromstring(f"<page {namespaces}>{both[0]}{both[1]}</page>")
    ids = [e.attrib["id"] for e in page.iter() if "id" in e.attrib]
    assert len(ids) == len(set(ids))
    used = {v[1:] for e in page.iter() for k, v in e.attrib.items() if k.endswith("href")}
    used |= set(re.findall(r"url\(#([^)]*)\)", "".join(both)))
    assert used
    assert used <= set(ids)
    assert "a &lt; b &amp; c" in both[0]
    assert "http" not in both[0]
    assert not re.search(r' [dxy]="[^"]*\.\d{3}', both[0])


def test_the_same_plot_gives_the_same_svg() -> None:
    def draw() -> str:
        drawn, axes = figure()
        axes.plot([1, 2, 3], [1, 4, 9], marker="o")
        return to_svg(drawn, "a")

    assert draw() == draw()


def test_many_markers_become_a_bitmap() -> None:
    rng = np.random.default_rng(0)
    few, many = rng.normal(size=(2, 50)), rng.normal(size=(2, 20_000))
    svgs = []
    for points in (few, many):
        drawn, (left, right) = figure(1, 2)
        left.scatter(*points)
        right.plot(*points, "o")
        svgs.append(to_svg(drawn, "a"))
    assert "<image" not in svgs[0]
    assert svgs[1].count("<image") == 2
    assert len(svgs[1]) < 500_000


def test_log_axes_say_plain_numbers() -> None:
    drawn, axes = figure()
    axes.loglog([1e-5, 100], [0.3, 3])
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", to_svg(drawn, "a"))
    assert {"1e-5", "0.1", "10"} <= set(texts)
    assert {"0.3", "1", "2", "3"} <= set(texts)


finite = st.floats(-1e6, 1e6)


@given(arrays(float, st.integers(1, 300), elements=finite), st.integers(1, 40))
def test_thinning_keeps_extremes_order_and_bound(y: np.ndarray, buckets: int) -> None:
    x = np.arange(len(y), dtype=float)
    thin_x, thin_y = thin(x, y, buckets)
    assert len(thin_x) <= 2 * buckets
    assert thin_y.min() == y.min()
    assert thin_y.max() == y.max()
    assert (np.diff(thin_x) > 0).all()
    assert (thin_y == y[thin_x.astype(int)]).all()


def test_thinning_passes_over_what_is_not_finite() -> None:
    y = np.arange(1000.0)
    y[::2] = np.nan
    assert np.isfinite(thin(np.arange(1000.0), y, 20)[1]).all()
    y[:] = np.nan
    assert len(thin(np.arange(1000.0), y, 20)[1]) == 20


@given(arrays(float, st.integers(3, 60), elements=finite), st.integers(2, 12))
def test_smoothing_equals_a_weighted_mean(y: np.ndarray, window: int) -> None:
    y[len(y) // 2] = np.nan
    reach = min(window, len(y))
    expected = []
    for i in range(len(y)):
        near = [
            (reach - abs(i - j), y[j])
            for j in range(len(y))
            if abs(i - j) < reach and np.isfinite(y[j])
        ]
        expected.append(sum(w * v for w, v in near) / sum(w for w, _ in near))
    assert smooth(y, window) == pytest.approx(np.array(expected), rel=1e-9, abs=1e-6)


def test_smoothing_says_nothing_where_nothing_is_known() -> None:
    y = np.array([1.0] * 5 + [np.nan] * 20 + [3.0] * 5)
    smoothed = smooth(y, 3)
    assert smoothed[0] == 1.0
    assert smoothed[-1] == 3.0
    assert np.isnan(smoothed[15])


def test_the_style_file_has_only_colors_that_follow_the_page() -> None:
    light = {color for color, _ in PALETTE.values()}
    text = (Path(figures.__file__).parent / "report.mplstyle").read_text()
    found = {f"#{color}" for color in re.findall(r"\b[0-9a-f]{6}\b", text)}
    assert found == light
    with style():
        cycle = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
        assert matplotlib.rcParams["figure.figsize"] == [figures.WIDTH, figures.HEIGHT]
    assert cycle == [color for color, _ in figures.SERIES.values()]
