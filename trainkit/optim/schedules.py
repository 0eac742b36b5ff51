"""The learning-rate schedule that a recipe names, from timm's factory, made to fit the run.

timm adds a prefixed warm-up, a cooldown and further cycles to the length of a run; here
`train.epochs` is the length, and they have their place within it. What a schedule has no use for is
refused, and what would first act after the end of the run is noted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import timm.scheduler
import torch
from torch.optim import Optimizer

from trainkit.config.optimizer import SchedulerSpec
from trainkit.config.recipe import Recipe
from trainkit.errors import Problem, RecipeError, first_line
from trainkit.hooks.run import Scheduler
from trainkit.optim.schedule_args import (
    Args,
    Cycles,
    Ending,
    Multistep,
    Rsqrt,
    Shifted,
    Step,
    read_args,
)


@dataclass(frozen=True)
class _Length:
    """How long a run is, and what of it the warm-up takes, in epochs and in the steps of its
    schedule, which are as long as an epoch where the rate changes between epochs only.
    """

    epochs: int
    steps_per_epoch: int
    warmup_epochs: float

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def ends_before(self, epoch: float) -> bool:
        """Return whether what a schedule does `epoch` epochs after the start would come after
        the last step.
        """
        return epoch * self.steps_per_epoch > self.steps - 1


class BetweenEpochs:
    """A schedule that counts epochs, for a loop that tells of every step: validations, and whether
    there are any, do not matter to it.

    Args:
        schedule: timm's, made with `step_on_epochs`.
        steps_per_epoch: of the run.
    """

    def __init__(self, schedule: Scheduler, steps_per_epoch: int) -> None:
        self._schedule, self._steps_per_epoch = schedule, steps_per_epoch

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        """Set the learning rate of the next epoch after the last step of one."""
        epochs, within = divmod(num_updates, self._steps_per_epoch)
        if not within:
            self._schedule.step(epochs, metric)

    def step(self, epoch: int, metric: float | None = None) -> None:
        """Do nothing: the rate of the next epoch is set already."""

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule's own state."""
        return self._schedule.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put it back."""
        self._schedule.load_state_dict(state_dict)


def build_scheduler(
    optimizer: Optimizer, recipe: Recipe, steps_per_epoch: int
) -> tuple[Scheduler, list[str]]:
    """Return timm's schedule of the recipe over a run, and notes on settings that never act in it.

    With `interval: epoch` it moves after the last step of an epoch, as in timm's script: the first
    epoch has the rate with which a warm-up begins, and epoch e that of e whole epochs.

    Raises:
        RecipeError: a setting is unknown, of no use to this schedule, or against its sense.
    """
    spec = recipe.scheduler
    unit = steps_per_epoch
    if spec.interval == "epoch":
        unit = 1
    length = _Length(recipe.train.epochs, unit, spec.warmup_epochs)
    args, problems = read_args(recipe)
    peak = max(group.get("initial_lr", group["lr"]) for group in optimizer.param_groups)
    problems += _against(recipe, args, peak)
    if args is None or problems:
        raise RecipeError(problems)
    location = recipe.raw.nearest("scheduler", "args" if spec.args else "name")
    try:
        settings = _fitted(spec, args, length)
        trial = _create(torch.optim.SGD([torch.zeros(1)], lr=peak), spec, settings, unit)
        for step in _steps_to_try(settings, length):
            _check_rate(trial, step)
        scheduler = _create(optimizer, spec, settings, unit)
    except (ValueError, TypeError, ArithmeticError, RuntimeError, AssertionError) as error:
        raise RecipeError(
            [Problem(location, "scheduler", f"timm cannot make {spec.name}: {first_line(error)}")]
        ) from None
    if spec.interval == "epoch":
        scheduler = BetweenEpochs(scheduler, steps_per_epoch)
    return scheduler, _notes(spec, args, length)


def _against(recipe: Recipe, args: Args | None, peak: float) -> list[Problem]:
    """Return the settings that would turn the schedule round, or leave it no time."""
    spec, epochs, where = recipe.scheduler, recipe.train.epochs, recipe.raw.nearest
    problems = []
    cooldown = 0.0
    if isinstance(args, Ending):
        cooldown = args.cooldown_epochs
    if spec.warmup_epochs + cooldown >= epochs and spec.name != "constant":
        taken = f"{spec.warmup_epochs}" + (f" and a cooldown of {cooldown:g}" if cooldown else "")
        wrong = f"{taken} leaves none of {epochs} epochs"
        problems.append(
            Problem(where("scheduler", "warmup_epochs"), "scheduler.warmup_epochs", wrong)
        )
    if isinstance(args, Ending) and spec.min_lr > peak:
        wrong = (
            f"{spec.min_lr:g} is above the peak of {peak:g}: the rate would rise to it; lower it"
        )
        problems.append(Problem(where("scheduler", "min_lr"), "scheduler.min_lr", wrong))
    if spec.warmup_epochs and spec.warmup_lr > peak:
        wrong = (
            f"{spec.warmup_lr:g} is above the peak of {peak:g}: the rate would fall to it; lower it"
        )
        problems.append(Problem(where("scheduler", "warmup_lr"), "scheduler.warmup_lr", wrong))
    if isinstance(args, Rsqrt) and args.stable_timescale is None and not spec.warmup_epochs:
        wrong = (
            "rsqrt takes its time scale from the warm-up; set scheduler.warmup_epochs or "
            "args.stable_timescale"
        )
        problems.append(Problem(where("scheduler", "name"), "scheduler.name", wrong))
    if isinstance(args, Cycles) and args.cycle_limit > 1:
        last = peak * args.cycle_decay ** (args.cycle_limit - 1)
        if last < spec.min_lr <= peak:
            wrong = f"the last cycle would begin at {last:.3g}, below scheduler.min_lr; raise it"
            problems.append(
                Problem(
                    where("scheduler", "args", "cycle_decay"), "scheduler.args.cycle_decay", wrong
                )
            )
    return problems


def _fitted(spec: SchedulerSpec, args: Args, length: _Length) -> dict[str, Any]:
    """Return timm's arguments, with what it would add to the length of the run taken off the
    decay instead.
    """
    settings = args.model_dump(exclude_unset=True)
    taken = settings.pop("cooldown_epochs", 0.0)
    if isinstance(args, Cycles) and args.warmup_prefix:
        taken += spec.warmup_epochs
    epochs: float = length.epochs - taken if taken else length.epochs
    if isinstance(args, Cycles) and args.cycle_limit > 1:
        mul, count = args.cycle_mul, args.cycle_limit
        epochs /= count if mul == 1 else (mul**count - 1) / (mul - 1)
        if min(epochs, epochs * mul ** (count - 1)) * length.steps_per_epoch < 1:
            raise ValueError(
                f"of {count} cycles in {length.steps} {spec.interval}s one is shorter than one "
                f"{spec.interval}"
            )
    settings["num_epochs"] = epochs
    if args.noise is not None and epochs != length.epochs:
        # timm's shares are of the first cycle, here they are of the run.
        settings["noise"] = [share * length.epochs / epochs for share in args.noise]
    return settings


def _create(
    optimizer: Optimizer, spec: SchedulerSpec, settings: dict[str, Any], unit: int
) -> Scheduler:
    scheduler, _ = timm.scheduler.create_scheduler_v2(
        optimizer,
        sched=spec.name,
        warmup_epochs=spec.warmup_epochs,
        warmup_lr=spec.warmup_lr,
        min_lr=spec.min_lr,
        step_on_epochs=spec.interval == "epoch",
        updates_per_epoch=unit,
        **settings,
    )
    return cast(Scheduler, scheduler)


def _steps_to_try(settings: dict[str, Any], length: _Length) -> Iterator[int]:
    """Yield the steps at which a schedule may break: the ends, its corners, and some hundreds
    between.
    """
    count, per_epoch = length.steps, length.steps_per_epoch
    cycles = settings.get("cycle_limit", 1)
    corners = [0.0, length.warmup_epochs, length.epochs, *settings.get("decay_milestones", ())]
    for i in range(min(cycles, 100)):
        mul = settings.get("cycle_mul", 1.0)
        if mul == 1:
            start = i
        else:
            start = (mul**i - 1) / (mul - 1)
        corners.append(start * settings["num_epochs"])
    near = set()
    for corner in corners:
        for d in (-2, -1, 0, 1, 2):
            near.add(round(corner * per_epoch) + d)
    yield from sorted(
        {step for step in near if 0 <= step <= count} | set(range(0, count, max(1, count // 500)))
    )


def _check_rate(scheduler: Any, step: int) -> None:
    """Refuse a rate that no optimizer can take; `step` is one of the schedule's own."""
    scheduler.step_update(step)  # a schedule listens to one of the two
    scheduler.step(step)
    (group,) = scheduler.optimizer.param_groups
    rate = group["lr"]
    if isinstance(rate, complex) or not math.isfinite(rate) or rate < 0:
        raise ValueError(f"its rate at step {step} is {rate}")


