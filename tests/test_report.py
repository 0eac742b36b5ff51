"""The report page: what stands in it, that it stands alone, and that nothing in a run can spoil
it.
"""

from __future__ import annotations

import html
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.figure import Figure

from trainkit import History, Plugin, Record, Section, figure
from trainkit.errors import UserError
from trainkit.report.figures import PALETTE
from trainkit.report.page import write_report
from trainkit.report.plots import core_plots, loss_plot

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Reads a page and keeps its tags, its attributes and its text; a tag closed wrongly is an
    error.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style" and data.strip():
            self.words.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return "\n".join(self.words)


def records(steps: int = 60, per_epoch: int = 20, *, validate: bool = True) -> list[Record]:
    made = []
    for step in range(1, steps + 1):
        epoch = (step - 1) // per_epoch
        values: dict[str, Any] = {"loss": 2.0 / step, "lr": 1e-3, "trick/size": 0.5 * step}
        made.append(Record(step, epoch, values))
        if validate and step % per_epoch == 0:
            accuracy = [0.75, 0.98333334, 0.9]
            found = {
                "val/accuracy": accuracy[epoch % 3],
                "val/nll": 0.5,
                "val/calibration_error": 0.0123456,
            }
            made.append(Record(step, epoch, found))  # type: ignore[arg-type]
    return made


SUMMARY = {
    "status": "finished",
    "data": "digits: 1,437 training images",
    "steps": 60,
    "epochs": 3,
    "seconds": 72.3,
    "parameters": 4923456,
    "final": {"accuracy": 0.9, "nll": 0.5, "calibration_error": 0.0123456},
    "best": {
        "epoch": 1,
        "metric": "accuracy",
        "value": 0.98333334,
        "accuracy": 0.98333334,
        "nll": 0.5,
    },
    "notes": ["the last window is short", "<b>bold</b>"],
}
RECIPE = """\
seed: 7
model:
  name: resnet10t
data:
  name: digits
plugins:
  radam: {}
  trick:
    label: <script>alert("x")</script>
"""


def write_run(
    folder: Path, logged: list[Record] | None = None, summary: dict[str, Any] | None = SUMMARY
) -> Path:
    logged = records() if logged is None else logged
    (folder / "metrics.jsonl").write_text("".join(r.to_json() + "\n" for r in logged))
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "environment.json").write_text(
        json.dumps(
            {
                "torch": "2.15.0",
                "device": {"type": "cpu", "threads": 2},
                "git": None,
                "ranks": [0, 1],
            }
        )
    )
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / "last.pt").write_bytes(b"x" * 12345)
    return folder


def named(plugin: Plugin, name: str) -> Plugin:
    plugin.bind(name, 0)
    return plugin


def sections(make: Callable[[History], list[Section]], name: str = "trick") -> Plugin:
    class Trick(Plugin):
        """One line about it.

        More lines.
        """

        def report(self, history: History) -> list[Section]:
            return make(history)

    return named(Trick(), name)


def read(folder: Path, *plugins: Plugin) -> Page:
    path = write_report(folder, plugins)
    assert path == folder / "report.html"
    return Page(path.read_text())


def titles(page: Page) -> set[str]:
    return {v for tag, name, v in page.attributes if name == "aria-label"}


def test_headline_numbers(tmp_path: Path) -> None:
    text = read(write_run(tmp_path)).text
    assert text.startswith(
        f"resnet10t on digits · {tmp_path.name}\nresnet10t on digits\nfinished\n"
    )
    assert "seed 7\ndigits: 1,437 training images\nwith radam, trick\n" in text
    assert "best accuracy\n0.9833\nafter epoch 2\n" in text
    assert "final accuracy\n0.9000\n" in text
    assert "final calibration error\n0.0123\n" in text
    assert "steps\n60\nin 3 epochs\n" in text
    assert "wall time\n1 min 12 s\n" in text
    assert "parameters\n4.92 M\n" in text


