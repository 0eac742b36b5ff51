"""Checks of what a plugin does: each trains the tiny recipe, with the plugin and without, and
compares bits.
"""

from __future__ import annotations

import io
import math
from collections.abc import Generator, Mapping
from typing import Any

import torch
from torch import nn

from trainkit.checks.states import not_a_number, unreadable
from trainkit.commands.verify import differences
from trainkit.hooks.run import Run
from trainkit.hooks.section import Section
from trainkit.hooks.specs import hookimpl
from trainkit.log.history import History
from trainkit.log.records import Record
from trainkit.seeds import rng_state, set_rng_state
from trainkit.testing.case import Case, CheckError, NotApplicableError
from trainkit.testing.training import State, Trace, logged, make
from trainkit.training.checkpoint import run_state
from trainkit.training.loop import evaluate

BF16: Mapping[str, Any] = {"train": {"precision": "bf16"}}
ACCUMULATED: Mapping[str, Any] = {"train": {"accumulate": 2}}
SHORT: Mapping[str, Any] = {"data": {"drop_last": False}}
EVERYWHERE = {"": {}, " in bf16": BF16, " with micro-batches": ACCUMULATED}

_PARTS = (
    "epoch",
    "step",
    "stop_reason",
    "model",
    "frozen",
    "untrained",
    "optimizer",
    "scheduler",
    "scaler",
)
"""What in a checkpoint is the run's own, next to its plugins and its random streams."""


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


def check_effect(case: Case) -> None:
    """It does something: some number differs from the run without it; a monitor may also just
    tell something.
    """
    on, off = case.trained(), case.trained(on=False)
    parts = [(_core(on, _PARTS), _core(off, _PARTS)), (logged(on), logged(off))]
    if case.cls.neutral:
        # Options that can be neutral are there to change training; to be logged is not enough.
        parts[1] = (logged(on, _names(off)), logged(off))
    if any(next(differences(*pair), None) for pair in parts):
        return
    if case.cls.neutral is None or case.cls.neutral:
        raise CheckError(
            "nothing differs from the run without it; if it needs another model or other options to"
            " act, give them (`recipe=`, `options=`)"
        )
    said: list[Any] = [*(on.said - off.said), *case.plugin().report(on.history)]
    case.train(begun=lambda run, _: said.extend(run.plugins[case.name].explain(run)))
    if not said:
        raise CheckError("a monitor that logs, notes, writes, explains and reports nothing")


def check_neutral(case: Case) -> None:
    """With its neutral options the run equals the one without it: parameters, buffers, losses,
    metrics.
    """
    if not case.cls.neutral:
        raise NotApplicableError(
            "it is a monitor" if case.cls.neutral == {} else "it declares no neutral options"
        )
    options = case.options | dict(case.cls.neutral)
    for where, over in EVERYWHERE.items():
        on, off = case.trained(options=options, over=over), case.trained(on=False, over=over)
        what, plain = (
            f"with {_shown(case.cls.neutral)}{where}, against without it",
            off.state["model"],
        )
        _same(
            what, {name: value for name, value in on.state["model"].items() if name in plain}, plain
        )
        _same(what, logged(on, _names(off)), logged(off))


def check_invisible(case: Case) -> None:
    """A monitor (neutral without options) leaves the run as it is, its random streams included."""
    if case.cls.neutral is None or case.cls.neutral:
        raise NotApplicableError("it is not declared a monitor (`neutral = {}`)")
    for where, over in EVERYWHERE.items():
        on, off = case.trained(over=over), case.trained(on=False, over=over)
        what = f"with the monitor{where}, against without it"
        _same(what, _core(on, _PARTS), _core(off, _PARTS))
        _same(what, logged(on, _names(off)), logged(off))
        _same(what, _streams(on), _streams(off))


def check_streams(case: Case) -> None:
    """It leaves the random streams of Python, NumPy and torch alone: a plugin draws from its own
    generator.
    """
    # Without dropout nothing draws while training, so any move of a stream is the plugin's.
    args = {
        name: 0.0 if "drop" in name else value
        for name, value in case.source.data["model"]["args"].items()
    }
    over = {"model": {"args": args}}
    on, off = case.trained(over=over), case.trained(on=False, over=over)
    _same("draw from self.generator(): with it, against without it", _streams(on), _streams(off))


def check_repeatable(case: Case) -> None:
    """The same seed gives the same bits when the run is repeated in the same process."""
    _same("the second run, against the first", _all(case.train()), _all(case.trained()))


def check_isolated(case: Case) -> None:
    """A run of another seed in the midst of a run changes neither, and a later run without it is
    as ever.
    """
    other = {"seed": case.source.data["seed"] + 1}
    alone = case.anew().train(over=other)
    inner = _Inner(lambda: case.train(over=other))
    outer = case.train(observers=[inner])
    _same("with another run in its midst, against alone", _all(outer), _all(case.trained()))
    if inner.trace is not None:
        _same("in the midst of another run, against alone", _all(inner.trace), _all(alone))
    before, after = case.trained(on=False), case.train(on=False)
    if difference := next(differences(_all(after), _all(before)), None):
        # What was trained before the process was changed is nobody's baseline any more.
        case.forget()
        raise CheckError(f"a run without it, after one with it, against before: {difference}")


class _Inner:
    """Trains a whole other run after the second step of the run that it observes."""

    def __init__(self, train: Any) -> None:
        self.train = train
        self.trace: Trace | None = None

    @hookimpl
    def after_optimizer_step(self, run: Run) -> None:
        if run.step == 2:
            streams = rng_state(run.device.torch)
            self.trace = self.train()
            set_rng_state(streams, run.device.torch)


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
    _same("read back, against written", torch.load(file, weights_only=True), state)


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
            restored = run_state(run)["plugins"]
            _same(
                f"its state as restored after step {run.step}, against as saved",
                restored,
                state["plugins"],
            )

    again = case.train(stops=stops, begun=begun)
    _same(
        f"stopped after steps {' and '.join(map(str, stops))}, against never stopped",
        _all(again),
        _all(whole),
    )


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
    _same("measured anew, against in training", evaluate(run), entry["metrics"])


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
    _same("asked to explain, against not asked", _all(explained), _all(case.trained()))
    first: tuple[Record, ...] = explained.history.records[:1]
    for history in (explained.history, History(first), History(())):
        for section in case.plugin().report(history):
            if not isinstance(section, Section):
                raise CheckError(
                    f"report returned {type(section).__name__}, not a trainkit.Section"
                )
            for figure in section.figures:
                figure.savefig(io.BytesIO(), format="svg")


def _core(trace: Trace, parts: tuple[str, ...]) -> State:
    return {part: trace.state[part] for part in parts}


def _streams(trace: Trace) -> Any:
    return {"global": trace.state["random"][0]["global"]}


def _all(trace: Trace) -> State:
    return {"log": logged(trace), **trace.state}


def _names(trace: Trace) -> frozenset[str]:
    return frozenset(name for record in trace.records for name in record.values)


def _shown(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in options.items())


def _same(what: str, found: Any, wanted: Any) -> None:
    """Raise with the first difference, if there is one."""
    if difference := next(differences(found, wanted), None):
        raise CheckError(f"{what}: {difference}")