def _notes(spec: SchedulerSpec, args: Args, length: _Length) -> list[str]:
    """Return what the schedule's settings say that never happens in this run."""
    notes, end = [], f"this run has {length.epochs} epochs"
    unset = set()
    for name in type(args).model_fields:
        if name not in args.model_fields_set:
            unset.add(name)
    default = " (timm's default)"
    shift = 0.0
    if isinstance(args, Shifted) and args.warmup_prefix:
        shift = spec.warmup_epochs
    if isinstance(args, Step) and length.ends_before(args.decay_epochs + shift):
        said = f"{args.decay_epochs:g}{default if 'decay_epochs' in unset else ''}"
        notes.append(
            f"scheduler.args.decay_epochs: the rate first falls after {said} epochs, and {end}: it "
            "never falls"
        )
    if isinstance(args, Multistep):
        # A milestone acts one step early in timm.
        late = [
            m
            for m in args.decay_milestones
            if length.ends_before(m + shift - 1 / length.steps_per_epoch)
        ]
        if late:
            said = ", ".join(f"{m:g}" for m in late)
            if "decay_milestones" in unset:
                said += default
            never = "they never come"
            if len(late) == len(args.decay_milestones):
                never = "the rate never falls"
            notes.append(f"scheduler.args.decay_milestones: {said} after the end, {end}: {never}")
    if args.noise is not None and length.ends_before(args.noise[0] * length.epochs):
        notes.append(
            f"scheduler.args.noise: begins at {args.noise[0]:g} of the run, where no "
            f"{spec.interval} is left"
        )
    if spec.name == "constant" and spec.warmup_epochs >= length.epochs:
        notes.append(
            f"scheduler.warmup_epochs: {spec.warmup_epochs:g}, and {end}: the peak is never reached"
        )
    if not spec.warmup_epochs:
        if spec.warmup_lr != SchedulerSpec.model_fields["warmup_lr"].default:
            notes.append("scheduler.warmup_lr: does nothing without warmup_epochs")
        if isinstance(args, Shifted) and args.warmup_prefix:
            notes.append("scheduler.args.warmup_prefix: does nothing without warmup_epochs")
    if spec.min_lr and not isinstance(args, Ending):
        notes.append(f"scheduler.min_lr: does nothing, because {spec.name} has no lowest rate")
    return notes
