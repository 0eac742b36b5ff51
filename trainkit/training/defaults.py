"""Core's own answers to the value hooks, as an ordinary plugin object that is asked last."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from pathlib import Path
from typing import Any, cast

import timm
import timm.optim
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainkit.config.raw import RawRecipe
from trainkit.config.recipe import LossSpec, Recipe
from trainkit.data.build import build_source
from trainkit.data.types import Data
from trainkit.errors import Problem, RecipeError, UserError, first_line, suggest
from trainkit.hooks.run import Batch, Metrics, ParamGroups, Predictions, Run, Scheduler
from trainkit.hooks.specs import hookimpl
from trainkit.models.arguments import model_problems
from trainkit.models.row_models import register, row_models
from trainkit.models.weights import note_new_classifier, start_from
from trainkit.optim.fallback import fallback_of, has_fallback
from trainkit.optim.lookahead import PREFIX, base_name
from trainkit.optim.optimizers import build_optimizer
from trainkit.optim.param_groups import (
    decay_groups,
    idle_layer_decay,
    layer_groups,
    name_fallback,
)
from trainkit.optim.schedules import build_scheduler
from trainkit.training.metrics import classification_metrics, criterion, regression_metrics
from trainkit.training.trainable import optimized, trained


def check_names(raw: RawRecipe) -> list[Problem]:
    """Return the mistakes that only timm can tell: names of models and optimizers that it does not
    have.

    Values of the wrong type are left to the recipe's own check, so this works where that finds
    mistakes too.
    """
    problems = []

    model, optimizer = _name(raw.data.get("model")), _name(raw.data.get("optimizer"))
    if model:
        register(model)
    if model and ":" not in model and not timm.is_model(model.split(".")[0]):
        near = suggest(model, [*timm.list_models(), *row_models()])
        message = f"timm {timm.__version__} has no model {model!r}{near} (see timm.list_models())"
        problems.append(Problem(raw.nearest("model", "name"), "model.name", message))
    known = timm.optim.list_optimizers()
    if optimizer and base_name(optimizer) not in known:
        message = f"timm {timm.__version__} has no optimizer {optimizer!r}{_near(optimizer, known)}"
        problems.append(Problem(raw.nearest("optimizer", "name"), "optimizer.name", message))
    elif optimizer and timm.optim.get_optimizer_info(base_name(optimizer)).second_order:
        message = (
            f"{optimizer} differentiates the gradient again, which the loop does not prepare for; "
            "choose another"
        )
        problems.append(Problem(raw.nearest("optimizer", "name"), "optimizer.name", message))
    return problems


def _near(optimizer: str, known: Sequence[str]) -> str:
    if optimizer.startswith(PREFIX):
        known = [PREFIX + name for name in known]
    return suggest(optimizer, known)


def _name(section: Any) -> str | None:
    name = None
    if isinstance(section, dict):
        name = section.get("name")
    if isinstance(name, str):
        return name
    return None


class Defaults:
    """What a run does where no plugin provides something else.

    Args:
        loss: what the default `compute_loss` minimises.
    """

    def __init__(self, loss: LossSpec) -> None:
        self.criterion = criterion(loss)

    @hookimpl(trylast=True)
    def build_data(self, recipe: Recipe, run: Run) -> Data:
        """The source that `data:` names."""
        return build_source(recipe, run.device)

    @hookimpl(trylast=True)
    def build_model(self, recipe: Recipe, run: Run) -> nn.Module:
        """The timm model, with as many outputs as the data have classes."""
        spec = recipe.model
        problems = model_problems(recipe, run.data.input_size)
        if problems:
            raise RecipeError(problems)
        model = self._make_model(recipe, run)
        notes = []
        if spec.pretrained and not spec.checkpoint:
            notes = note_new_classifier(model)
        if spec.checkpoint:
            try:
                notes = start_from(model, Path(spec.checkpoint))
            except UserError as error:
                location = recipe.raw.nearest("model", "checkpoint")
                raise UserError(f"{location}: model.checkpoint: {error}") from None
        for note in notes:
            run.log.note(note)
        return model

    def _make_model(self, recipe: Recipe, run: Run) -> nn.Module:
        spec = recipe.model
        if spec.num_classes is None:
            classes = run.data.num_classes
        else:
            classes = spec.num_classes
        arguments: dict[str, Any] = {
            "num_classes": classes,
            "in_chans": _in_chans(recipe, run.data),
            **spec.args,
        }
        try:
            if len(run.data.input_size) == 1:
                return cast(nn.Module, _create(recipe, arguments))
            try:
                # Models with position embeddings must know the size of the image; the others refuse
                # to be told.
                return cast(
                    nn.Module, _create(recipe, arguments | {"img_size": run.data.input_size[-1]})
                )
            except TypeError as error:
                if "img_size" not in str(error):
                    raise
                return cast(nn.Module, _create(recipe, arguments))
        except Exception as error:  # an argument of the wrong kind may raise anything
            location = recipe.raw.nearest("model", *(("args",) if spec.args else ()))
            named = ""
            if not isinstance(error, TypeError | ValueError):
                named = f"{type(error).__name__}: "
            raise UserError(
                f"{location}: model: timm cannot make {spec.name}: {named}{first_line(error)}"
            ) from None

    @hookimpl(trylast=True)
    def build_param_groups(self, model: nn.Module, run: Run) -> ParamGroups:
        """Weight decay for matrices and kernels, none for vectors and what the model exempts;
        timm's layer decay; Muon's fallback.
        """
        spec = run.recipe.optimizer
        fallback, words = fallback_of(model, run.recipe)
        if spec.layer_decay is None:
            groups = decay_groups(model, spec.weight_decay, fallback)
        else:
            before = len(trained(model))
            groups = layer_groups(model, spec, fallback)
            for note in idle_layer_decay(spec, groups, before, len(trained(model))):
                run.log.note(note)
        if has_fallback(spec.name):
            name_fallback(groups, words)
        return groups

    @hookimpl(trylast=True)
    def build_optimizer(self, param_groups: ParamGroups, run: Run) -> Optimizer:
        """The optimizer of timm's factory."""
        return build_optimizer(param_groups, run.recipe, run.peak_lr, run.device.torch)

    @hookimpl(trylast=True)
    def build_scheduler(self, optimizer: Optimizer, run: Run) -> Scheduler:
        """The schedule of timm's factory, fitted to the run and updated at every step."""
        scheduler, notes = build_scheduler(optimizer, run.recipe, run.data.train.steps_per_epoch)
        for note in notes:
            run.log.note(note)
        return scheduler

    @hookimpl(trylast=True)
    def build_metrics(self, run: Run) -> Metrics:
        """Accuracy, negative log likelihood and calibration of classes; errors of numbers."""
        if run.data.targets == "numbers":
            measured = regression_metrics()
        else:
            measured = classification_metrics(run.data.num_classes)
        return cast(Metrics, measured.to(run.device.torch))

    @hookimpl(trylast=True)
    def select_trainable(self, run: Run) -> Collection[str]:
        """All that the optimizer holds."""
        return optimized(run)

    @hookimpl(trylast=True)
    def prepare_batch(self, batch: Any, run: Run) -> Any:
        """The batch on the device, in the recipe's memory format."""
        batch = run.device.move(batch)
        if run.recipe.train.channels_last and isinstance(batch, Batch) and batch.inputs.ndim == 4:
            batch = batch._replace(
                inputs=batch.inputs.contiguous(memory_format=torch.channels_last)
            )
        return batch

    @hookimpl(trylast=True)
    def compute_loss(self, model: nn.Module, batch: Any, run: Run) -> Tensor:
        """The criterion on the model's output."""
        output = run.hook.compute_output(model=model, batch=batch, run=run)
        return run.hook.compute_criterion(output=output, batch=batch, run=run)

    @hookimpl(trylast=True)
    def compute_output(self, model: nn.Module, batch: Batch) -> Any:
        """The model's logits."""
        return model(batch.inputs)

    @hookimpl(trylast=True)
    def compute_criterion(self, output: Tensor, batch: Batch) -> Tensor:
        """The criterion that `train.loss` names."""
        return cast(Tensor, self.criterion(output, batch.targets))

    @hookimpl(trylast=True)
    def evaluate_batch(self, model: nn.Module, batch: Batch, run: Run) -> Predictions:
        """The model's logits in float32."""
        batch = cast(Batch, self.prepare_batch(batch, run))
        with torch.no_grad(), run.device.autocast():
            return Predictions(model(batch.inputs).float(), batch.targets)


