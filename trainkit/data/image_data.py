"""From two sets of images to streams of batches, as the `data:` section of a recipe says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from trainkit.config.recipe import Recipe
from trainkit.data.augment import augment_notes, random_transform
from trainkit.data.loader import Examples, Images
from trainkit.data.preparation import (
    AsMode,
    check_channels,
    explain,
    for_measuring,
)
from trainkit.data.streams import make_streams
from trainkit.data.types import Data
from trainkit.seeds import derive_seed

if TYPE_CHECKING:
    from trainkit.data.images import ImageSource
    from trainkit.training.device import Device


@dataclass(frozen=True)
class Splits:
    """What a source gives: two sets of examples, and how to normalise them.

    Attributes:
        train: the training examples.
        val: the validation examples.
        num_classes: how many classes they have.
        mean: of pixels in [0, 1], one number or one per channel.
        std: their deviation, likewise.
        fits: they are kept in memory.
        class_names: of the classes, in order; empty where the source does not say.
        train_counts: how many training examples each class has; empty where the source does not
            say.
        val_counts: how many validation examples, likewise.
        notes: what of the files was left out.
    """

    train: Examples
    val: Examples
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fits: bool
    class_names: tuple[str, ...] = ()
    train_counts: tuple[int, ...] = ()
    val_counts: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def image_data(splits: Splits, spec: ImageSource, recipe: Recipe, device: Device) -> Data:
    """Return examples as this rank's data, read as the recipe's `data:` section says.

    Raises:
        UserError: there are too few examples.
    """
    channels = recipe.model.in_chans
    check_channels(recipe)
    measured = for_measuring(spec, recipe, splits.mean, splits.std)
    shape = (channels, measured.size, measured.size)
    plain = AsMode(measured.transform(), channels)
    augmented = plain
    if spec.augment is not None:
        augmented = random_transform(spec.augment, recipe, shape, measured.mean, measured.std)
    train = Images(
        splits.train,
        augmented,
        None if spec.augment is None else derive_seed(recipe.seed, "augment"),
        cache=splits.fits,
        splits=1 if spec.augment is None else spec.augment.splits,
    )
    val = Images(splits.val, plain, None, cache=splits.fits)
    count = (
        f"{len(train):,} training and {len(val):,} validation images, {splits.num_classes} classes"
    )
    repeats = 1.0 if spec.augment is None else spec.augment.repeats
    data = make_streams(
        train,
        val,
        recipe,
        device,
        outputs=splits.num_classes,
        input_size=shape,
        summary=f"{spec.name}: {count}",
        repeats=repeats,
    )
    return replace(
        data,
        aug_splits=train.splits,
        class_names=splits.class_names,
        train_counts=splits.train_counts,
        val_counts=splits.val_counts,
        preparation=explain(measured, recipe),
        notes=(*splits.notes, *augment_notes(spec.augment, channels)),
    )


class GreyImages:
    """Grey images held as an array of bytes [N, H, W]."""

    def __init__(self, images: np.ndarray[Any, Any], targets: np.ndarray[Any, Any]) -> None:
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), int(self.targets[index])


def splits_of_arrays(
    train: GreyImages, val: GreyImages, names: Sequence[str], mean: float, std: float
) -> Splits:
    """Return images in memory as the splits of a source, with the counts of their classes."""
    counts = [
        tuple(np.bincount(part.targets, minlength=len(names)).tolist()) for part in (train, val)
    ]
    return Splits(train, val, len(names), (mean,), (std,), True, tuple(names), *counts)
