"""What is shown while a run trains: live in a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import math
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pluggy
import pytest
from rich.console import Console

from trainkit.hooks.specs import PROJECT, Hooks
from trainkit.log.records import Record
from trainkit.report.progress import Progress
from trainkit.report.summary import summary_table

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def make_run(epochs: int = 3, steps_per_epoch: int = 10, last_window: int = 64) -> Any:
    def window(epoch: int, position: int) -> SimpleNamespace:
        return SimpleNamespace(examples=last_window if position == steps_per_epoch - 1 else 64)

    return SimpleNamespace(
        step=0,
        epoch=0,
        recipe=SimpleNamespace(
            train=SimpleNamespace(epochs=epochs), checkpoint=SimpleNamespace(metric="accuracy")
        ),
        data=SimpleNamespace(
            train=SimpleNamespace(
                steps_per_epoch=steps_per_epoch, examples_per_step=64, window=window
            )
        ),
        log=SimpleNamespace(notes=[]),
    )


def show(
    *, terminal: bool, width: int = 100, **options: Any
) -> tuple[Progress, Any, io.StringIO, Clock]:
    """Return a progress display registered as core does it, its hook, what it writes, and its
    clock.
    """
    file, clock = io.StringIO(), Clock()
    console = Console(
        file=file, force_terminal=terminal, width=width, color_system="truecolor", _environ={}
    )
    progress = Progress(console, now=clock, **options)
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    manager.register(progress)
    manager.check_pending()
    return progress, manager.hook, file, clock


def train(
    hook: Any, run: Any, clock: Clock, *, step_seconds: float = 0.125, until: int = 10**9
) -> None:
    """Call the hooks in the loop's order, with the log flushed at the end of every epoch."""
    hook.on_fit_start(run=run)
    for epoch in range(run.recipe.train.epochs):
        run.epoch = epoch
        hook.on_epoch_start(run=run)
        for _ in range(run.data.train.steps_per_epoch):
            clock.seconds += step_seconds
            run.step += 1
            hook.after_optimizer_step(model=None, batch=None, loss=None, run=run)
            if run.step == until:
                raise KeyboardInterrupt
        first = run.epoch * run.data.train.steps_per_epoch + 1
        for step in range(first, run.step + 1):
            hook.on_log(record=Record(step, run.epoch, {"loss": 2.0 / step}), run=run)
        hook.on_evaluate_start(model=None, run=run)
        clock.seconds += 5.0
        metrics = {"accuracy": 1 - 0.5 / (run.epoch + 1), "calibration_error": 0.01666667}
        hook.on_evaluate_end(model=None, metrics=metrics, run=run)
        values = {f"val/{k}": v for k, v in metrics.items()}
        hook.on_log(record=Record(run.step, run.epoch, values), run=run)
        hook.on_epoch_end(run=run)
    hook.on_fit_end(run=run)


def test_plain_lines_one_per_epoch() -> None:
    _, hook, file, clock = show(terminal=False)
    train(hook, make_run(), clock)
    means = [sum(2.0 / step for step in range(first, first + 10)) / 10 for first in (1, 11, 21)]
    last = "calibration error 0.0167  512 examples/s  6.2 s"
    assert file.getvalue().splitlines() == [
        f"epoch 1/3  step 10/30  loss {means[0]:.4f}  accuracy 0.5000  {last}",
        f"epoch 2/3  step 20/30  loss {means[1]:.4f}  accuracy 0.7500  {last}",
        f"epoch 3/3  step 30/30  loss {means[2]:.4f}  accuracy 0.8333  {last}",
    ]


def test_plain_lines_within_long_epochs_are_rare_and_tell_the_time_left() -> None:
    _, hook, file, clock = show(terminal=False, every=30.0)
    train(hook, make_run(epochs=2, steps_per_epoch=1000), clock)
    lines = [line for line in file.getvalue().splitlines() if line.endswith("left")]
    assert [re.search(r"step +(\S+)/2,000", line)[1] for line in lines] == [  # type: ignore[index]
        *("240", "480", "720", "960"),
        *("1,240", "1,480", "1,720", "1,960"),
    ]
    assert lines[0] == "epoch 1/2  step   240/2,000  3:40 left"
    assert "loss 0.0020  512 examples/s" in lines[-1]


