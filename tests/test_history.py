"""A log of any length is read back in little memory: a selection that keeps ends, spikes and
totals.
"""

from __future__ import annotations

import csv
import json
import math
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainkit import History, Record
from trainkit.log.history import MOST_RECORDS
from trainkit.log.thinning import Extremes, Spread
from trainkit.report.page import write_report
from trainkit.report.plots import loss_plot

LONG = 40_000


def rows(steps: int) -> Iterator[dict[str, Any]]:
    """Yield what a run logs: a loss at every step, a plugin's number at every seventh,
    validations, one spike.
    """
    for step in range(1, steps + 1):
        row: dict[str, Any] = {
            "step": step,
            "epoch": (step - 1) // 1000 + 1,
            "loss": 1.0 + step % 5,
        }
        if step == 31_337:
            row["loss"] = 900.0
        if step % 9000 == 0:
            row["loss"] = None
        if step % 7 == 0:
            row |= {"trick/size": step / 7, "trick/shares": [0.5, 0.25]}
        yield row
        if step % 1000 == 0:
            yield {"step": step, "epoch": (step - 1) // 1000 + 1, "val/accuracy": step / steps}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    found.write_text("".join(json.dumps(row) + "\n" for row in rows(LONG)))
    return found


@pytest.fixture(scope="module")
def history(path: Path) -> History:
    return History.read(path)


def test_of_a_long_run_a_bounded_number_of_records_is_kept_evenly(history: History) -> None:
    assert history.every == 8
    steps, _ = history.series("trick/size")
    assert len(steps) == LONG // 7  # fewer than the most of their kind: all of them
    plain = [r.step for r in history.records if list(r.values) == ["loss"]]
    assert MOST_RECORDS / 2 <= len(plain) <= MOST_RECORDS + 1
    assert max(b - a for a, b in pairwise(plain)) <= 2 * history.every
    assert [r.step for r in history.records] == sorted(r.step for r in history.records)


def test_the_last_of_everything_is_exact(history: History) -> None:
    assert history.series("loss")[0][-1] == LONG
    assert history.series("trick/size")[1][-1] == LONG // 7
    assert history.series("val/accuracy") == (
        [1000 * (i + 1) for i in range(40)],
        [(i + 1) / 40 for i in range(40)],
    )
    assert history.together("trick/size", "trick/shares")[1][-1] == (LONG // 7, [0.5, 0.25])


def test_a_spike_is_among_the_extremes_and_in_the_plot(history: History) -> None:
    steps, values = history.extremes("loss")
    assert (31_337, 900.0) in zip(steps, values, strict=True)
    assert len(steps) <= 8192
    assert min(values) == 1.0
    assert steps == sorted(steps)
    plot = loss_plot(history)
    assert plot is not None
    assert 900.0 in plot.figure.axes[0].lines[0].get_ydata()
    assert "The loss was not finite at 4 steps." in plot.caption
    assert "of every 8th" in plot.caption


def test_epochs_are_summed_up_over_all_their_steps(history: History) -> None:
    epochs = history.epochs()
    assert [epoch.epoch for epoch in epochs] == list(range(40))
    assert epochs[0].loss == pytest.approx(3.0)
    assert epochs[31].loss == pytest.approx(3.0 + (900 - 3) / 1000)
    assert math.isnan(epochs[8].loss or 0)  # step 9000 was not finite
    assert epochs[3].metrics == {"val/accuracy": 0.1}
    assert epochs[3].step == 4000


def test_of_thousands_of_epochs_some_are_kept_and_the_last(tmp_path: Path) -> None:
    found = History([Record(e + 1, e, {"loss": float(e)}) for e in range(5000)]).epochs()
    assert 500 <= len(found) <= 1001
    assert (found[0].epoch, found[-1].epoch) == (0, 4999)


def test_a_table_has_every_step(history: History, tmp_path: Path) -> None:
    history.write_csv(tmp_path / "metrics.csv")
    with (tmp_path / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == LONG + 40
    assert list(table[0]) == ["step", "epoch", "loss", "trick/size", "val/accuracy"]
    assert next(row["loss"] for row in table if row["step"] == "9000") == "nan"
    assert sum(row["trick/size"] != "" for row in table) == LONG // 7


def test_memory_does_not_grow_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainkit.log.history.MOST_RECORDS", 256)
    monkeypatch.setattr("trainkit.log.thinning.MOST_STRETCHES", 256)
    peaks = []
    for steps in (6000, 18_000):
        path = tmp_path / f"{steps}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(steps)))
        tracemalloc.start()
        History.read(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_vectors_count_by_their_numbers() -> None:
    spread: Spread[int] = Spread(10_000)
    for item in range(3000):
        spread.add(item, size=1024)
    assert len(spread.items()) <= 2**19 // 1024 + 1
    assert spread.items()[-1] == 2999


def test_a_plugin_that_invents_names_costs_no_more_than_others() -> None:
    found = History([Record(step, 0, {f"x/{step}": 1.0}) for step in range(20_000)])
    assert len(found.names) == 2000
    assert len(found.records) < 2 * MOST_RECORDS


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), most=st.integers(1, 8))
def test_extremes_hold_lowest_and_highest_whatever_is_merged(
    values: list[float], most: int
) -> None:
    import trainkit.log.thinning as module

    before, module.MOST_STRETCHES = module.MOST_STRETCHES, most
    try:
        extremes = Extremes()
        for step, value in enumerate(values):
            extremes.add(step, value)
    finally:
        module.MOST_STRETCHES = before
    points = extremes.points()
    assert len(points) <= 4 * most + 2
    assert min(v for _, v in points) == min(values)
    assert max(v for _, v in points) == max(values)
    assert all(values[step] == value for step, value in points)


@given(count=st.integers(1, 300), most=st.integers(1, 20))
def test_a_spread_is_even_and_ends_with_the_last(count: int, most: int) -> None:
    spread: Spread[int] = Spread(most)
    for item in range(count):
        spread.add(item)
    kept = spread.items()
    assert kept[-1] == count - 1
    assert len(kept) <= most + 1
    assert kept[:-1] == list(range(0, kept[-2] + 1, spread.every)) if len(kept) > 1 else True


# Files that are not what they should be.


@pytest.mark.parametrize(
    "line",
    [
        *(
            "nonsense",
            "[]",
            "3",
            "null",
            "{}",
            '{"step": 1}',
            '{"step": "1", "epoch": 0}',
            '{"step": 1.5, "epoch": 0}',
        ),
        *(
            '{"step": true, "epoch": 0}',
            "[" * 5000,
            '{"step": ' + "9" * 5000 + ', "epoch": 0}',
            "\x00\x00",
            "1, 2",
            "",
        ),
    ],
)
def test_a_line_that_is_no_record_is_counted_and_left_out(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    good = ['{"step": 1, "epoch": 0, "loss": 1.0}', '{"step": 2, "epoch": 0, "loss": 2.0}']
    path.write_text("\n".join([good[0], line, good[1]]) + "\n")
    found = History.read(path)
    assert found.series("loss") == ([1, 2], [1.0, 2.0])
    assert found.unreadable == 1


def test_a_last_line_cut_short_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "epoch": 0, "loss": 1.0}\n{"step": 2, "epo\xc3')
    assert History.read(path).unreadable == 0
    assert History.read(path).series("loss") == ([1], [1.0])


def test_values_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "epoch": 0, "loss": "x", "a": {"b": 1}, "c": [1, "x"], "lr": 1, "v": [1,'
        " null]}\n"
    )
    (record,) = History.read(path).records
    assert record.values.keys() == {"lr", "v"}
    assert record.values["lr"] == 1.0


def test_a_report_says_what_could_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(
        b'{"step": 1, "epoch": 0, "loss": 1.0}\n\xff\xfe\n{"step": 2, "epoch": 0}\n'
    )
    page = write_report(tmp_path, []).read_text()
    assert "1 line(s) of metrics.jsonl are no records, and are left out." in page
