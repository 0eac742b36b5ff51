"""From a recipe to a run that is ready to train. Each part is made from the ones before it,
never repaired later.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pluggy
import timm
import torch
from torch import nn

from trainkit.checks.idle import idle_notes
from trainkit.checks.trial import trial_problems
from trainkit.config.raw import Given
from trainkit.config.recipe import Recipe, read_recipe
from trainkit.data.loader import OrderedStream, ShuffledStream
from trainkit.errors import Location, PluginError, Problem, RecipeError, UserError, suggest
from trainkit.hooks.entries import plugins_of
from trainkit.hooks.guard import naming
from trainkit.hooks.manager import check_plugins, make_manager
from trainkit.hooks.order import Entry
from trainkit.hooks.run import ParamGroups, Run
from trainkit.hooks.specs import Hooks
from trainkit.log.records import Log
from trainkit.optim.lookahead import PREFIX, EpochEnds
from trainkit.seeds import derive_seed, seed_everything
from trainkit.training.defaults import Autocast, Defaults, check_names
from trainkit.training.device import Device


@dataclass(frozen=True)
class Setup:
    """A recipe that has been checked as far as it can be without making anything, and its
    plugins in order.
    """

    recipe: Recipe
    entries: Sequence[Entry]


def compose(given: Given | None, overrides: Sequence[str] = ()) -> Setup:
    """Read a recipe, or overrides alone, and make its plugins.

    Raises:
        RecipeError: everything that is wrong, at once.
        UserError: a file cannot be read.
    """
    recipe, source, problems = read_recipe(given, overrides)
    entries, found = plugins_of(source)
    problems += found + check_names(source)
    problems += check_plugins(entries)
    if recipe is None or problems:
        raise RecipeError(problems)
    return Setup(recipe, entries)


@naming()
def build(
    setup: Setup,
    folder: Path | None = None,
    observers: Sequence[object] = (),
    *,
    registered: Callable[[pluggy.PluginManager], None] | None = None,
) -> Run:
    """Make every part of a run.

    Args:
        setup: the checked recipe and its plugins.
        folder: where rank 0 writes; None to write nothing.
        observers: further objects with hooks (a progress display), asked and told after the
            plugins.
        registered: called with the manager before anything is built.

    Raises:
        UserError: something in the recipe cannot be made.
        PluginError: a plugin broke the rules of a hook.
    """
    recipe = setup.recipe
    device = Device(recipe)
    manager, problems = make_manager(setup.entries, Defaults(recipe.train.loss), observers)
    if problems:
        raise RecipeError(problems)
    manager.register(Autocast(), "precision")  # last, and so around everybody else
    if recipe.optimizer.name.startswith(PREFIX):
        manager.register(EpochEnds(), "lookahead")
    if registered is not None:
        registered(manager)
    writes = folder is not None and device.is_main
    log = Log(folder / "metrics.jsonl" if writes and folder is not None else None, device.average)
    plugins = {}
    for entry in setup.entries:
        plugins[entry.name] = entry.plugin
    run = Run(recipe, cast(Hooks, manager.hook), plugins, device, log, folder if writes else None)
    seed_everything(derive_seed(recipe.seed, "model"))
    with _placed(recipe, "data"):
        run.data = run.hook.build_data(recipe=recipe, run=run)
    for note in run.data.notes:
        run.log.note(note)
    for stream in (run.data.train, run.data.val):
        if isinstance(stream, ShuffledStream | OrderedStream):
            stream.note = log.note
    with _placed(recipe, "model"):
        run.model = _prepare(run.hook.build_model(recipe=recipe, run=run), run)
    groups = run.hook.build_param_groups(model=run.model, run=run)
    _check_coverage(run.model, groups)
    run.optimizer = run.hook.build_optimizer(param_groups=groups, run=run)
    run.scheduler = run.hook.build_scheduler(optimizer=run.optimizer, run=run)
    run.metrics = run.hook.build_metrics(run=run)
    problems = [*_task_problems(run), *_metric_problems(run)]
    problems = problems or trial_problems(run)
    if problems:
        raise RecipeError(problems)
    if recipe.train.compile:
        run.model.compile()
    for note in idle_notes(run):
        run.log.note(note)
    # What plugins drew while building must not shift the stream of dropout; each rank has a stream
    # of its own.
    seed_everything(derive_seed(recipe.seed, "fit", device.rank))
    return run


@contextmanager
def _placed(recipe: Recipe, section: str) -> Iterator[None]:
    """Put the line of a section before what is refused while it is made, where the message names
    no line itself.
    """
    try:
        yield
    except RecipeError:
        raise
    except UserError as error:
        if re.match(r"command line|\S.*?:\d+: ", str(error)):
            raise
        raise UserError(f"{recipe.raw.nearest(section)}: {section}: {error}") from error


def _prepare(model: nn.Module, run: Run) -> nn.Module:
    """Apply the recipe's `train:` switches to the finished model and put it on the device."""
    spec, where = run.recipe.train, run.recipe.raw.nearest
    if spec.grad_checkpointing:
        try:
            model.set_grad_checkpointing(True)  # type: ignore[operator]
        except (AttributeError, AssertionError):
            name = run.recipe.model.name
            location = where("train", "grad_checkpointing")
            raise UserError(
                f"{location}: train.grad_checkpointing: timm's {name} does not offer it; set false"
            ) from None
    if spec.sync_batchnorm:
        model = timm.layers.convert_sync_batchnorm(model)
    model = model.to(run.device.torch)
    if spec.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model


