"""A whole run on disk: its folder, training, interruption, resuming, and what is written at the
end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from trainkit.commands.longer import check_longer, check_plugins, recipe_before
from trainkit.commands.result import Result
from trainkit.config import bundled
from trainkit.config.raw import Given, run_name
from trainkit.errors import Interrupted, PluginError, TrainingError, UserError, WriteError, suggest
from trainkit.hooks.run import Run
from trainkit.log.history import History
from trainkit.log.status import Ending, Status
from trainkit.models.weights import fit_weights, load_weights
from trainkit.report.page import summary_text, write_report
from trainkit.system.paths import is_file, is_folder
from trainkit.system.run_folder import begun, check_is_run, held, writes
from trainkit.system.signals import interruptible
from trainkit.system.strict_json import to_json
from trainkit.system.writes import atomically, write_text
from trainkit.training.build import Setup, build, compose
from trainkit.training.checkpoint import read_state
from trainkit.training.checkpointer import Checkpointer
from trainkit.training.environment import facts
from trainkit.training.loop import fit


def start(
    recipe: Given, overrides: Sequence[str], folder: Path | None, observers: Sequence[object]
) -> Result:
    """Train a recipe in a fresh folder; raises what `_train` raises."""
    setup = compose(recipe, overrides)
    if not writes():  # a folder made by each rank would be one too many
        run = build(setup, None, observers)
        return _train(run, Checkpointer(None, run))
    with begun(folder, run_name(recipe)) as target:
        try:
            run = build(setup, target, observers)
            checkpointer = Checkpointer(target, run)
            write_text(target / "recipe.yaml", setup.recipe.dump())
            write_text(target / "environment.json", to_json(facts(run.device), indent=2) + "\n")
        except BaseException:
            _leave_nothing(target)
            raise
        return _train(run, checkpointer)


def _leave_nothing(folder: Path) -> None:
    """Put away what was written before training began; a folder that is not empty could not be
    used again.
    """
    with suppress(OSError):
        for name in ("recipe.yaml", "environment.json"):
            (folder / name).unlink(missing_ok=True)
        (folder / "checkpoints").rmdir()


def resume(folder: Path, observers: Sequence[object], overrides: Sequence[str] = ()) -> Result:
    """Go on with a run, exactly.

    Args:
        folder: of the run.
        observers: further objects with hooks.
        overrides: a larger `train.epochs` makes a run longer, one that was finished too.

    Raises what `_train` raises, and:
        UserError: there is nothing to resume, the recipe was changed since, another process is at
            it, or a longer run would not have come this way.
    """
    check_is_run(folder)
    with held(folder) if writes() else nullcontext():
        state = read_state(folder / "checkpoints" / "last.pt")
        path = folder / "recipe.yaml"
        setup = compose(path, overrides)
        was = recipe_before(setup.recipe, path, overrides, state)
        if (state["epoch"] >= setup.recipe.train.epochs or state["stop_reason"]) and _ended(
            folder, state["step"]
        ):
            raise UserError(
                f"{folder}: this run is finished after {state['step']} steps; there is nothing to "
                "resume"
            )
        run = build(setup, folder, observers)
        checkpointer = Checkpointer(run.folder, run)
        checkpointer.restore(run, state if was is None else check_longer(run, was, state, folder))
        if was is not None:
            check_plugins(run, folder)
            if run.folder is not None:
                write_text(path, setup.recipe.dump())
        return _train(run, checkpointer)


def _ended(folder: Path, step: int) -> bool:
    """Return whether a run wrote its summary, the last of its files, at its end; killed before,
    it has still to.
    """
    try:
        told = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return Ending.parse(str(told["status"])).is_final and told["steps"] == step
    except (OSError, ValueError, LookupError, TypeError):
        return False


def open_run(
    source: str | Path, overrides: Sequence[str] = (), weights: str | Path | None = None
) -> Run:
    """Build a run that trains nothing, with weights in its model: for commands that measure or
    change trained models.

    Args:
        source: the folder of a run; or a recipe, as a file or by the name of a bundled one; or the
            name of a timm model, and then the overrides say the rest, the data at least.
        overrides: `key=value` or `~key`, as on the command line.
        weights: `best` or `last` of a run folder, or a file of weights (see
            `trainkit.models.weights`). Default: the best of a run folder; for anything else what
            `model.pretrained` and `model.checkpoint` of the recipe say.

    Raises:
        UserError: there is no such source or file, it has mistakes, or the weights do not fit the
            model.
    """
    folder = Path(source) if is_folder(source) else None
    if folder is not None:
        check_is_run(folder)
    run = build(_compose(str(source), folder, overrides))
    if weights in ("best", "last") and folder is None:
        raise UserError(
            f"only the folder of a run has {weights} weights, and {source} is none; name a file of "
            "weights"
        )
    if folder is not None and weights == "last":
        file = folder / "checkpoints" / "last.pt"
        fit_weights(run.model, read_state(file)["model"], file)
    elif folder is not None and weights in (None, "best"):
        load_weights(run.model, folder / "weights.safetensors")
    elif weights is not None:
        load_weights(run.model, Path(weights))
    return run


def _compose(source: str, folder: Path | None, overrides: Sequence[str]) -> Setup:
    from timm import is_model, list_models

    path = folder / "recipe.yaml" if folder is not None else bundled.find(Path(source))
    if is_file(path):
        return compose(path, overrides)
    if is_model(source.partition(".")[0]):
        return compose(None, [f"model.name={source}", *overrides])
    near = suggest(source, [*bundled.names(), *list_models()])
    raise UserError(f"{source}: is no run folder, no recipe and no model of timm{near}")


def what_is_measured(run: Run, folder: Path, weights: str) -> list[str]:
    """Say which weights of a run folder are measured, and on what."""
    names = {"best": "weights.safetensors", "last": "checkpoints/last.pt"}
    file = folder / names[weights] if weights in names else Path(weights)
    examples = (
        f"{sum(run.data.val_counts):,} examples"
        if run.data.val_counts
        else f"{len(run.data.val):,} batches"
    )
    return [
        f"weights: {file} ({run.recipe.model.name})",
        f"data: {run.data.summary}",
        f"measured on {examples} of validation, on {run.device.describe()}",
    ]


def _train(run: Run, checkpointer: Checkpointer) -> Result:
    """Train to the end and write what is left behind, however it ends.

    Raises:
        Interrupted: the user stopped the run; it can be resumed.
        TrainingError: the run cannot go on, or a file cannot be written.
    """
    try:
        with interruptible() as interrupted:
            try:
                fit(run, checkpointer, interrupted=interrupted)
            except BaseException as error:
                with suppress(WriteError):  # what failed first is what to tell of
                    finish(run, checkpointer, _ending(error))
                lost = _lost(error, run, checkpointer.watch.last_good)
                if lost and interrupted():
                    raise KeyboardInterrupt from None  # the other process was told to stop as well
                if lost:
                    raise TrainingError(lost) from None
                raise
            else:
                ending = Ending(Status.FINISHED)
                if run.stop_reason:
                    ending = Ending(Status.STOPPED_EARLY, run.stop_reason)
                return finish(run, checkpointer, ending)
            finally:
                run.data.close()  # here, where no signal interrupts it
    finally:
        run.device.close()


def _ending(error: BaseException) -> Ending:
    """Return how a run ended that is not finished."""
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return Ending(Status.INTERRUPTED)
    if isinstance(error, TrainingError | UserError):  # a UserError: an image that cannot be read
        return Ending(Status.FAILED, str(error))
    return Ending(Status.FAILED, f"{type(error).__name__}: {error}")


def _lost(error: BaseException, run: Run, last_good: str) -> str:
    """Say in one line which process this one lost, if that is what an error of torch means; else
    nothing.
    """
    # torch raises it wherever the main process is at that moment, in a plugin too, which is then
    # blamed.
    raised = error.__cause__ if isinstance(error, PluginError) else error
    text = str(raised) if isinstance(raised, RuntimeError) else ""
    if found := _WORKER.search(text):
        return (
            f"a data worker was ended from outside ({found[1] or found[2]}), most often because "
            "memory ran out; lower data.workers or data.batch_size; last good checkpoint: "
            f"{last_good}"
        )
    if run.device.world > 1 and _RANK.search(text):
        return (
            f"rank {run.device.rank}: lost another rank, which has ended; its own message says why"
        )
    return ""


_WORKER = re.compile(
    r"DataLoader worker \(pid.*?\) (?:is killed by (signal: [^.]*)|(exited unexpectedly))"
)
_RANK = re.compile(r"gloo|NCCL|Connection (closed|reset) by peer", re.IGNORECASE)


def finish(run: Run, checkpointer: Checkpointer, ending: Ending) -> Result:
    """Write metrics.csv, report.html and at last summary.json, which says that all is written."""
    folder, summary = run.folder, _summary(run, checkpointer, ending)
    if folder is None or run.step == 0:
        return Result(run, History(), summary, folder)
    history = History.read(folder / "metrics.jsonl")
    atomically(folder / "metrics.csv", history.write_csv)
    write_report(folder, list(run.plugins.values()), summary)
    write_text(folder / "summary.json", summary_text(summary))
    return Result(run, history, summary, folder)


def _summary(run: Run, checkpointer: Checkpointer, ending: Ending) -> dict[str, Any]:
    outcome, best = checkpointer.outcome, None
    if outcome.best:
        first = outcome.best[0]
        best = {
            "metric": run.recipe.checkpoint.metric,
            "value": first["value"],
            "epoch": first["epoch"] + 1,
            **first["metrics"],
        }
    return {
        "status": str(ending),
        "model": run.recipe.model.name,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "data": run.data.summary,
        "seed": run.recipe.seed,
        "steps": run.step,
        "epochs": run.epoch,
        "effective_batch_size": run.data.train.examples_per_step,
        "seconds": round(outcome.seconds, 2),
        "final": outcome.final,
        "best": best,
        "notes": run.log.notes,
    }
