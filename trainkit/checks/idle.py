"""Settings that never act in a run: found once everything is built, and noted before training."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from pydantic import BaseModel

from trainkit.config.optimizer import OptimizerSpec, SchedulerSpec
from trainkit.data.loader import ShuffledStream
from trainkit.errors import PluginError
from trainkit.hooks.guard import ask
from trainkit.hooks.run import Run

_LOSS = ("compute_loss", "compute_output", "compute_criterion")


def idle_notes(run: Run) -> Iterator[str]:
    """Yield a note for each setting of the recipe, core's and the plugins', that never acts in
    this run.
    """
    yield from _of_train(run)
    yield from _of_checkpoints(run)
    for hook, spec, names in (
        ("build_optimizer", run.recipe.optimizer, ("momentum", "fallback", "args")),
        ("build_scheduler", run.recipe.scheduler, tuple(SchedulerSpec.model_fields)),
    ):
        yield from _replaced(run, hook, spec, names)
    for name, plugin in run.plugins.items():
        found = ask(plugin, name, "idle", run)
        if not isinstance(found, dict):
            raise PluginError(
                f"plugin {name}: idle returned {found!r:.80}; it must return reasons by option"
            )
        for option, why in found.items():
            if why:
                yield f"plugins.{name}.{option}: {why}"


def _of_train(run: Run) -> Iterator[str]:
    spec, steps = run.recipe.train, run.data.train.steps_per_epoch
    if spec.evaluate_every > spec.epochs:
        only = f"this run has {spec.epochs}: only its end is measured"
        yield f"train.evaluate_every: {spec.evaluate_every} epochs, and {only}"
    if _is_set(spec, "log_every") and spec.log_every > run.total_steps:
        yield (
            f"train.log_every: {spec.log_every} steps, and this run has {run.total_steps}: only "
            "ends of epochs log"
        )
    if isinstance(run.data.train, ShuffledStream):
        most = max(len(run.data.train.window(0, position).weights) for position in (0, steps - 1))
        if most < spec.accumulate:
            yield (
                f"train.accumulate: {spec.accumulate} micro-batches, and an epoch has {most}: each "
                "is one step"
            )
    losses = chain.from_iterable(_others(run, hook) for hook in _LOSS)
    if run.data.aug_splits > 1 and not any(losses):
        yield (
            f"data.augment.splits: the loss is the mean over all {run.data.aug_splits} splits, "
            "because no plugin makes another of them"
        )
    if spec.channels_last and len(run.data.input_size) != 3:
        yield "train.channels_last: does nothing, because these data are no images"


def _of_checkpoints(run: Run) -> Iterator[str]:
    spec, train = run.recipe.checkpoint, run.recipe.train
    if spec.every_steps is not None and spec.every_steps >= run.total_steps:
        yield (
            f"checkpoint.every_steps: {spec.every_steps:,} steps, and this run has "
            f"{run.total_steps:,}"
        )
    validations = -(-train.epochs // train.evaluate_every)
    if _is_set(spec, "keep_best") and spec.keep_best > validations:
        yield (
            f"checkpoint.keep_best: {spec.keep_best} weights, and this run is measured "
            f"{validations} time(s)"
        )


def _replaced(
    run: Run, hook: str, spec: OptimizerSpec | SchedulerSpec, names: tuple[str, ...]
) -> Iterator[str]:
    """Yield a note for each setting of what a plugin makes in core's place."""
    others = _others(run, hook)
    section = hook.removeprefix("build_")
    for name in names if others else ():
        if _is_set(spec, name):
            verb = "is"
            if name == "args":
                verb = "are"
            taken = "the schedule"
            if section == "optimizer":
                taken = spec.name
            yield f"{others[0]} takes the place of {taken}: {section}.{name} {verb} not used"


def _others(run: Run, hook: str) -> list[str]:
    """Return the plugins that answer a value hook in core's place."""
    providers = []
    for i in getattr(run.hook, hook).get_hookimpls():
        if not i.wrapper and i.plugin_name != "core":
            providers.append(i.plugin_name)
    return providers


def _is_set(spec: BaseModel, name: str) -> bool:
    """Return whether an option has another value than its default: a resolved recipe writes
    every default out.
    """
    default: Any = type(spec).model_fields[name].default
    return bool(getattr(spec, name) != default)