def test_nothing_is_written_to_a_file_that_a_terminal_would_interpret() -> None:
    _, hook, file, clock = show(terminal=False, every=0.0)
    run = make_run()
    run.log.notes.append("a [bold]note[/bold] with brackets")
    train(hook, run, clock)
    text = file.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    assert "note: a [bold]note[/bold] with brackets\n" in text


def test_a_long_line_is_not_broken() -> None:
    _, hook, file, clock = show(terminal=False, width=40)
    train(hook, make_run(epochs=1), clock)
    assert len(file.getvalue().splitlines()) == 1


def test_a_note_is_shown_once() -> None:
    progress, hook, file, clock = show(terminal=False)
    run = make_run(epochs=2)
    run.log.notes.append("early")
    train(hook, run, clock)
    run.log.notes.append("late")
    progress.on_fit_end(run)
    assert file.getvalue().count("note: early\n") == 1
    assert file.getvalue().endswith("note: late\n")


def test_terminal_shows_epoch_step_loss_metric_speed_and_time_left() -> None:
    _, hook, file, clock = show(terminal=True)
    train(hook, make_run(), clock)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    frames = text.split("\r")
    assert any("epoch 2/3" in f and "validating" in f for f in frames)
    assert any("epoch 2/3" in f and "step 4/10" in f for f in frames)
    assert any("loss 0.2000   accuracy 0.5000   examples/s 512   left 0:1" in f for f in frames)
    assert "epoch 1/3  step 10/30  loss 0.5858  accuracy 0.5000" in text


def test_terminal_is_given_back_at_the_end() -> None:
    _, hook, file, clock = show(terminal=True)
    train(hook, make_run(), clock)
    text = file.getvalue()
    assert text.count(HIDE) == text.count(SHOW) == 1
    assert text.index(HIDE) < text.index(SHOW)


def test_terminal_is_given_back_after_an_interruption() -> None:
    progress, hook, file, clock = show(terminal=True)
    with pytest.raises(KeyboardInterrupt):
        train(hook, make_run(), clock, until=14)
    assert SHOW not in file.getvalue()
    progress.close()
    progress.close()
    assert file.getvalue().count(SHOW) == 1


def test_closing_before_the_start_is_no_error() -> None:
    progress, _, file, _ = show(terminal=True)
    progress.close()
    assert file.getvalue() == ""


def test_a_dumb_terminal_gets_plain_lines() -> None:
    file, clock = io.StringIO(), Clock()
    console = Console(file=file, force_terminal=True, _environ={"TERM": "dumb"})
    progress = Progress(console, now=clock)
    progress.on_fit_start(make_run())
    progress.close()
    assert file.getvalue() == ""


@pytest.mark.parametrize("width", [12, 30, 80, 300])
def test_frames_fit_the_terminal(width: int) -> None:
    _, hook, file, clock = show(terminal=True, width=width)
    run = make_run(steps_per_epoch=12_345)
    hook.on_fit_start(run=run)
    hook.on_epoch_start(run=run)
    for _ in range(50):
        clock.seconds += 0.1
        run.step += 1
        hook.after_optimizer_step(model=None, batch=None, loss=None, run=run)
        hook.on_log(record=Record(run.step, 0, {"loss": 1.2345678}), run=run)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    lines = [part for line in text.split("\n") for part in line.split("\r")]
    assert max(map(len, lines)) <= min(width, 100)
    hook.on_fit_end(run=run)


def test_throughput_counts_training_time_and_the_short_last_window() -> None:
    progress, hook, file, clock = show(terminal=False)
    train(hook, make_run(epochs=1, steps_per_epoch=11, last_window=14), clock)
    # The first step only starts the clock: 9 full windows and one of 14 in 1.25 seconds.
    assert progress.examples_per_second == pytest.approx((9 * 64 + 14) / 1.25)
    assert "  472 examples/s" in file.getvalue()


