"""Making a run longer: exactly as if it had been so long from the start, or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch

from trainkit.config.locations import dump, parse_value
from trainkit.config.recipe import Recipe
from trainkit.errors import UserError
from trainkit.hooks.run import Run, Scheduler
from trainkit.log.records import Log
from trainkit.training.build import compose


def recipe_before(
    now: Recipe, path: Path, overrides: Sequence[str], state: Mapping[str, Any]
) -> Recipe | None:
    """Return the recipe of a run so far, where it is to become longer; None where it stays as it
    is.

    Args:
        now: the recipe to go on with.
        path: the recipe in the run folder.
        overrides: what `now` has beyond it; only a larger `train.epochs` changes nothing that has
            been.
        state: the run's checkpoint.

    Raises:
        UserError: something else was changed, or the run would become shorter.
    """
    text, before = now.dump(), str(state["recipe"])
    if text == before:
        return None
    wanted, then = parse_value(text)[0], parse_value(before)[0]
    old = then["train"]["epochs"]
    then["train"]["epochs"] = now.train.epochs
    if dump(wanted) != dump(then):
        if overrides and compose(path).recipe.dump() == before:
            raise UserError(
                "with --resume only train.epochs can be set, to more; a resumed run keeps all else"
            )
        raise UserError(
            f"{path}: was changed since the checkpoint was written; restore it, or start a new run"
        )
    if now.train.epochs < old:
        raise UserError(
            f"{path.parent}: has train.epochs={old}; --resume can make a run longer, not shorter"
        )
    return compose(path, [f"train.epochs={old}"]).recipe


def check_longer(run: Run, was: Recipe, state: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the state to go on from as a longer run; until here that run would have had the same.

    Args:
        run: the longer run, just built.
        was: the recipe so far.
        state: the checkpoint.
        folder: of the run, for messages.

    Raises:
        UserError: its past would have been another.
    """
    old, new = was.train.epochs, run.recipe.train.epochs
    start = f"start a new run with train.epochs={new}"
    every = was.train.evaluate_every
    if state["stop_reason"]:
        raise UserError(
            f"{folder}: was stopped early ({state['stop_reason']}); a longer run would have been as"
            " well"
        )
    if state["epoch"] >= old and old % every:
        raise UserError(
            f"{folder}: validated after its last epoch, {old}, and a longer run would not have, "
            f"with train.evaluate_every={every}; {start}"
        )
    shorter = copy(run)
    shorter.recipe, shorter.log = was, Log()
    schedules = [_schedule(shorter), _schedule(run)]
    for step in range(1, state["step"] + 1):
        rates = [next(schedule) for schedule in schedules]
        if rates[0][1] != rates[1][1]:
            raise UserError(
                f"{folder}: over {new} epochs the {was.scheduler.name} schedule would have had "
                f"other learning rates so far (at step {step} {max(rates[1][1]):.6g} in place of "
                f"{max(rates[0][1]):.6g}); only one that does not look at the end, such as "
                f"constant or multistep, can be made longer; {start}"
            )
    kept, gone = [next(schedule)[0].state_dict() for schedule in reversed(schedules)]
    changed = {}
    for key, value in kept.items():
        if gone.get(key) != value:
            changed[key] = value
    # What building said of the old length is no longer so.
    said = [*run.log.notes, *(n for n in state["log"]["notes"] if n not in shorter.log.notes)]
    log = {**state["log"], "notes": list(dict.fromkeys(said))}
    return {**state, "scheduler": {**state["scheduler"], **changed}, "log": log}


def _schedule(run: Run) -> Iterator[tuple[Scheduler, list[float]]]:
    """Yield a schedule of the run from its start, on an optimizer of its own, and its learning
    rates at each step.
    """
    groups = []
    for group in run.optimizer.param_groups:
        scale = {}
        if "lr_scale" in group:
            scale = {"lr_scale": group["lr_scale"]}
        groups.append(
            {"params": [torch.zeros(1)], "lr": group.get("initial_lr", group["lr"]), **scale}
        )
    optimizer = torch.optim.SGD(groups)
    scheduler = run.hook.build_scheduler(optimizer=optimizer, run=run)
    step = 0
    while True:
        yield scheduler, [group["lr"] for group in optimizer.param_groups]
        step += 1
        scheduler.step_update(step)


def check_plugins(run: Run, folder: Path) -> None:
    """Raise a UserError where a plugin, restored, has done what it does at the end of a run."""
    for name, plugin in run.plugins.items():
        if why := plugin.at_its_end(run):
            raise UserError(f"{folder}: cannot be made longer: {name} {why}; start a new run")