class Autocast:
    """The recipe's precision around whatever makes up a loss, the plugins' parts included:
    registered outermost.
    """

    @hookimpl(wrapper=True)
    def compute_loss(self, run: Run) -> Generator[None, Tensor, Tensor]:
        """Switch autocast on around the loss."""
        with run.device.autocast():
            return (yield)

    @hookimpl(wrapper=True)
    def compute_output(self, run: Run) -> Generator[None, Any, Any]:
        """Switch autocast on around a forward pass that a plugin asks for at another place."""
        with run.device.autocast():
            return (yield)

    @hookimpl(wrapper=True)
    def compute_criterion(self, run: Run) -> Generator[None, Tensor, Tensor]:
        """Switch autocast on around a criterion that a plugin asks for at another place."""
        with run.device.autocast():
            return (yield)


def _in_chans(recipe: Recipe, data: Data) -> int:
    """Return how many channels the model is to take: the recipe's for images, all features for rows
    of them.

    Raises:
        UserError: the data are rows, and the model is for images.
    """
    spec = recipe.model
    if len(data.input_size) != 1:
        return spec.in_chans
    (features,) = data.input_size
    known = row_models()
    if spec.name not in known:
        wrong = (
            f"{spec.name} takes images, and these data are rows of {features} features; use one of "
            f"{', '.join(known)}"
        )
        raise UserError(f"{recipe.raw.nearest('model', 'name')}: model.name: {wrong}")
    return features


def _create(recipe: Recipe, arguments: dict[str, Any]) -> Any:
    spec = recipe.model
    return timm.create_model(spec.name, pretrained=spec.pretrained, **arguments)
