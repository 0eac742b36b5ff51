"""From the `data:` section of a recipe to streams of batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from trainkit.config.recipe import Recipe
from trainkit.data import ratings, tables
from trainkit.data.augment import augment_notes, random_transform
from trainkit.data.deal import deal
from trainkit.data.loader import Examples, Images
from trainkit.data.missing import described, hide
from trainkit.data.preparation import (
    AsMode,
    check_channels,
    explain,
    for_measuring,
    pretrained_cfg,
    size_of,
)
from trainkit.data.spec import (
    FACES,
    DataSpec,
    DigitsSpec,
    GlyphsSpec,
    RatingsSpec,
    TableSpec,
    TimmSpec,
)
from trainkit.data.timm_sources import open_splits
from trainkit.data.types import Data
from trainkit.errors import UserError
from trainkit.seeds import derive_seed

if TYPE_CHECKING:
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


def build(recipe: Recipe, device: Device) -> Data:
    """Return the data that a recipe names, for this rank.

    Raises:
        UserError: the files are not there, or do not fit the recipe.
    """
    spec = recipe.data
    if isinstance(spec, TableSpec):
        return tables.build(spec, recipe, device)
    if isinstance(spec, RatingsSpec):
        return ratings.build(spec, recipe, device)
    if isinstance(spec, DigitsSpec):
        splits = _digits(spec, recipe)
    elif isinstance(spec, GlyphsSpec):
        splits = _glyphs(spec, recipe)
    elif isinstance(spec, TimmSpec):
        splits = _timm(spec, recipe)
    else:
        mark = recipe.raw.nearest("data", "name")
        raise UserError(
            f"{mark}: data: {spec.name} has no class with both training and validation images; it "
            "is for few-shot tasks: switch on a plugin that draws them, or name other data"
        )
    return streams(splits, recipe, device)


def streams(splits: Splits, recipe: Recipe, device: Device) -> Data:
    """Return examples as this rank's data, read as the recipe's `data:` section says.

    Raises:
        UserError: there are too few examples.
    """
    spec, channels = recipe.data, recipe.model.in_chans
    assert isinstance(spec, DataSpec)  # the others have no images
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
    )
    val = Images(splits.val, plain, None, cache=splits.fits)
    count = (
        f"{len(train):,} training and {len(val):,} validation images, {splits.num_classes} classes"
    )
    data = deal(
        hide(train, recipe, "train"),
        hide(val, recipe, "val"),
        recipe,
        device,
        outputs=splits.num_classes,
        input_size=shape,
        summary=f"{spec.name}: {count}{described(spec.missing)}",
        missing=spec.missing is not None,
    )
    return replace(
        data,
        class_names=splits.class_names,
        train_counts=splits.train_counts,
        val_counts=splits.val_counts,
        preparation=explain(measured, recipe),
        notes=(*splits.notes, *augment_notes(spec.augment)),
    )


class _Arrays:
    """Grey images held as an array of bytes [N, H, W]."""

    def __init__(self, images: np.ndarray[Any, Any], targets: np.ndarray[Any, Any]) -> None:
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), int(self.targets[index])


def _of_arrays(
    train: _Arrays, val: _Arrays, names: Sequence[str], mean: float, std: float
) -> Splits:
    counts = [
        tuple(np.bincount(part.targets, minlength=len(names)).tolist()) for part in (train, val)
    ]
    return Splits(train, val, len(names), (mean,), (std,), True, tuple(names), *counts)


def _digits(spec: DigitsSpec, recipe: Recipe) -> Splits:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    # The split has a seed of its own: every recipe seed is validated on the same images.
    try:
        train_x, val_x, train_y, val_y = train_test_split(
            images, bunch.target, test_size=spec.val_fraction, stratify=bunch.target, random_state=0
        )
    except ValueError:
        mark = recipe.raw.nearest("data", "val_fraction")
        message = (
            f"{spec.val_fraction:g} of {len(images)} images leaves less than one of each class on "
            "one side"
        )
        raise UserError(f"{mark}: data.val_fraction: {message}") from None
    mean, std = float(train_x.mean()) / 255, float(train_x.std()) / 255
    return _of_arrays(
        _Arrays(train_x, train_y), _Arrays(val_x, val_y), list("0123456789"), mean, std
    )


def _glyphs(spec: GlyphsSpec, recipe: Recipe) -> Splits:
    from trainkit.data.glyphs import LARGEST, load_glyphs

    everything = load_glyphs(min(size_of(spec, recipe), LARGEST), spec.variants)
    try:
        glyphs = everything.of(spec.scripts, spec.letters)
    except ValueError as error:
        raise UserError(f"{recipe.raw.nearest('data', 'letters')}: data.letters: {error}") from None
    held_out = np.isin(FACES, spec.val_faces)
    train_x, val_x = glyphs.images[:, ~held_out], glyphs.images[:, held_out]
    mean, std = float(train_x.mean()) / 255, float(train_x.std()) / 255
    train, val = (_Arrays(*_by_class(images)) for images in (train_x, val_x))
    return _of_arrays(train, val, glyphs.names, mean, std)


def _by_class(images: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return images [classes, ..., H, W] in one row [N, H, W], and their classes [N]."""
    flat = images.reshape(len(images), -1, *images.shape[-2:])
    return flat.reshape(-1, *images.shape[-2:]), np.repeat(np.arange(len(flat)), flat.shape[1])


def _timm(spec: TimmSpec, recipe: Recipe) -> Splits:
    train, val, count = open_splits(spec, recipe)
    cfg = pretrained_cfg(recipe)
    return Splits(
        train.examples,
        val.examples,
        count,
        cfg.mean,
        cfg.std,
        False,
        train.names,
        train.counts,
        val.counts,
        (*train.notes, *val.notes),
    )
