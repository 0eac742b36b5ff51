"""Checks of what a plugin does to a run: each trains the tiny recipe with it and without it, or
twice, and compares bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainkit.commands.verify import differences
from trainkit.hooks.run import Run
from trainkit.hooks.specs import hookimpl
from trainkit.seeds import rng_state, set_rng_state
from trainkit.testing.case import Case, CheckError, NotApplicableError
from trainkit.testing.training import State, Trace, logged

BF16: Mapping[str, Any] = {"train": {"precision": "bf16"}}
ACCUMULATED: Mapping[str, Any] = {"train": {"accumulate": 2}}
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


def check_effect(case: Case) -> None:
    """It does something: some number differs from the run without it; a monitor may also just
    tell something.
    """
    on, off = case.trained(), case.trained(on=False)
    parts = [(_core(on, _PARTS), _core(off, _PARTS)), (logged(on), logged(off))]
    if case.cls.neutral:
        # Options that can be neutral are there to change training; to be logged is not enough.
        parts[1] = (logged(on, off.names), logged(off))
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
        is_monitor = case.cls.neutral == {}
        why = "it is a monitor" if is_monitor else "it declares no neutral options"
        raise NotApplicableError(why)
    options = case.options | dict(case.cls.neutral)
    for where, over in EVERYWHERE.items():
        on, off = case.trained(options=options, over=over), case.trained(on=False, over=over)
        what = f"with {_shown(case.cls.neutral)}{where}, against without it"
        plain = off.state["model"]
        shared = {name: value for name, value in on.state["model"].items() if name in plain}
        same(what, shared, plain)
        same(what, logged(on, off.names), logged(off))


def check_invisible(case: Case) -> None:
    """A monitor (neutral without options) leaves the run as it is, its random streams included."""
    if case.cls.neutral is None or case.cls.neutral:
        raise NotApplicableError("it is not declared a monitor (`neutral = {}`)")
    for where, over in EVERYWHERE.items():
        on, off = case.trained(over=over), case.trained(on=False, over=over)
        what = f"with the monitor{where}, against without it"
        same(what, _core(on, _PARTS), _core(off, _PARTS))
        same(what, logged(on, off.names), logged(off))
        same(what, _streams(on), _streams(off))


def check_streams(case: Case) -> None:
    """It leaves the random streams of Python, NumPy and torch alone: a plugin draws from its own
    generator.
    """
    # Without dropout nothing draws while training, so any move of a stream is the plugin's.
    args = dict(case.raw.data["model"]["args"])
    args.update({name: 0.0 for name in args if "drop" in name})
    over = {"model": {"args": args}}
    on, off = case.trained(over=over), case.trained(on=False, over=over)
    same("draw from self.generator(): with it, against without it", _streams(on), _streams(off))


def check_repeatable(case: Case) -> None:
    """The same seed gives the same bits when the run is repeated in the same process."""
    same("the second run, against the first", everything(case.train()), everything(case.trained()))


def check_isolated(case: Case) -> None:
    """A run of another seed in the midst of a run changes neither, and a later run without it is
    as ever.
    """
    other = {"seed": case.raw.data["seed"] + 1}
    alone = case.anew().train(over=other)
    inner = _Inner(lambda: case.train(over=other))
    outer = case.train(observers=[inner])
    undisturbed = everything(case.trained())
    same("with another run in its midst, against alone", everything(outer), undisturbed)
    if inner.trace is not None:
        what = "in the midst of another run, against alone"
        same(what, everything(inner.trace), everything(alone))
    before, after = case.trained(on=False), case.train(on=False)
    difference = next(differences(everything(after), everything(before)), None)
    if difference:
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


def same(what: str, found: Any, wanted: Any) -> None:
    """Raise with the first difference, if there is one."""
    if difference := next(differences(found, wanted), None):
        raise CheckError(f"{what}: {difference}")


def everything(trace: Trace) -> State:
    """Return the log and the whole state of a run, to be compared with another's."""
    return {"log": logged(trace), **trace.state}


def _core(trace: Trace, parts: tuple[str, ...]) -> State:
    return {part: trace.state[part] for part in parts}


def _streams(trace: Trace) -> Any:
    return {"global": trace.state["random"][0]["global"]}


def _shown(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in options.items())
