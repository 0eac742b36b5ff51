"""Every point at which a plugin can act.

There are two kinds of hook, and only two.

A **value** hook produces one thing. Core answers last; one plugin may answer instead; any plugin
may wrap the answer with `@hookimpl(wrapper=True)`: a generator that yields once, receives the value
and returns what it makes of it.

A **moment** hook tells every plugin, in recipe order, that something has happened. Nobody answers.

An implementation takes the arguments that it needs and leaves the others out. `run`, always the
last, is the run itself, as far as it is built. Plugins may publish hooks of their own by naming
such a class in `Plugin.hookspecs`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from trainkit.config.recipe import Recipe
    from trainkit.data.types import Data
    from trainkit.hooks.run import Metrics, ParamGroups, Predictions, Run, Scheduler
    from trainkit.log.records import Record
    from trainkit.training.window import Window

PROJECT = "trainkit"

hookimpl = pluggy.HookimplMarker(PROJECT)
moment = pluggy.HookspecMarker(PROJECT)
value = pluggy.HookspecMarker(PROJECT)(firstresult=True)


class Hooks:
    """The specification of core's hooks, in the order in which they are called; also the type of
    `run.hook`.
    """

    # What a run is built from, each from what was built before.

    @value
    def build_data(self, recipe: Recipe, run: Run) -> Data:
        """Value: the training and validation data. Default: the source that `data:` names.

        Args:
            recipe: what the user wants, checked.
        """
        raise NotImplementedError

    @value
    def build_model(self, recipe: Recipe, run: Run) -> nn.Module:
        """Value: the model, complete: nothing may add or replace parameters later. Default:
        `timm.create_model`.

        Args:
            recipe: what the user wants, checked.
        """
        raise NotImplementedError

    @value
    def build_param_groups(self, model: nn.Module, run: Run) -> ParamGroups:
        """Value: optimizer groups that cover every trainable parameter once. Default: decay and no
        decay.

        Args:
            model: complete, on its device.
        """
        raise NotImplementedError

    @value
    def build_optimizer(self, param_groups: ParamGroups, run: Run) -> Optimizer:
        """Value: the optimizer over those groups. Default: timm's factory.

        Args:
            param_groups: dicts with `params`, and what differs from the optimizer's
                defaults.
        """
        raise NotImplementedError

    @value
    def build_scheduler(self, optimizer: Optimizer, run: Run) -> Scheduler:
        """Value: the learning-rate schedule, told after every step. Default: timm's schedulers.

        Args:
            optimizer: its groups have their peak rates in `lr`.
        """
        raise NotImplementedError

    @value
    def build_metrics(self, run: Run) -> Metrics:
        """Value: what is measured in validation. Default: torchmetrics for classification."""
        raise NotImplementedError

    # The run itself.

    @moment
    def on_fit_start(self, run: Run) -> None:
        """Moment: everything is built and, when resuming, restored; the first step is next."""

    @moment
    def on_epoch_start(self, run: Run) -> None:
        """Moment: `run.epoch` begins (not repeated when a run resumes inside it)."""

    @value
    def select_trainable(self, model: nn.Module, run: Run) -> Collection[str]:
        """Value, once per epoch: names of the parameters that train in it. Default: all that the
        optimizer holds.

        Args:
            model: as it stands at the start of the epoch.
        """
        raise NotImplementedError

    @value
    def prepare_batch(self, batch: Any, run: Run) -> Any:
        """Value: one training micro-batch as the loss will see it. Default: move it to the device.

        Args:
            batch: as the loader gave it, on the host.
        """
        raise NotImplementedError

    @value
    def compute_loss(self, model: nn.Module, batch: Any, run: Run) -> Tensor:
        """Value: the mean loss of one micro-batch, a scalar; autocast is on. Default: the next two
        hooks.

        Args:
            model: in training mode.
            batch: as `prepare_batch` returned it.
        """
        raise NotImplementedError

    @value
    def compute_output(self, model: nn.Module, batch: Any, run: Run) -> Any:
        """Value: what the model makes of one training micro-batch; autocast is on. Default: the
        model's logits.

        Args:
            model: in training mode.
            batch: as `prepare_batch` returned it.
        """
        raise NotImplementedError

    @value
    def compute_criterion(self, output: Any, batch: Any, run: Run) -> Tensor:
        """Value: the mean loss of that output, a scalar; autocast is on. Default: the criterion of
        `train.loss`.

        Args:
            output: of `compute_output`.
            batch: as `prepare_batch` returned it.
        """
        raise NotImplementedError

    @moment
    def before_optimizer_step(
        self, model: nn.Module, optimizer: Optimizer, window: Window, run: Run
    ) -> None:
        """Moment, once per step: gradients are final (whole window, unscaled, reduced), parameters
        untouched.

        Args:
            model: with its gradients in `.grad`.
            optimizer: about to step.
            window: differentiates the loss of this step again, at other parameters.
        """

    @moment
    def after_optimizer_step(self, model: nn.Module, batch: Any, loss: Tensor, run: Run) -> None:
        """Moment, once per step: parameters have moved. `batch` is the window's last, `loss` its
        mean.

        Args:
            model: after the step.
            batch: the last micro-batch of the window, prepared.
            loss: the mean loss of the window on this rank, a detached scalar.
        """

    @moment
    def on_log(self, record: Record, run: Run) -> None:
        """Moment: the values of one step or validation are on the host and final (rank 0 only).

        Args:
            record: step, epoch, and the values by name.
        """

    @moment
    def on_evaluate_start(self, model: nn.Module, run: Run) -> None:
        """Moment: validation begins; what `model` holds now is what is measured and kept as best
        weights.

        Args:
            model: its modules are not yet in evaluation mode.
        """

    @value
    def evaluate_batch(self, model: nn.Module, batch: Any, run: Run) -> Predictions:
        """Value: logits and targets of one validation batch, which go to the metrics. Default: the
        model's.

        Args:
            model: in evaluation mode.
            batch: as the loader of validation gave it, on the host.
        """
        raise NotImplementedError

    @moment
    def on_best(self, model: nn.Module, metrics: Mapping[str, float], run: Run) -> None:
        """Moment: the validation just made is the best so far; its weights are kept as such.

        Args:
            model: with the weights that were measured and kept, still in evaluation mode.
            metrics: by name, over all ranks.
        """

    @moment
    def on_evaluate_end(self, model: nn.Module, metrics: Mapping[str, float], run: Run) -> None:
        """Moment: validation is over and its metrics are known.

        Args:
            model: its modules are back in the modes that they had before.
            metrics: by name, over all ranks.
        """

    @moment
    def on_epoch_end(self, run: Run) -> None:
        """Moment: the epoch's steps and validation are done; the checkpoint is written next."""

    @moment
    def on_fit_end(self, run: Run) -> None:
        """Moment: training is over, for whatever reason `run.stop_reason` gives; the report is
        written next.
        """