def test_every_plot_of_core_is_there(tmp_path: Path) -> None:
    page = read(write_run(tmp_path))
    assert titles(page) == {
        "Loss",
        "Accuracy",
        "Negative log likelihood",
        "Calibration error",
        "Learning rate",
    }
    assert page.tags.count("svg") == 5
    assert "best 0.9833 after epoch 2" in page.words


def test_records_of_the_run(tmp_path: Path) -> None:
    text = read(write_run(tmp_path)).text
    mean = sum(2.0 / step for step in range(21, 41)) / 20
    assert f"\n2\n40\n{mean:.4f}\n0.9833\n0.5000\n0.0123\n" in text
    assert "\ncheckpoints/last.pt\n12.3 kB\ncheckpoint to resume from\n" in text
    assert "\ndevice.threads\n2\n" in text
    assert "\ngit\nnone\nranks\n0, 1\n" in text
    assert "\nbest.value\n0.98333334\n" in text
    assert "the last window is short" in text


def test_the_recipe_is_shown_as_written(tmp_path: Path) -> None:
    write_run(tmp_path)
    text = write_report(tmp_path, []).read_text()
    shown = re.search(r"<summary>Recipe</summary><pre>(.*?)</pre>", text, re.DOTALL)
    assert shown is not None
    assert html.unescape(re.sub("</?span>", "", shown[1])) == RECIPE
    assert "<span>    label:</span> &lt;script&gt;" in shown[1]


def test_the_page_stands_alone(tmp_path: Path) -> None:
    page = read(write_run(tmp_path), sections(lambda _: [Section("Plot", figures=[figure()[0]])]))
    assert not {"script", "link", "iframe", "img", "object", "base"} & set(page.tags)
    for tag, name, value in page.attributes:
        if name.endswith(("href", "src")):
            assert value.startswith(("#", "data:")), (tag, name, value)
    text = (tmp_path / "report.html").read_text()
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert "http" not in text
    assert sorted(f.name for f in tmp_path.iterdir() if f.name.startswith("report")) == [
        "report.html"
    ]


def test_ids_are_unique_in_the_page(tmp_path: Path) -> None:
    def two(_: History) -> list[Section]:
        return [Section("Plot", figures=[figure()[0], figure()[0]])]

    page = read(write_run(tmp_path), sections(two), sections(two, "other"))
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert ids
    assert len(ids) == len(set(ids))


def test_every_colour_has_a_value_on_the_light_and_on_the_dark_page(tmp_path: Path) -> None:
    write_run(tmp_path)
    text = write_report(tmp_path, []).read_text()
    dark = re.search(
        r"@media screen and \(prefers-color-scheme: dark\) \{\s*:root \{(.*?)\}", text, re.DOTALL
    )
    assert dark is not None
    used = set(re.findall(r"var\(--(plot-[a-z]+)\)", text))
    assert used <= set(PALETTE)
    for name in used:
        light_value, dark_value = PALETTE[name]
        assert f"--{name}: {light_value};" in text
        assert f"--{name}: {dark_value};" in dark[1]


def test_all_text_is_escaped(tmp_path: Path) -> None:
    evil = '<img src="x">&amp;'

    def make(_: History) -> list[Section]:
        drawn, axes = figure()
        axes.set_xlabel(evil)
        return [Section(evil, evil, [drawn], [(evil, "b"), ("1", evil)])]

    summary = SUMMARY | {"status": evil, "notes": [evil], evil: evil, "final": {evil: 1.0}}
    page = read(write_run(tmp_path, summary=summary), sections(make, evil))
    assert "img" not in page.tags
    assert "script" not in page.tags
    assert sum(words == evil for words in page.words) >= 8


def test_sections_of_a_plugin(tmp_path: Path) -> None:
    def make(history: History) -> list[Section]:
        steps, sizes = history.series("trick/size")
        drawn, axes = figure()
        axes.plot(steps, sizes)
        table = [("quantity", "value"), ("largest", f"{max(sizes):.1f}")]
        return [
            Section("Sizes", "One paragraph.\n\nAnother.", [drawn], table),
            Section("Words only", "Few."),
        ]

    page = read(write_run(tmp_path), sections(make))
    assert "trick\nOne line about it.\nSizes\nOne paragraph.\nAnother.\n" in page.text
    assert "\nquantity\nvalue\nlargest\n30.0\nWords only\nFew.\n" in page.text
    assert "Sizes" in titles(page)


