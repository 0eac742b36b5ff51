"""How a run ends before its last step: asked to, or because the loss is not a number."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.reference.tiny import train, with_plugins
from trainkit import Plugin, Record, Run, hookimpl
from trainkit.commands.verify import differences
from trainkit.errors import Interrupted, TrainingError
from trainkit.training.build import Setup, build, compose
from trainkit.training.checkpoint import read_state
from trainkit.training.checkpointer import Checkpointer
from trainkit.training.loop import fit

CONSTANT = ["scheduler.name=constant", "scheduler.warmup_epochs=0"]


def start(setup: Setup, folder: Path) -> tuple[Run, Checkpointer]:
    folder.mkdir(exist_ok=True)
    run = build(setup, folder)
    return run, Checkpointer(run.folder, run)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# A loss that is not finite.


class Spoil(Plugin):
    """Makes the loss useless at one step."""

    at: int = 9
    value: float = float("nan")

    @hookimpl(wrapper=True)
    def compute_loss(self, run: Run) -> Any:
        loss = yield
        return loss * self.value if run.step + 1 == self.at else loss


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    tiny: Path, tmp_path: Path, value: float
) -> None:
    folder = tmp_path / "run"
    run, checkpointer = start(with_plugins(tiny, ["train.log_every=1"], Spoil(value=value)), folder)
    with pytest.raises(TrainingError) as caught:
        fit(run, checkpointer)
    last = folder / "checkpoints" / "last.pt"
    described = run.data.train.describe(1, 2)
    assert (
        str(caught.value)
        == f"the loss is {value} at step 9 (epoch 2, batch 2: {described}); last good checkpoint:"
        f" {last} (step 6). Lower the learning rate, lengthen the warm-up, or clip gradients"
    )
    state = read_state(last)
    assert state["step"] == 6
    assert all(torch.isfinite(tensor).all() for tensor in state["model"].values())
    assert logged(folder)[-1]["loss"] is None  # it is on record, as null


@pytest.mark.parametrize("log_every", [1, 2, 5, 100])
def test_no_checkpoint_is_ever_written_after_such_a_loss(
    tiny: Path, tmp_path: Path, log_every: int
) -> None:
    folder = tmp_path / "run"
    overrides = [f"train.log_every={log_every}", "checkpoint.every_steps=1"]
    run, checkpointer = start(with_plugins(tiny, overrides, Spoil(at=9)), folder)
    with pytest.raises(TrainingError, match="at step 9"):
        fit(run, checkpointer)
    assert read_state(folder / "checkpoints" / "last.pt")["step"] == 8


def test_a_first_step_without_a_checkpoint_says_so(tiny: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"at step 1 \(epoch 1, batch 0: .*last good checkpoint: none yet\."
    ):
        train(with_plugins(tiny, [], Spoil(at=1)))


def test_the_examples_named_are_those_of_the_step(tiny: Path) -> None:
    key = next(iter(compose(tiny).recipe.plugins))
    with pytest.raises(TrainingError) as caught:
        train(with_plugins(tiny, [f"plugins={{{key}: {{poison: 13}}}}", "train.log_every=1"]))
    named = str(caught.value).split("training examples ")[1].split(")")[0]
    assert "13" in named.split(", ")


# Asked to stop by the user.


def test_an_interrupted_run_finishes_its_step_and_saves(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run, checkpointer = start(compose(tiny), folder)
    asked = iter([False, False, True])
    with pytest.raises(Interrupted) as caught:
        fit(run, checkpointer, interrupted=lambda: next(asked))
    assert caught.value.folder == folder
    state = read_state(folder / "checkpoints" / "last.pt")
    assert (run.step, state["step"], state["epoch"]) == (3, 3, 0)
    assert [row["step"] for row in logged(folder)] == [1, 2, 3]


def test_an_interruption_at_the_end_of_an_epoch_validates_first(tiny: Path, tmp_path: Path) -> None:
    run, checkpointer = start(compose(tiny), tmp_path / "run")
    with pytest.raises(Interrupted):
        fit(run, checkpointer, until=6)
    assert (run.step, run.epoch) == (6, 1)
    assert "accuracy" in checkpointer.outcome.final


@pytest.mark.parametrize(("step", "batch"), [(6, 0), (12, 0), (12, 1)])
def test_an_interruption_while_validating_saves_what_was_before_it(
    tiny: Path, tmp_path: Path, step: int, batch: int
) -> None:
    """The first batch after the last step of an epoch, or one in the middle; validation is then
    done again.
    """
    swapped = [
        "plugins.ema={decay: 0.5}",
        "train.log_every=4",
    ]  # it has its own weights in the model meanwhile
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    fit(*start(compose(tiny, swapped), whole))
    run, checkpointer = start(compose(tiny, swapped), stopped)
    asked = iter([False] * (step + (step - 1) // 6 * 4 + batch) + [True])
    with pytest.raises(Interrupted):
        fit(run, checkpointer, interrupted=lambda: next(asked))
    state = read_state(stopped / "checkpoints" / "last.pt")
    assert (state["step"], state["epoch"]) == (step, step // 6 - 1)
    assert len(state["best"]) == state["epoch"]
    assert [row["step"] for row in logged(stopped)][-1] == step
    assert "val/nll" not in logged(stopped)[-1]
    again, checkpointer = start(compose(tiny, swapped), stopped)
    checkpointer.restore(again, state)
    fit(again, checkpointer)
    ends = [read_state(folder / "checkpoints" / "last.pt") for folder in (whole, stopped)]
    assert next(differences(*ends), None) is None
    for name in ("metrics.jsonl", "weights.safetensors"):
        assert (whole / name).read_bytes() == (stopped / name).read_bytes()


# Asked to stop by a plugin.


class Enough(Plugin):
    """Ends training after an epoch."""

    hook: str = "on_evaluate_end"

    @hookimpl
    def on_evaluate_end(self, run: Run) -> None:
        self._end("on_evaluate_end", run)

    @hookimpl
    def on_log(self, record: Record, run: Run) -> None:
        self._end("on_log", run)

    @hookimpl
    def on_epoch_end(self, run: Run) -> None:
        self._end("on_epoch_end", run)

    def _end(self, hook: str, run: Run) -> None:
        if hook == self.hook:
            run.stop(f"enough, says {hook}")
            run.stop("a second reason does not count")


@pytest.mark.parametrize("hook", ["on_evaluate_end", "on_log", "on_epoch_end"])
def test_a_plugin_ends_training_with_the_epoch(tiny: Path, tmp_path: Path, hook: str) -> None:
    run, checkpointer = start(
        with_plugins(tiny, ["train.epochs=5"], Enough(hook=hook)), tmp_path / "run"
    )
    fit(run, checkpointer)
    assert (run.epoch, run.step) == (1, 6)
    assert run.stop_reason == f"enough, says {hook}"
    assert (
        read_state(tmp_path / "run" / "checkpoints" / "last.pt")["stop_reason"] == run.stop_reason
    )


def test_a_run_that_has_ended_is_not_also_interrupted(tiny: Path, tmp_path: Path) -> None:
    # Otherwise its last checkpoint would be one that cannot be resumed, of a run that never ended.
    run, checkpointer = start(with_plugins(tiny, ["train.epochs=5"], Enough()), tmp_path / "run")
    fit(
        run,
        checkpointer,
        interrupted=lambda: run.epoch == 1 or "accuracy" in checkpointer.outcome.final,
    )
    assert run.stop_reason == "enough, says on_evaluate_end"


# What is logged at the edges of an epoch.


class Edges(Plugin):
    """Logs a value in every hook that can."""

    @hookimpl
    def on_fit_start(self, run: Run) -> None:
        run.log.record("edge/fit_start", 0)

    @hookimpl
    def on_epoch_start(self, run: Run) -> None:
        run.log.record("edge/epoch_start", run.epoch)

    @hookimpl
    def on_evaluate_start(self, run: Run) -> None:
        run.log.record("edge/evaluate_start", run.epoch)

    @hookimpl
    def on_evaluate_end(self, run: Run) -> None:
        run.log.record("edge/evaluate_end", run.epoch)

    @hookimpl
    def on_epoch_end(self, run: Run) -> None:
        run.log.record("edge/epoch_end", run.epoch)

    @hookimpl
    def on_fit_end(self, run: Run) -> None:
        run.log.record("edge/fit_end", run.epoch)


def test_values_logged_between_steps_stand_where_they_were_logged(
    tiny: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    fit(*start(with_plugins(tiny, [], Edges()), folder))
    edges = [
        (row["step"], row["epoch"], name.removeprefix("edge/"))
        for row in logged(folder)
        for name in row
        if name.startswith("edge/")
    ]
    assert edges == [
        (1, 1, "fit_start"),
        (1, 1, "epoch_start"),
        (6, 1, "evaluate_start"),
        (6, 1, "evaluate_end"),
        (6, 1, "epoch_end"),
        (7, 2, "epoch_start"),
        (12, 2, "evaluate_start"),
        (12, 2, "evaluate_end"),
        (12, 2, "epoch_end"),
        (12, 2, "fit_end"),
    ]


@pytest.mark.parametrize("until", [5, 6, 7])
def test_they_are_not_lost_when_the_run_is_resumed_there(
    tiny: Path, tmp_path: Path, until: int
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    fit(*start(with_plugins(tiny, [], Edges()), whole))
    run, checkpointer = start(with_plugins(tiny, [], Edges()), stopped)
    with pytest.raises(Interrupted):
        fit(run, checkpointer, until=until)
    run, checkpointer = start(with_plugins(tiny, [], Edges()), stopped)
    checkpointer.restore(run, read_state(stopped / "checkpoints" / "last.pt"))
    fit(run, checkpointer)

    def without_restarts(folder: Path) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k != "edge/fit_start"} for row in logged(folder)]

    assert without_restarts(stopped) == without_restarts(whole)
