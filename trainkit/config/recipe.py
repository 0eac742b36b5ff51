"""A recipe: one YAML file that says everything about a run, as typed and checked values.

Reading a recipe collects every mistake in it and reports all of them with file and line. A value
may come from the file, from a file it `extends`, from an override on the command line, or from a
default; `Recipe.where` tells which.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, PrivateAttr, SerializeAsAny, model_validator

from trainkit.config.data_source import STRICT, DataSource
from trainkit.config.find_source import read_with_source, source_class
from trainkit.config.locations import dump
from trainkit.config.optimizer import OptimizerSpec, SchedulerSpec
from trainkit.config.raw import Given, RawRecipe, read_raw
from trainkit.errors import Location, Problem
from trainkit.system.discovery import is_local


class ModelSpec(BaseModel):
    """The `model:` section: a timm model."""

    model_config = STRICT
    name: str = Field(min_length=1, description="timm's name of the model")
    pretrained: bool = Field(False, description="start from timm's weights (downloads them)")
    checkpoint: str | None = Field(None, description="start from this file (.safetensors or .pth)")
    num_classes: int | None = Field(
        None, ge=0, description="outputs; default: the classes of the data"
    )
    in_chans: int = Field(
        3, ge=1, description="channels of images; rows of features are taken whole"
    )
    args: dict[str, Any] = Field(
        {}, description="further arguments of timm.create_model, such as drop_path_rate"
    )


class LossSpec(BaseModel):
    """The `train.loss:` section."""

    model_config = STRICT
    name: Literal["cross_entropy", "bce", "asymmetric", "mse"] = Field(
        "cross_entropy",
        description=(
            "cross_entropy; timm's binary cross entropy; timm's asymmetric loss; mean squared error"
            " of numbers"
        ),
    )
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing")
    target_threshold: float | None = Field(None, description="bce: targets above it count as 1")

    @model_validator(mode="after")
    def _check(self) -> LossSpec:
        if self.name == "mse" and self.smoothing:
            raise ValueError("smoothing is of classes, and mse compares numbers; leave it out")
        if self.name != "bce" and self.target_threshold is not None:
            raise ValueError(
                f"target_threshold is of bce, and {self.name} has no use for it; leave it out"
            )
        return self


class TrainSpec(BaseModel):
    """The `train:` section: how long and how to train."""

    model_config = STRICT
    epochs: int = Field(10, ge=1, description="passes over the training data")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="autocast type; fp16 scales the loss"
    )
    accumulate: int = Field(1, ge=1, description="micro-batches per optimizer step")
    loss: LossSpec = Field(LossSpec(name="cross_entropy"), description="what is minimised")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, cuda, cuda:N, mps"
    )
    compile: bool = Field(False, description="compile the model with torch.compile")
    channels_last: bool = Field(
        False, description="keep images and weights in channels-last memory format"
    )
    grad_checkpointing: bool = Field(
        False, description="recompute activations to save memory, where timm offers it"
    )
    sync_batchnorm: bool = Field(False, description="batch statistics over all ranks (CUDA only)")
    deterministic: bool = Field(
        True, description="use only algorithms that give the same bits every time"
    )
    evaluate_every: int = Field(
        1, ge=1, description="epochs between validations; the last epoch always has one"
    )
    log_every: int = Field(
        20, ge=1, description="steps between transfers of logged values from the device"
    )


class CheckpointSpec(BaseModel):
    """The `checkpoint:` section: what is kept. The state after every epoch always is, in
    `last.pt`.
    """

    model_config = STRICT
    every_steps: int | None = Field(
        None, ge=1, description="also write last.pt every so many steps"
    )
    keep_best: int = Field(1, ge=1, description="how many of the best weights to keep")
    metric: str = Field("accuracy", description="the validation metric that says which is best")
    mode: Literal["max", "min"] = Field("max", description="whether more or less of it is better")


def _of_its_class(value: Any) -> Any:
    """Make the source of data that a recipe made in code names."""
    name = None
    if isinstance(value, dict):
        name = value.get("name")
    if isinstance(name, str):
        return source_class(name, Path()).model_validate(value)
    return value


_Source = Annotated[SerializeAsAny[DataSource], BeforeValidator(_of_its_class)]


class Recipe(BaseModel):
    """A whole recipe. `plugins` maps names to options; each plugin checks its own."""

    model_config = STRICT
    seed: int = Field(0, ge=0, lt=2**63, description="everything random derives from it")
    model: ModelSpec = Field(description="the timm model")
    data: _Source = Field(description="the data")
    train: TrainSpec = Field(TrainSpec(epochs=10), description="how to train")
    optimizer: OptimizerSpec = Field(OptimizerSpec(name="adamw"), description="the optimizer")
    scheduler: SchedulerSpec = Field(
        SchedulerSpec(name="cosine"), description="the learning-rate schedule"
    )
    checkpoint: CheckpointSpec = Field(CheckpointSpec(keep_best=1), description="what is kept")
    plugins: dict[str, dict[str, Any]] = Field({}, description="the plugins that are on, in order")

    _raw: RawRecipe = PrivateAttr(default_factory=RawRecipe)
    _text: str = PrivateAttr("")  # a recipe does not change, and each checkpoint holds its text

    @property
    def raw(self) -> RawRecipe:
        """The text that the recipe was read from; empty for one made in code."""
        return self._raw

    def where(self, *keys: str | int) -> Location:
        """Return where the value under `keys` was written; `default` when it was not written at
        all.
        """
        return self._raw.locations.get(keys, Location("default"))

    def dump(self) -> str:
        """Return the resolved recipe as YAML: every default written out, local plugins by their
        absolute path.
        """
        if not self._text:
            self._text = self._dumped()
        return self._text

    def _dumped(self) -> str:
        data = self.model_dump()  # not in JSON mode, which turns infinity into null
        folder = self._raw.folder
        data["plugins"] = {
            _absolute(key, folder("plugins", key)): options for key, options in self.plugins.items()
        }
        data["data"]["name"] = _absolute(self.data.name, folder("data", "name"))
        return dump(data)


def _absolute(name: str, folder: Path) -> str:
    """Return a local plugin's or source's name with its whole path; any other as it is."""
    if is_local(name):
        return str((folder / name).resolve())
    return name


def read_recipe(
    given: Given | None, overrides: Sequence[str] = ()
) -> tuple[Recipe | None, RawRecipe, list[Problem]]:
    """Read a recipe with its overrides, or overrides alone, and check core's sections of it.

    Returns:
        The recipe, or None where those sections have mistakes; its raw form, from which the
        plugins' options can be checked even then; and the mistakes.

    Raises:
        UserError: a file cannot be read, or is not YAML.
        PluginError: code of a source of data fails.
    """
    raw = read_raw(given, overrides)
    recipe, problems = read_with_source(Recipe, raw)
    if recipe is not None:
        recipe._raw = raw
    return recipe, raw, [*raw.problems, *problems]
