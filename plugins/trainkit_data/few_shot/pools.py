"""Images by class, for tasks that are made of a few images of a few classes.

The splits have no class in common: glyphs by script, Omniglot by alphabet or character, CIFAR-FS by
its authors' lists, class folders by the folder they are in, digits 0 to 3, 4 to 6 and 7 to 9.
Images keep their pixels in [0, 1] unless `data.mean` and `data.std` say otherwise, are never
augmented, and are read in the order of tasks: of a `data:` section, `batch_size`,
`eval_batch_size`, `drop_last` and `workers` mean nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import BaseModel, SerializeAsAny

from trainkit import Batch, DataSource, ImagesByClass, ImageSource, Recipe, UserError
from trainkit.config.data_source import STRICT
from trainkit.config.find_source import read_with_source
from trainkit.config.raw import RawRecipe
from trainkit.data.class_images import Split, Where
from trainkit.data.preparation import check_channels, size_of
from trainkit.errors import RecipeError


class _Section(BaseModel):
    model_config = STRICT
    data: SerializeAsAny[DataSource]


class ClassPool:
    """Images of some classes, and the batches that can be made of them.

    Args:
        images: the images by class.
        shape: channels, height and width of an image.
        mean: of pixels in [0, 1], subtracted; one number, or one per channel.
        std: divided by afterwards, likewise.
        rotations: each class and its turns by 90, 180 and 270 degrees are four classes.

    Attributes:
        names: of the classes, in order.
        sizes: how many images each class has.
        shape: channels, height and width of an image.
        notes: what of the files was left out.
    """

    def __init__(
        self,
        images: ImagesByClass,
        shape: tuple[int, int, int],
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        rotations: bool = False,
    ) -> None:
        self._images, self.shape, self.notes = images, shape, images.notes
        self._turns = 4 if rotations else 1
        turns = [f", {90 * turn} degrees" if turn else "" for turn in range(self._turns)]
        self.names = tuple(f"{name}{turn}" for name in images.names for turn in turns)
        self.sizes = tuple(len(members) for members in images.members for _ in turns)
        self._std = (255 * torch.tensor(std)).view(-1, 1, 1)
        self._mean = (255 * torch.tensor(mean)).view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, classes: Sequence[int], images: Sequence[Sequence[int]]) -> Batch:
        """Return images [N, C, H, W] of some classes; the targets [N] count the classes in the
        order given.

        Args:
            classes: which classes.
            images: for each of them, which of its images.
        """
        members = [self._images.members[cls // self._turns] for cls in classes]
        rows = [
            of[number] for of, numbers in zip(members, images, strict=True) for number in numbers
        ]
        pixels = self._images.read(rows)
        counts = [len(numbers) for numbers in images]
        if self._turns > 1:
            parts = zip(classes, torch.split(pixels, counts), strict=True)
            turned = [torch.rot90(part, cls % 4, (2, 3)) for cls, part in parts]
            pixels = torch.cat(turned)
        inputs = (pixels.float() - self._mean) / self._std
        targets = torch.arange(len(classes)).repeat_interleave(torch.tensor(counts))
        return Batch(inputs.expand(-1, *self.shape).contiguous(), targets)


def class_pool(recipe: Recipe, split: Split) -> ClassPool:
    """Return one split of the data that a recipe names, by class.

    Args:
        recipe: the recipe.
        split: train, validation or test; no class is in two of them.

    Raises:
        UserError: the files are not there, or the data have no such split, or are to be augmented.
    """
    spec = _images(recipe.data, recipe, ("data",))
    if spec.augment is not None and spec.augment != type(spec).model_fields["augment"].default:
        mark = recipe.raw.nearest("data", "augment")
        raise UserError(
            f"{mark}: data.augment: images of few-shot tasks are not augmented; set data.augment to"
            " null"
        )
    return _pool(recipe, spec, split, ("data",))


def target_pool(recipe: Recipe, data: Mapping[str, Any], *keys: str) -> ClassPool:
    """Return data that are not the recipe's own, to test on: a test split, or all classes of digits
    and SVHN.

    Images get the size, the channels and the scale of the recipe's own.

    Args:
        recipe: the recipe.
        data: what a `data:` section says.
        keys: where in the recipe it is written, for messages.

    Raises:
        UserError: as for `class_pool`.
        RecipeError: the section has mistakes.
    """
    # The section is checked as a recipe's own is, in its place: under its marks, with its keys in
    # the messages.
    source, depth = recipe.raw, len(keys)
    marks = {
        ("data", *key[depth:]): mark
        for key, mark in source.locations.items()
        if key[:depth] == keys
    }
    marks.setdefault(("data",), source.nearest(*keys))
    section = {"data": dict(data)}
    found, problems = read_with_source(_Section, RawRecipe(source.file, section, marks))
    if found is None:
        name = ".".join(keys)
        raise RecipeError(
            [replace(problem, key=name + problem.key.removeprefix("data")) for problem in problems]
        )
    return _pool(recipe, _images(found.data, recipe, keys), "target", keys)


def _images(spec: DataSource, recipe: Recipe, keys: tuple[str, ...]) -> ImageSource:
    mark, place = recipe.raw.nearest(*keys), ".".join(keys)
    if not isinstance(spec, ImageSource):
        raise UserError(
            f"{mark}: {place}: {spec.name} has no images in classes to make few-shot tasks of"
        )
    if spec.missing is not None:
        raise UserError(
            f"{mark}: {place}.missing: few-shot tasks have no missing entries; leave it out"
        )
    return spec


def _pool(recipe: Recipe, spec: ImageSource, where: Where, keys: tuple[str, ...]) -> ClassPool:
    check_channels(recipe)
    scale = _images(recipe.data, recipe, ("data",))
    size = size_of(scale, recipe)
    shape = (recipe.model.in_chans, size, size)
    try:
        images = spec.images_by_class(where, shape, ".".join(keys))
    except UserError as error:
        raise UserError(f"{recipe.raw.nearest(*keys)}: {error}") from None
    return ClassPool(
        images, shape, scale.mean or (0.0,), scale.std or (1.0,), getattr(spec, "rotations", False)
    )