def test_a_plain_figure_made_in_a_report_looks_like_the_others(tmp_path: Path) -> None:
    def make(_: History) -> list[Section]:
        drawn = Figure()
        drawn.subplots().plot([1, 2], [3, 4], color="black")
        return [Section("Plain", figures=[drawn])]

    write_run(tmp_path, [])
    sections_html = (
        write_report(tmp_path, [sections(make)]).read_text().split('aria-label="Plain"')[1]
    )
    assert "stroke: var(--plot-ink)" in sections_html


def test_a_plugin_that_raises_loses_only_its_own_section(tmp_path: Path) -> None:
    def fail(_: History) -> list[Section]:
        raise KeyError("no <such> name")

    def unprintable(_: History) -> list[Section]:
        drawn, axes = figure()
        axes.set_title("$\\frac$")
        return [Section("First", "Kept."), Section("Second", figures=[drawn])]

    good = sections(lambda _: [Section("Fine", "All is well.")], "good")
    page = read(
        write_run(tmp_path), sections(fail, "failing"), sections(unprintable, "unprintable"), good
    )
    assert (
        "failing\nOne line about it.\nThis plugin's report failed: KeyError: 'no <such> name'\n"
        in page.text
    )
    assert "in fail" in page.text
    assert "This plugin's report failed: ValueError" in page.text
    assert "First\nKept." in page.text
    assert "Fine\nAll is well.\n" in page.text
    assert "Loss" in titles(page)


def test_a_plugin_without_a_report_has_its_logged_values_drawn(tmp_path: Path) -> None:
    class Quiet(Plugin):
        """Logs and says nothing."""

    page = read(write_run(tmp_path), named(Quiet(), "trick"), named(Quiet(), "silent"))
    assert "trick\nLogs and says nothing.\nLogged values\n" in page.text
    assert "\nsize\n" in page.text
    assert "silent" not in page.text


def test_a_plugin_cannot_change_settings_of_matplotlib_for_others(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)

    def make(_: History) -> list[Section]:
        matplotlib.rcParams["axes.grid"] = False
        return []

    read(write_run(tmp_path), sections(make))
    assert dict(matplotlib.rcParams) == before


def test_losses_that_are_not_finite_are_shown_as_such(tmp_path: Path) -> None:
    logged = records()
    logged[30].values["loss"] = math.nan
    summary = SUMMARY | {"final": {"accuracy": None, "nll": 0.5}}
    page = read(write_run(tmp_path, logged, summary), named(Plugin(), "none"))
    assert "The loss was not finite at 1 step." in page.text
    assert "not finite" in page.words
    assert "final accuracy\nNaN\n" in page.text


def test_nothing_but_nan(tmp_path: Path) -> None:
    logged = [Record(s, 0, {"loss": math.nan, "lr": math.nan}) for s in range(1, 100)]
    logged.append(Record(99, 0, {"val/accuracy": math.nan, "val/nll": math.nan}))
    page = read(write_run(tmp_path, logged))
    assert titles(page) == {"Loss"}
    assert "The loss was not finite at 99 steps." in page.text


def test_a_single_step(tmp_path: Path) -> None:
    page = read(write_run(tmp_path, records(1), None))
    assert titles(page) == {"Loss", "Learning rate"}
    assert "not finished" in page.words
    assert "steps\n1\nin 1 epoch\n" in page.text
    assert "There is no summary.json." in page.text


def test_no_validation_yet(tmp_path: Path) -> None:
    page = read(
        write_run(
            tmp_path, records(15), SUMMARY | {"final": {}, "best": None, "status": "interrupted"}
        )
    )
    assert titles(page) == {"Loss", "Learning rate"}
    assert "interrupted" in page.words
    assert "best accuracy" not in page.text


