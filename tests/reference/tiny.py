"""A few made-up images as a plugin, and what the tests of the host do with recipes again and
again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from trainkit import Plugin, Run, hookimpl
from trainkit.data.loader import Images, OrderedStream, ShuffledStream
from trainkit.data.types import Data
from trainkit.errors import Interrupted, Location
from trainkit.hooks.order import Entry
from trainkit.seeds import derive_seed
from trainkit.training.build import Setup, build, compose
from trainkit.training.checkpointer import Checkpointer
from trainkit.training.loop import fit


class Made:
    """Images [C, H, W] of noise around one pattern per class; a fixed function of their index.

    Args:
        count: number of examples.
        classes: number of classes.
        shape: of one image.
        first: where in the endless list of such images this set begins.
    """

    def __init__(
        self, count: int, classes: int, shape: tuple[int, int, int], first: int = 0
    ) -> None:
        self.count, self.classes, self.shape, self.first = count, classes, shape, first

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        number = self.first + index
        target = number % self.classes
        pattern = torch.randn(self.shape, generator=torch.Generator().manual_seed(target))
        noise = torch.randn(self.shape, generator=torch.Generator().manual_seed(1000 + number))
        return pattern + noise, target


def shake(image: Tensor) -> Tensor:
    """A random transform that draws from each of the three global generators."""
    if random.random() < 0.5:
        image = image.flip(-1)
    return image * float(np.random.uniform(0.5, 1.5)) + 0.1 * torch.randn(image.shape)


def same(image: Tensor) -> Tensor:
    """A transform that changes nothing."""
    return image


class TinyData(Plugin):
    """Made-up images in place of the recipe's data; its batch size, workers and augmentation are
    obeyed.
    """

    training: int = Field(22, ge=1, description="training examples")
    validation: int = Field(10, ge=1, description="validation examples")
    classes: int = Field(4, ge=2, description="classes")
    poison: int | None = Field(None, description="index of a training image that is not a number")

    @hookimpl
    def build_data(self, recipe: Any, run: Run) -> Data:
        """Provide the streams."""
        spec, device = recipe.data, run.device
        shape = (recipe.model.in_chans, spec.image_size, spec.image_size)
        examples: Any = Made(self.training, self.classes, shape)
        if self.poison is not None:
            examples = Poisoned(examples, self.poison)
        augment = spec.augment is not None
        train = Images(
            examples,
            shake if augment else same,
            derive_seed(recipe.seed, "augment") if augment else None,
            True,
        )
        val = Images(Made(self.validation, self.classes, shape, self.training), same, None, True)
        shared: dict[str, Any] = {
            "rank": device.rank,
            "world": device.world,
            "workers": spec.workers,
        }
        stream = ShuffledStream(
            train,
            seed=derive_seed(recipe.seed, "data"),
            batch_size=spec.batch_size,
            accumulate=recipe.train.accumulate,
            drop_last=spec.drop_last,
            **shared,
        )
        measured = OrderedStream(val, batch_size=spec.eval_batch_size or spec.batch_size, **shared)
        return Data(stream, measured, self.classes, shape, "made-up images")


class Poisoned:
    """Examples of which one is not a number."""

    def __init__(self, examples: Made, index: int) -> None:
        self.examples, self.index = examples, index

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, target = self.examples[index]
        return image * float("nan") if index == self.index else image, target


def with_plugins(recipe: Path, overrides: Sequence[str], *plugins: Plugin) -> Setup:
    """Return a recipe's setup with further plugins, made in the test itself, behind its own."""
    setup = compose(recipe, overrides)
    entries = list(setup.entries)
    for plugin in plugins:
        plugin.bind(type(plugin).__name__, setup.recipe.seed)
        entries.append(Entry(plugin.name, plugin, Location("test")))
    return Setup(setup.recipe, entries)


def train(
    setup: Setup,
    folder: Path | None = None,
    *,
    until: int | None = None,
    observers: Sequence[object] = (),
) -> tuple[Run, Checkpointer]:
    """Train a setup to its end, or to a step; return its run and checkpointer."""
    run = build(setup, folder, observers)
    checkpointer = Checkpointer(run.folder, run)
    try:
        fit(run, checkpointer, until=until)
    except Interrupted:
        assert run.step == until
    return run, checkpointer