def _check_coverage(model: nn.Module, groups: ParamGroups) -> None:
    """Refuse groups that leave a trainable parameter out, or have one twice."""
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    seen: set[int] = set()
    for group in groups:
        for parameter in group["params"]:
            if id(parameter) in seen:
                name = names.get(id(parameter), "one that the model does not have")
                raise PluginError(f"build_param_groups: parameter {name} is in two groups")
            seen.add(id(parameter))
    missing = [name for key, name in names.items() if key not in seen]
    if missing:
        shown = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        raise PluginError(
            f"build_param_groups: {len(missing)} trainable parameter(s) are in no group: {shown}"
        )


def _task_problems(run: Run) -> list[Problem]:
    """Say where the loss is for another kind of target, and where inputs have gaps that the
    model cannot take.
    """
    where, data = run.recipe.raw.nearest, run.data
    loss = run.recipe.train.loss.name
    problems = []
    if (loss == "mse") != (data.targets == "numbers"):
        fix = "use cross_entropy"
        if data.targets == "numbers":
            fix = "set it to mse, and checkpoint to {metric: rmse, mode: min}"
        message = (
            f"{loss} is for {'numbers' if loss == 'mse' else 'classes'}, the targets are "
            f"{data.targets}; {fix}"
        )
        problems.append(Problem(where("train", "loss", "name"), "train.loss.name", message))
    if data.missing and not getattr(run.model, "takes_missing", False):
        message = (
            "some inputs are missing, and no plugin says what the model sees there; add one that "
            "does (`trainkit plugins` lists them)"
        )
        problems.append(Problem(where("data"), "data", message))
    return problems


def _metric_problems(run: Run) -> list[Problem]:
    known = list(run.metrics.keys())
    metric = run.recipe.checkpoint.metric
    if metric not in known:
        location = run.recipe.raw.nearest("checkpoint", "metric")
        plain = metric.removeprefix("val/")
        if plain in known:
            near = f"; did you mean {plain!r}?"
        else:
            near = suggest(metric, known)
        message = f"this run does not measure {metric!r}{near} (it measures: {', '.join(known)})"
        return [Problem(location, "checkpoint.metric", message)]
    # torchmetrics says which way its metrics improve; a plugin's own collection need not.
    measured = None
    if hasattr(run.metrics, "__getitem__"):
        measured = cast(Any, run.metrics)[metric]
    higher = getattr(measured, "higher_is_better", None)
    unsaid = run.recipe.where("checkpoint", "mode") == Location("default")
    if higher is False and unsaid:
        location = run.recipe.raw.nearest("checkpoint", "metric")
        return [
            Problem(
                location, "checkpoint.mode", f"less {metric} is better; set checkpoint.mode to min"
            )
        ]
    return []
