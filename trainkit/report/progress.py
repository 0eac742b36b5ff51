"""What a person sees while a run trains: a live display in a terminal or a notebook, plain lines
anywhere else.

Nothing here asks a device for a value: the loss comes from what the log brings to the host anyway.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trainkit.hooks.specs import hookimpl
from trainkit.report.formats import clock, duration, label, number, rate
from trainkit.system.terminal import Terminal

if TYPE_CHECKING:
    from trainkit.hooks.run import Run
    from trainkit.log.records import Record

REDRAW = 0.25
"""Seconds between two frames, at least."""
SHARE = 200
"""A frame is followed by at least this many times its own cost without one: drawing takes 0.5%
of a run.
"""
SHORTEST = 0.2
"""Seconds over which throughput is measured, at least: less says nothing."""


class Progress:
    """Shows how a run goes. Core registers it on rank 0, and calls `close` however the run ends.

    Args:
        console: where to write; a live display if it is a terminal, or a notebook with ipywidgets,
            else plain lines without control codes.
        every: seconds between two plain lines within an epoch; there is one after each epoch in any
            case.
        now: the time in seconds; only differences count.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        every: float = 30.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or Terminal()
        self.examples_per_second: float | None = None
        """Training examples per second over all ranks, between two flushes of the log; None at
        first.
        """
        self._every = every
        self._now = now
        self._live: Live | None = None
        self._due = 0.0
        self._started = (0.0, 0)
        self._mark: tuple[float, int] | None = None
        self._epoch = _Epoch(0.0)
        self._loss: float | None = None
        self._metrics: dict[str, float] = {}
        self._notes = 0

    @hookimpl
    def on_fit_start(self, run: Run) -> None:
        """Begin the display."""
        began = self._now()
        self._started, self._epoch = (began, run.step), _Epoch(began)
        self._say_notes(run)
        self._due = began + self._every
        if _can_redraw(self.console):
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
            self._draw(run)

    @hookimpl
    def on_epoch_start(self) -> None:
        """Start counting anew; what passed between epochs was not training."""
        self._epoch = _Epoch(self._now())
        self._mark = None

    @hookimpl
    def after_optimizer_step(self, run: Run) -> None:
        """Show where the run stands when it is time to."""
        if self._mark is None:
            # Measuring begins after a first step: that one may have compiled the model or started
            # workers.
            self._mark = (self._now(), run.step)
        elif self._now() >= self._due:
            if self._live is not None:
                self._draw(run)
            else:
                self._say(self._step_line(run))
                self._due = self._now() + self._every

    @hookimpl
    def on_log(self, record: Record, run: Run) -> None:
        """Take the loss, and measure throughput: the device has just caught up with the host."""
        loss = record.values.get("loss")
        if isinstance(loss, float):
            self._loss = loss
            self._epoch.loss_sum += loss
            self._epoch.loss_count += 1
            self._measure(run, SHORTEST)

    @hookimpl
    def on_evaluate_start(self, run: Run) -> None:
        """Stop the clock of training, and say that validation is under way."""
        self._measure(run)
        self._mark = None
        if self._live is not None:
            self._draw(run, "validating")

    @hookimpl
    def on_evaluate_end(self, metrics: Mapping[str, float]) -> None:
        """Take the metrics."""
        self._metrics = dict(metrics)
        self._epoch.evaluated = True

    @hookimpl
    def on_epoch_end(self, run: Run) -> None:
        """Write the line that stays."""
        self._measure(run)
        self._mark = None
        self._say_notes(run)
        self._say(self._epoch_line(run))
        self._due = self._now() + self._every
        if self._live is not None:
            self._draw(run)

    @hookimpl
    def on_fit_end(self, run: Run) -> None:
        """End the display."""
        self._say_notes(run)
        self.close()

    def close(self) -> None:
        """Give the terminal back as it was found. May be called at any time, and again."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def _measure(self, run: Run, shortest: float = 0.0) -> None:
        """Count the steps since the last measurement as training time, if that was `shortest`
        seconds ago.
        """
        if self._mark is None:
            return
        now = self._now()
        seconds, steps = now - self._mark[0], run.step - self._mark[1]
        if steps <= 0 or seconds < shortest:
            return
        train = run.data.train
        examples = steps * train.examples_per_step
        if run.step == (run.epoch + 1) * train.steps_per_epoch:
            # The last window of an epoch may be short.
            examples += (
                train.window(run.epoch, train.steps_per_epoch - 1).examples
                - train.examples_per_step
            )
        self._mark = (now, run.step)
        self._epoch.seconds += seconds
        self._epoch.examples += examples
        if seconds >= SHORTEST:
            self.examples_per_second = examples / seconds

    def _draw(self, run: Run, activity: str = "") -> None:
        """Draw a frame, and settle when to draw the next."""
        assert self._live is not None
        began = self._now()
        self._live.update(self._frame(run, activity), refresh=True)
        end = self._now()
        self._due = end + max(REDRAW, SHARE * (end - began))

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)

    def _say_notes(self, run: Run) -> None:
        for note in run.log.notes[self._notes :]:
            self._say(f"note: {note}")
        self._notes = len(run.log.notes)

    def _seconds_left(self, run: Run) -> float | None:
        """Return the time to the end of the last epoch at the mean speed so far, validation
        included.
        """
        began, first = self._started
        done = run.step - first
        left = run.recipe.train.epochs * run.data.train.steps_per_epoch - run.step
        if done > 0:
            return (self._now() - began) / done * left
        return None

    def _step_line(self, run: Run) -> str:
        parts = [_epoch(run), _step(run)]
        if self._loss is not None:
            parts.append(f"loss {number(self._loss)}")
        if self.examples_per_second is not None:
            parts.append(f"{rate(self.examples_per_second)} examples/s")
        left = self._seconds_left(run)
        if left is not None:
            parts.append(f"{clock(left)} left")
        return "  ".join(parts)

    def _epoch_line(self, run: Run) -> str:
        epoch = self._epoch
        parts = [_epoch(run), _step(run)]
        if epoch.loss_count:
            parts.append(f"loss {number(epoch.loss_sum / epoch.loss_count)}")
        if epoch.evaluated:
            for name, value in self._metrics.items():
                parts.append(f"{label(name)} {number(value)}")
        if epoch.seconds > 0:
            parts.append(f"{rate(epoch.examples / epoch.seconds)} examples/s")
        return "  ".join([*parts, duration(self._now() - epoch.began)])

    def _frame(self, run: Run, activity: str) -> RenderableType:
        """Return two lines: where the epoch stands, and how well it goes."""
        per_epoch = run.data.train.steps_per_epoch
        inside = min(max(run.step - run.epoch * per_epoch, 0), per_epoch)
        first = Table.grid(padding=(0, 1), expand=True)
        first.add_column(no_wrap=True)
        first.add_column(ratio=1)
        first.add_column(no_wrap=True, justify="right")
        first.add_row(
            Text(_epoch(run), style="bold"),
            ProgressBar(total=per_epoch, completed=inside),
            Text(activity or f"step {inside:,}/{per_epoch:,}"),
        )
        facts = []
        if self._loss is not None:
            facts.append(("loss", number(self._loss)))
        watched = run.recipe.checkpoint.metric
        if watched in self._metrics:
            facts.append((label(watched), number(self._metrics[watched])))
        if self.examples_per_second is not None:
            facts.append(("examples/s", rate(self.examples_per_second)))
        left = self._seconds_left(run)
        if left is not None:
            facts.append(("left", clock(left)))
        second = Text(no_wrap=True, overflow="ellipsis")
        for name, value in facts:
            second.append(f"{name} ", style="dim")
            second.append(f"{value}   ")
        return Constrain(Group(first, second), width=100)


def _can_redraw(console: Console) -> bool:
    """Return whether what is shown can be replaced; in a notebook, rich draws with ipywidgets."""
    if console.is_jupyter:
        return find_spec("ipywidgets") is not None
    return console.is_terminal and not console.is_dumb_terminal


@dataclass
class _Epoch:
    """What is known of the epoch under way; `seconds` and `examples` are of training alone."""

    began: float
    loss_sum: float = 0.0
    loss_count: int = 0
    seconds: float = 0.0
    examples: int = 0
    evaluated: bool = False


def _epoch(run: Run) -> str:
    epochs = run.recipe.train.epochs
    return f"epoch {run.epoch + 1:>{len(str(epochs))}}/{epochs}"


def _step(run: Run) -> str:
    total = f"{run.recipe.train.epochs * run.data.train.steps_per_epoch:,}"
    return f"step {run.step:>{len(total)},}/{total}"
