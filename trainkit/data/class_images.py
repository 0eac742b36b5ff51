"""Images by class, of which few-shot tasks are made: what a source gives, and how it is made of
files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import timm.data
import torch
from PIL import Image
from timm.utils import natural_key
from torch import Tensor

from trainkit.data.file_search import Found, is_named, search
from trainkit.data.image_files import Paths
from trainkit.data.preparation import mode_of
from trainkit.errors import UserError
from trainkit.system.paths import is_folder

Split = Literal["train", "validation", "test"]
Where = Literal["train", "validation", "test", "target"]
"""A split; or a target: data that are tested on and that nothing was trained on."""

_KEPT_BYTES = (
    2 * 2**30
)  # sources up to this size keep every image that was read; larger ones read it again


@dataclass(frozen=True)
class ImagesByClass:
    """Images by class.

    Attributes:
        read: from numbers of images to their bytes [N, c, H, W]; c is the channels, or 1 for grey
            in every channel.
        members: for each class, the numbers of its images.
        names: of the classes.
        notes: what of the files was left out.
    """

    read: Callable[[Sequence[int]], Tensor]
    members: Sequence[Sequence[int]]
    names: Sequence[str]
    notes: tuple[str, ...] = ()


class Fitted:
    """Images as bytes [c, H, W]: turned to the wanted mode, fitted to the size, and kept once read.

    Args:
        open_image: from a number to a PIL image.
        count: how many there are.
        shape: channels, height and width.
    """

    def __init__(
        self, open_image: Callable[[int], Image.Image], count: int, shape: tuple[int, int, int]
    ) -> None:
        self._open = open_image
        self._mode = mode_of(shape[0])
        self._fit = timm.data.create_transform(
            shape, interpolation="bicubic", crop_pct=1.0, normalize=False
        )
        self._kept: dict[int, Tensor] | None = (
            {} if count * int(np.prod(shape)) <= _KEPT_BYTES else None
        )

    def __call__(self, numbers: Sequence[int]) -> Tensor:
        """Return the images of these numbers [N, c, H, W]."""
        return torch.stack([self._one(number) for number in numbers])

    def _one(self, number: int) -> Tensor:
        if self._kept is not None and number in self._kept:
            return self._kept[number]
        image = self._open(number)
        found: Tensor = self._fit(image if image.mode == self._mode else image.convert(self._mode))
        if self._kept is not None:
            self._kept[number] = found
        return found


def grouped(targets: Sequence[int], count: int) -> list[list[int]]:
    """Return for each of `count` classes the numbers of its images, from the class of each."""
    members: list[list[int]] = [[] for _ in range(count)]
    for number, target in enumerate(targets):
        members[target].append(number)
    return members


def in_folders(
    classes: dict[str, Path], shape: tuple[int, int, int], key: str, expected: str
) -> ImagesByClass:
    """Return the images below one folder for each class.

    Args:
        classes: names and folders of the classes.
        shape: channels, height and width that the images are to have.
        key: the recipe's name of the section, for messages.
        expected: what the files should be, for messages.

    Raises:
        UserError: a class has no images.
    """
    paths: list[str] = []
    members = []
    notes: list[str] = []
    for name, folder in classes.items():
        found = search(folder) if is_folder(folder) else Found()
        left_out = found.notes(str(folder))
        if not found.images:
            message = (
                f"{key}: there are no images of class {name!r} in {folder}; expected {expected}"
            )
            raise UserError(message + "".join(f" ({note})" for note in left_out))
        notes += left_out
        members.append(range(len(paths), len(paths) + len(found.images)))
        paths += [f"{folder}/{path}" for path in sorted(found.images, key=natural_key)]
    read, mode = Paths(paths), mode_of(shape[0])
    return ImagesByClass(
        Fitted(lambda number: read(number, mode), len(paths), shape),
        members,
        list(classes),
        tuple(notes),
    )


def subfolders(folder: Path) -> dict[str, Path]:
    """Return the folders in one, by name and in order, without the hidden ones and what systems
    leave behind.
    """
    if not is_folder(folder):
        return {}
    try:
        with os.scandir(folder) as listing:
            names = sorted(
                entry.name for entry in listing if is_named(entry.name) and entry.is_dir()
            )
    except OSError as error:
        raise UserError(
            f"{folder}: this folder cannot be looked through: {error.strerror}"
        ) from None
    return {name: folder / name for name in names}