def test_throughput_is_not_measured_over_too_short_a_time() -> None:
    progress, hook, _, clock = show(terminal=False)
    train(hook, make_run(), clock, step_seconds=0.01)
    assert progress.examples_per_second is None


def test_epoch_without_validation_repeats_no_old_metrics() -> None:
    progress, hook, file, clock = show(terminal=False)
    run = make_run(epochs=1)
    train(hook, run, clock)
    progress.on_epoch_start()
    progress.on_epoch_end(run)
    assert "accuracy" not in file.getvalue().splitlines()[-1]


def test_a_resumed_run_estimates_from_its_own_steps() -> None:
    _, hook, file, clock = show(terminal=False, every=0.0)
    run = make_run(epochs=2, steps_per_epoch=100)
    run.step, run.epoch = 150, 1
    hook.on_fit_start(run=run)
    for _ in range(10):
        clock.seconds += 1.0
        run.step += 1
        hook.after_optimizer_step(model=None, batch=None, loss=None, run=run)
    assert file.getvalue().splitlines()[-1] == "epoch 2/2  step 160/200  0:40 left"


def test_a_loss_that_is_not_a_number_is_shown_as_such() -> None:
    progress, hook, file, clock = show(terminal=False, every=0.0)
    run = make_run()
    hook.on_fit_start(run=run)
    hook.on_log(record=Record(1, 0, {"loss": math.nan}), run=run)
    for _ in range(2):
        clock.seconds += 1
        run.step += 1
        progress.after_optimizer_step(run)
    assert "loss NaN" in file.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_step_costs_less_than_20_microseconds(terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, _environ={})
    progress = Progress(console)
    run = make_run(steps_per_epoch=10**6)
    progress.on_fit_start(run)
    record = Record(1, 0, {"loss": 1.0})
    took = []
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(200):
            run.step += 1
            progress.after_optimizer_step(run)
            progress.on_log(record, run)
        took.append((time.perf_counter() - began) / 200)
    progress.close()
    assert sorted(took)[10] < 20e-6


def printed(renderable: Any, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=False, _environ={}).print(renderable)
    return file.getvalue()


def test_summary_table() -> None:
    summary = {
        "status": "finished",
        "steps": 2300,
        "epochs": 10,
        "seconds": 72.3,
        "final": {"accuracy": 0.98333334, "nll": 0.0712, "calibration_error": None},
        "best": {
            "epoch": 7,
            "metric": "accuracy",
            "value": 0.98611,
            "accuracy": 0.98611,
            "nll": 0.08,
        },
    }
    lines = [
        line.split("  ") for line in printed(summary_table(summary, Path("runs/x"))).splitlines()
    ]
    rows = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert rows == [
        ["finished · 2,300 steps · 10 epochs · 1 min 12 s"],
        ["metric", "final", "at best accuracy"],
        ["accuracy", "0.9833", "0.9861"],
        ["nll", "0.0712", "0.0800"],
        ["runs/x"],
    ]


def test_summary_table_takes_metrics_of_the_best_nested_too_and_no_markup() -> None:
    summary = {"final": {"[red]x": 1.5}, "best": {"metric": "[red]x", "metrics": {"[red]x": 2.5}}}
    text = printed(summary_table(summary))
    assert "[red]x  1.5000" in text
    assert "2.5000" in text


def test_summary_table_of_a_run_that_never_validated() -> None:
    text = printed(summary_table({"status": "interrupted", "steps": 7, "final": {}, "best": None}))
    assert text.splitlines() == ["interrupted · 7 steps"]


def test_a_long_path_is_not_cut() -> None:
    folder = Path("runs") / ("x" * 100)
    assert str(folder) in printed(summary_table({}, folder), width=40).replace("\n", "")
