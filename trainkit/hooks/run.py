"""What outlives a training step, and the types that hooks exchange. Nothing trains in here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from trainkit.hooks.untouched import untouched

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from trainkit.config.recipe import Recipe
    from trainkit.data.types import Data
    from trainkit.hooks.plugin import Plugin
    from trainkit.hooks.specs import Hooks
    from trainkit.log.records import Log
    from trainkit.training.device import Device

P = TypeVar("P", bound="Plugin")

ParamGroups = list[dict[str, Any]]
"""Optimizer groups as torch takes them. Core adds `name` (the group's label) and `rule` (why it
is so).
"""


class Batch(NamedTuple):
    """Images [N, C, H, W] or rows [N, F], and classes [N], class probabilities [N, K] or numbers
    to predict [N, K].
    """

    inputs: Tensor
    targets: Tensor


class Predictions(NamedTuple):
    """What validation measures: logits [N, K] in float32 and classes [N]; or predicted numbers
    and true ones [N, K].
    """

    logits: Tensor
    targets: Tensor


class Scheduler(Protocol):
    """A learning-rate schedule as timm has them."""

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        """Set the learning rate for the step after `num_updates` steps."""

    def step(self, epoch: int, metric: float | None = None) -> None:
        """Tell the schedule that an epoch has ended, with the watched metric."""

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put it back."""


class Metrics(Protocol):
    """A collection of metrics as torchmetrics has them; `compute` is right across ranks."""

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count one batch."""

    def compute(self) -> Mapping[str, Any]:
        """Return the value of each metric over everything counted since `reset`, on all ranks
        together.
        """

    def reset(self) -> None:
        """Forget everything counted."""

    def keys(self) -> Iterable[str]:
        """Return the names of the metrics."""


@dataclass
class Run:
    """One training run: what hooks may read, and the two things they may set (`stop`, `log`).

    The parts are filled in one direction, each from those before it: data, model, optimizer,
    scheduler, metrics. A run is never pickled; checkpoints hold the states of its parts.
    """

    recipe: Recipe
    hook: Hooks
    plugins: Mapping[str, Plugin]
    device: Device
    log: Log
    folder: Path | None = None
    """The run folder, on the rank that writes; None elsewhere."""
    data: Data = field(init=False)
    model: nn.Module = field(init=False)
    optimizer: Optimizer = field(init=False)
    scheduler: Scheduler = field(init=False)
    metrics: Metrics = field(init=False)
    epoch: int = 0
    """The epoch under way, from 0."""
    step: int = 0
    """Optimizer steps taken since the start of training."""
    stop_reason: str = ""
    """Why training ends before its last epoch; empty while it does not."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.recipe.train.epochs * self.data.train.steps_per_epoch

    @property
    def peak_lr(self) -> float:
        """The recipe's peak learning rate: `optimizer.lr`, or what `optimizer.lr_base` comes to."""
        spec = self.recipe.optimizer
        return spec.lr or spec.peak_lr(self.data.train.examples_per_step)

    def plugin(self, kind: type[P]) -> P:
        """Return the plugin of this class that is on: one that yours names in `requires`.

        Raises:
            LookupError: no plugin of this class is on.
        """
        for plugin in self.plugins.values():
            if isinstance(plugin, kind):
                return plugin
        raise LookupError(f"no plugin of class {kind.__name__} is on; name it in `requires`")

    def past_end(self, step: int) -> str:
        """Return why the step of this number, from 1, never comes, for `Plugin.idle`; nothing
        where it comes.
        """
        total = self.total_steps
        if step > total:
            return f"{step:,} steps, and this run has {total:,}"
        return ""

    def stop(self, reason: str) -> None:
        """Ask for the end of training after the current epoch. The first reason given is the one
        reported.
        """
        self.stop_reason = self.stop_reason or str(reason)  # whatever a plugin gives; it is saved

    def untouched(self) -> AbstractContextManager[None]:
        """Return a context for looking: what calls of hooks in it change is put back; see
        `trainkit.hooks.untouched`.

        Every evaluation of a loss that is not a part of training belongs into one, or it shows in
        running statistics, random streams, and what other plugins log.
        """
        return untouched(self)
