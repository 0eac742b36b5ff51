"""Glyphs as images of a recipe: in two splits by face, and by class in splits of scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from trainkit import ImagesByClass, Recipe, Splits, UserError
from trainkit.data.class_images import Fitted, Where
from trainkit.data.image_data import GreyImages, splits_of_arrays
from trainkit.data.preparation import size_of
from trainkit_data.few_shot import glyphs
from trainkit_data.few_shot.faces import FACES

if TYPE_CHECKING:
    from trainkit_data.few_shot.sources import GlyphsSource


def splits(spec: GlyphsSource, recipe: Recipe) -> Splits:
    """Return the letters of `spec.scripts`, split by face."""
    everything = glyphs.load_glyphs(min(size_of(spec, recipe), glyphs.LARGEST), spec.variants)
    try:
        chosen = everything.of(spec.scripts, spec.letters)
    except ValueError as error:
        raise UserError(f"{recipe.raw.nearest('data', 'letters')}: data.letters: {error}") from None
    held_out = np.isin(FACES, spec.val_faces)
    train_x, val_x = chosen.images[:, ~held_out], chosen.images[:, held_out]
    mean, std = float(train_x.mean()) / 255, float(train_x.std()) / 255
    train, val = (GreyImages(*_in_a_row(images)) for images in (train_x, val_x))
    return splits_of_arrays(train, val, chosen.names, mean, std)


def _in_a_row(images: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return images [classes, ..., H, W] in one row [N, H, W], and their classes [N]."""
    flat = images.reshape(len(images), -1, *images.shape[-2:])
    return flat.reshape(-1, *images.shape[-2:]), np.repeat(np.arange(len(flat)), flat.shape[1])


def by_class(
    spec: GlyphsSource, where: Where, shape: tuple[int, int, int], key: str
) -> ImagesByClass:
    """Return the images of one split of the classes."""
    size = shape[-1]
    splits = {"train": spec.scripts, "validation": spec.val_scripts, "test": spec.test_scripts}
    if where != "target":
        for script in splits[where]:
            if sum(script in scripts for scripts in splits.values()) > 1:
                raise UserError(
                    f"{key}: {script} is in more than one of scripts, val_scripts and test_scripts"
                )
    scripts = splits["test" if where == "target" else where]
    try:
        chosen = glyphs.load_glyphs(min(size, glyphs.LARGEST), spec.variants).of(
            scripts, spec.letters if where == "train" else None
        )
    except ValueError as error:
        raise UserError(f"{key}.letters: {error}") from None
    per_class = chosen.images.shape[1] * spec.variants
    members = [range(i * per_class, (i + 1) * per_class) for i in range(len(chosen.letters))]
    images = torch.from_numpy(chosen.images.reshape(-1, 1, *chosen.images.shape[-2:]))
    if size <= glyphs.LARGEST:
        return ImagesByClass(lambda numbers: images[torch.tensor(numbers)], members, chosen.names)
    enlarged = Fitted(
        lambda number: Image.fromarray(images[number, 0].numpy()), len(images), (1, size, size)
    )
    return ImagesByClass(enlarged, members, chosen.names)