def test_an_empty_metrics_file(tmp_path: Path) -> None:
    page = read(
        write_run(tmp_path, [], None),
        sections(lambda h: [Section("Count", f"{len(h.records)} records")]),
    )
    assert "Nothing has been logged yet." in page.text
    assert "0 records" in page.text
    assert "svg" not in page.tags


def test_an_empty_folder(tmp_path: Path) -> None:
    page = read(tmp_path)
    assert page.text.startswith(
        f"{tmp_path.name} · {tmp_path.name}\n{tmp_path.name}\nnot finished\n"
    )
    for name in ("summary.json", "environment.json", "recipe.yaml"):
        assert name in page.text


@pytest.mark.parametrize("content", ["{", "[1, 2]", ""])
def test_a_broken_summary_is_named(tmp_path: Path, content: str) -> None:
    write_run(tmp_path)
    (tmp_path / "summary.json").write_text(content)
    page = read(tmp_path)
    assert "summary.json" in page.text.split("\nNotes\n")[1]
    assert "Loss" in titles(page)


@pytest.mark.parametrize("content", ["model: [", "model: 3", "- 1", "", "model: {name: 5}"])
def test_a_broken_recipe_spoils_only_the_title(tmp_path: Path, content: str) -> None:
    write_run(tmp_path)
    (tmp_path / "recipe.yaml").write_text(content)
    page = read(tmp_path)
    assert page.text.startswith(f"{tmp_path.name} · {tmp_path.name}\n")
    assert "Loss" in titles(page)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone: no such folder; give the folder of a run"):
        write_report(tmp_path / "gone", [])


def test_writing_again_gives_the_same_page(tmp_path: Path) -> None:
    write_run(tmp_path)
    first = write_report(tmp_path, []).read_text()
    assert write_report(tmp_path, []).read_text() == first


def test_vectors_and_metrics_of_plugins(tmp_path: Path) -> None:
    logged = records()
    logged.append(Record(60, 2, {"val/counts": [1.0, 2.0], "val/odd": 4.0, "val/top5": 0.99}))
    page = read(write_run(tmp_path, logged))
    assert "Odd" in titles(page)
    assert "Counts" not in titles(page)
    assert "top5" in page.words


def test_a_loss_over_decades_gets_a_log_axis_and_a_spike_does_not_flatten_it() -> None:
    falling = [Record(s, 0, {"loss": 10.0 ** (-s / 250)}) for s in range(1, 1001)]
    plot = loss_plot(History(falling))
    assert plot is not None
    assert plot.figure.axes[0].get_yscale() == "log"
    spiky = [Record(s, 0, {"loss": 20.0 if s == 500 else 1.0 + s % 7 / 10}) for s in range(1, 1001)]
    plot = loss_plot(History(spiky))
    assert plot is not None
    assert plot.figure.axes[0].get_yscale() == "linear"
    assert plot.figure.axes[0].get_ylim()[1] < 2
    assert "1 value is outside the plot." in plot.caption


def test_a_falling_metric_over_decades_gets_a_log_axis_and_a_rising_one_does_not() -> None:
    logged = [
        Record(e, e, {"val/nll": 3.0 / 10**e, "val/accuracy": 0.01 * (e + 1) ** 3})
        for e in range(4)
    ]
    scales = {plot.title: plot.figure.axes[0].get_yscale() for plot in core_plots(History(logged))}
    assert scales == {"Loss": "log", "Negative log likelihood": "log", "Accuracy": "linear"}


def test_a_long_run_makes_a_small_page() -> None:
    from trainkit.report.svg import to_svg

    logged = [Record(s, 0, {"loss": 2 + math.sin(s * s), "lr": 1 / s}) for s in range(1, 100_001)]
    size = sum(len(to_svg(plot.figure, "a")) for plot in core_plots(History(logged)))
    assert 10_000 < size < 300_000


def test_importing_the_report_loads_nothing_heavy() -> None:
    code = (
        "import sys, trainkit, trainkit.report.page, trainkit.report.plots, "
        "trainkit.report.figures\nprint([m for m in ('matplotlib', 'numpy', 'torch', 'timm', "
        "'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
