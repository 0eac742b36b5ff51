"""Checks of what a plugin does by itself: each trains the tiny recipe with it and looks at what
came of it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Generator, Mapping
from typing import Any

import torch
from torch import nn

from trainkit.checks.states import not_a_number, unreadable
from trainkit.hooks.run import Run
from trainkit.hooks.section import Section
from trainkit.hooks.specs import hookimpl
from trainkit.log.history import History
from trainkit.log.records import Record
from trainkit.testing.case import Case, CheckError, NotApplicableError
from trainkit.testing.compared import ACCUMULATED, BF16, everything, same
from trainkit.testing.training import State, Trace, make
from trainkit.training.checkpoint import run_state
from trainkit.training.loop import evaluate

SHORT: Mapping[str, Any] = {"data": {"drop_last": False}}


def check_trains(case: Case) -> None:
    """It trains two short epochs, and every loss and metric is finite."""
    _finite(case.trained())


def check_short_batch(case: Case) -> None:
    """It takes a last training batch of three images."""
    _finite(case.trained(over=SHORT))


def check_accumulation(case: Case) -> None:
    """It takes windows of two micro-batches, the last of one."""
    _finite(case.trained(over=ACCUMULATED))


def check_bf16(case: Case) -> None:
    """It works under bf16 autocast."""
    _finite(case.trained(over=BF16))


def check_missing_gradients(case: Case) -> None:
    """It takes parameters without a gradient: one that is frozen, and one that no loss reaches."""
    _finite(case.train(observers=[_Idle()]))


class _Idle:
    """Gives the model a parameter that it does not use, and freezes its first one."""

    @hookimpl(wrapper=True)
    def build_model(self) -> Generator[None, nn.Module, nn.Module]:
        model = yield
        next(model.parameters()).requires_grad_(False)
        model.register_parameter("idle", nn.Parameter(torch.zeros(2, 2)))
        return model


def _finite(trace: Trace) -> None:
    if not any("loss" in record.values for record in trace.records):
        raise CheckError("no loss was logged: the run took no step")
    for record in trace.records:
        for name, value in record.values.items():
            core = name in ("loss", "lr") or name.startswith("val/")
            if core and not (isinstance(value, float) and math.isfinite(value)):
                raise CheckError(f"{name} is {value} at step {record.step}")


def check_state(case: Case) -> None:
    """`state_dict` holds plain containers, numbers and strings, and finite tensors; it is read
    without running code.
    """
    state = case.trained().state["plugins"][case.name]
    if not isinstance(state, dict):
        raise CheckError(f"state_dict returned {type(state).__name__}, not a dict")
    if found := unreadable(state):
        raise CheckError(f"state_dict(){found}: not a plain container, number, string or tensor")
    if found := not_a_number(state):
        raise CheckError(
            f"state_dict(){found}: what is saved is finite; leave out what is not known"
        )
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    same("read back, against written", torch.load(file, weights_only=True), state)


def check_resume(case: Case) -> None:
    """Stopped twice inside epochs and gone on from a checkpoint with fresh plugins, the run ends
    in the same bits.
    """
    whole = case.trained()
    total, epoch = whole.state["step"], whole.steps_per_epoch
    stops = [step for step in (max(1, epoch - 1), epoch + 1) if step < total]
    if not stops:
        raise NotApplicableError("the run has no step to stop after but its last")

    def begun(run: Run, state: State | None) -> None:
        if state is not None:
            what = f"its state as restored after step {run.step}, against as saved"
            same(what, run_state(run)["plugins"], state["plugins"])

    again = case.train(stops=stops, begun=begun)
    what = f"stopped after steps {' and '.join(map(str, stops))}, against never stopped"
    same(what, everything(again), everything(whole))


def check_kept_weights(case: Case) -> None:
    """The weights that a run with it keeps, measured in a run that trains nothing, give the
    metrics that it logged.
    """
    kept = case.train(keep=True).best
    assert kept is not None  # a run that keeps its files has some weights that are best
    weights, entry = kept
    run = make(case.setup())
    run.model.load_state_dict(weights)
    run.epoch = entry["epoch"]
    same("measured anew, against in training", evaluate(run), entry["metrics"])


def check_report(case: Case) -> None:
    """`explain` gives lines and leaves the run alone; `report` gives sections that draw, from
    any history.
    """
    lines: list[Any] = []

    def begun(run: Run, state: State | None) -> None:
        lines.extend(run.plugins[case.name].explain(run))

    explained = case.train(begun=begun)
    if any(not isinstance(line, str) for line in lines):
        raise CheckError(f"explain returned something else than lines of text: {lines!r}")
    same("asked to explain, against not asked", everything(explained), everything(case.trained()))
    first: tuple[Record, ...] = explained.history.records[:1]
    for history in (explained.history, History(first), History(())):
        for section in case.plugin().report(history):
            if not isinstance(section, Section):
                kind = type(section).__name__
                raise CheckError(f"report returned {kind}, not a trainkit.Section")
            for figure in section.figures:
                figure.savefig(io.BytesIO(), format="svg")
