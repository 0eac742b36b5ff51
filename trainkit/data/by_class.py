"""Where the images of a few-shot split come from: for each source, which classes it has in which
split.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm.data
import torch
from PIL import Image
from timm.utils import natural_key
from torch import Tensor

from trainkit.data.file_search import Found, is_named, search
from trainkit.data.image_files import Paths
from trainkit.data.preparation import mode_of
from trainkit.data.spec import (
    CifarFsSpec,
    DataSpec,
    DigitsSpec,
    GlyphsSpec,
    OmniglotSpec,
    SvhnSpec,
    TimmSpec,
)
from trainkit.errors import UserError
from trainkit.system.foreign import foreign
from trainkit.system.paths import is_folder

Split = Literal["train", "validation", "test"]
Where = Literal["train", "validation", "test", "target"]
"""A split; or a target: data that are tested on and that nothing was trained on."""

_KEPT_BYTES = (
    2 * 2**30
)  # sources up to this size keep every image that was read; larger ones read it again
_CHARACTERS = (1100, 100, 423)  # Finn et al. 2017; their order of the characters cannot be had back
_ALPHABETS = 25  # of the 30 background alphabets; the others are for validation


@dataclass(frozen=True)
class ByClass:
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


def open_split(spec: DataSpec, where: Where, shape: tuple[int, int, int], key: str) -> ByClass:
    """Return the images of a split, of the given shape (channels, height, width).

    Args:
        spec: the data.
        where: which split.
        shape: channels, height and width.
        key: the recipe's name of the section, for messages.

    Raises:
        UserError: the files are not there, or there is no such split; the message does not say in
            which file.
    """
    if isinstance(spec, DigitsSpec):
        return _digits(where, shape)
    if isinstance(spec, GlyphsSpec):
        return _glyphs(spec, where, shape[-1], key)
    if isinstance(spec, OmniglotSpec):
        return _omniglot(spec, where, shape, key)
    if isinstance(spec, CifarFsSpec):
        return _cifar_fs(spec, where, shape, key)
    if isinstance(spec, SvhnSpec):
        return _svhn(spec, where, shape, key)
    assert isinstance(spec, TimmSpec)
    return _folder(spec, where, shape, key)


class _Fitted:
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
        return torch.stack([self._one(number) for number in numbers])

    def _one(self, number: int) -> Tensor:
        if self._kept is not None and number in self._kept:
            return self._kept[number]
        image = self._open(number)
        found: Tensor = self._fit(image if image.mode == self._mode else image.convert(self._mode))
        if self._kept is not None:
            self._kept[number] = found
        return found


def _grouped(targets: Sequence[int], count: int) -> list[list[int]]:
    members: list[list[int]] = [[] for _ in range(count)]
    for number, target in enumerate(targets):
        members[target].append(number)
    return members


def _digits(where: Where, shape: tuple[int, int, int]) -> ByClass:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    first, end = {"train": (0, 4), "validation": (4, 7), "test": (7, 10), "target": (0, 10)}[where]
    members = _grouped(bunch.target.tolist(), 10)[first:end]
    grey = _Fitted(lambda number: Image.fromarray(images[number]), len(images), (1, *shape[1:]))
    return ByClass(grey, members, [f"digit {digit}" for digit in range(first, end)])


def _glyphs(spec: GlyphsSpec, where: Where, size: int, key: str) -> ByClass:
    from trainkit.data.glyphs import LARGEST, load_glyphs

    splits = {"train": spec.scripts, "validation": spec.val_scripts, "test": spec.test_scripts}
    if where != "target":
        for script in splits[where]:
            if sum(script in scripts for scripts in splits.values()) > 1:
                raise UserError(
                    f"{key}: {script} is in more than one of scripts, val_scripts and test_scripts"
                )
    scripts = splits["test" if where == "target" else where]
    try:
        glyphs = load_glyphs(min(size, LARGEST), spec.variants).of(
            scripts, spec.letters if where == "train" else None
        )
    except ValueError as error:
        raise UserError(f"{key}.letters: {error}") from None
    per_class = glyphs.images.shape[1] * spec.variants
    members = [range(i * per_class, (i + 1) * per_class) for i in range(len(glyphs.letters))]
    images = torch.from_numpy(glyphs.images.reshape(-1, 1, *glyphs.images.shape[-2:]))
    if size <= LARGEST:
        return ByClass(lambda numbers: images[torch.tensor(numbers)], members, glyphs.names)
    enlarged = _Fitted(
        lambda number: Image.fromarray(images[number, 0].numpy()), len(images), (1, size, size)
    )
    return ByClass(enlarged, members, glyphs.names)


def _files(
    classes: dict[str, Path], shape: tuple[int, int, int], key: str, expected: str
) -> ByClass:
    """Return the images below one folder for each class."""
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
    return ByClass(
        _Fitted(lambda number: read(number, mode), len(paths), shape),
        members,
        list(classes),
        tuple(notes),
    )


def _subfolders(folder: Path) -> dict[str, Path]:
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


def _folder(spec: TimmSpec, where: Where, shape: tuple[int, int, int], key: str) -> ByClass:
    if spec.name not in ("folder", "torch/folder", "torch/image_folder"):
        raise UserError(
            f"{key}: the classes of {spec.name!r} cannot be split for few-shot tasks; use folder, "
            "with the images of each split's classes in a folder of its own"
        )
    names = {"train": spec.train_split, "validation": spec.val_split, "test": spec.test_split}
    folder = names["test" if where == "target" else where]
    expected = f"images in {spec.root}/{folder}/<class>/"
    classes = _subfolders(Path(spec.root) / folder)
    if not classes:
        raise UserError(
            f"{key}: there are no class folders in {Path(spec.root) / folder}; expected {expected}"
        )
    for split, other in names.items():
        if split != where and where != "target":
            for shared in classes.keys() & _subfolders(Path(spec.root) / other).keys():
                raise UserError(
                    f"{key}: class {shared!r} is in {folder!r} and in {other!r}; the splits of "
                    "few-shot data have no class in common"
                )
    return _files(classes, shape, key, expected)


def _cifar_fs(spec: CifarFsSpec, where: Where, shape: tuple[int, int, int], key: str) -> ByClass:
    root = Path(spec.root)
    name = {"train": "train", "validation": "val", "test": "test", "target": "test"}[where]
    listing = root / "splits" / "bertinetto" / f"{name}.txt"
    expected = f"images in {root}/data/<class>/ and the names of a split's classes in {listing}"
    try:
        names = listing.read_text(encoding="utf-8").split()
    except FileNotFoundError:
        raise UserError(f"{key}: there is no {listing}; expected {expected}") from None
    except (OSError, UnicodeDecodeError) as error:
        what = foreign(listing) or getattr(error, "strerror", None) or "is no UTF-8 text"
        raise UserError(f"{key}: {listing}: {what}; expected {expected}") from None
    if (what := foreign(listing)) is not None or not names:
        raise UserError(f"{key}: {listing}: {what or 'names no class'}; expected {expected}")
    for number, one in enumerate(names):
        if one in names[:number] or "/" in one or one.startswith("."):
            wrong = "twice" if one in names[:number] else "which is no name of a folder"
            raise UserError(f"{key}: {listing}: names {one!r} {wrong}")
    return _files({name: root / "data" / name for name in names}, shape, key, expected)


def _omniglot(spec: OmniglotSpec, where: Where, shape: tuple[int, int, int], key: str) -> ByClass:
    root = Path(spec.root)
    if spec.download:
        from torchvision.datasets import Omniglot

        for known in (True, False):
            try:
                Omniglot(root, background=known, download=True)
            except (OSError, RuntimeError) as error:
                raise UserError(
                    f"{key}: torchvision could not download Omniglot: {error}"
                ) from None
    parts = []
    for part in ("images_background", "images_evaluation"):
        folder = root / "omniglot-py" / part
        alphabets = [_characters(path) for path in _subfolders(folder).values()]
        if not alphabets:
            raise UserError(
                f"{key}: there are no alphabets in {folder}; expected images in "
                f"{folder}/<alphabet>/<character>/ as torchvision unpacks them, or "
                f"{key}.download=true"
            )
        parts.append(alphabets)
    background, evaluation = parts
    index = {"train": 0, "validation": 1, "test": 2, "target": 2}[where]
    if spec.split == "alphabets":
        chosen = (background[:_ALPHABETS], background[_ALPHABETS:], evaluation)[index]
        classes = [character for alphabet in chosen for character in alphabet.items()]
    else:
        every = [
            character for alphabet in [*background, *evaluation] for character in alphabet.items()
        ]
        random.Random(0).shuffle(every)
        first, second = (
            sum(_CHARACTERS[: i + 1]) * len(every) // sum(_CHARACTERS) for i in range(2)
        )
        classes = (every[:first], every[first:second], every[second:])[index]
    if not classes:
        raise UserError(
            f"{key}: there are too few alphabets in {root / 'omniglot-py'} for a {where} split"
        )
    found = _files(dict(classes), shape, key, "images in <alphabet>/<character>/")
    # Ink is black in the files; as in the glyphs, and in the papers, it is light here.
    return ByClass(
        lambda numbers: 255 - found.read(numbers), found.members, found.names, found.notes
    )


def _characters(alphabet: Path) -> dict[str, Path]:
    return {f"{alphabet.name}/{name}": path for name, path in _subfolders(alphabet).items()}


def _svhn(spec: SvhnSpec, where: Where, shape: tuple[int, int, int], key: str) -> ByClass:
    from torchvision.datasets import SVHN

    if where != "target":
        raise UserError(f"{key}: svhn has ten classes, too few to split; it can only be tested on")
    try:
        data: Any = SVHN(spec.root, split="test", download=spec.download)
    except Exception as error:  # spoiled bytes may raise anything
        raise UserError(
            f"{key}: torchvision cannot read SVHN ({error}); expected "
            f"{Path(spec.root) / 'test_32x32.mat'}, or {key}.download=true"
        ) from None
    members = _grouped(data.labels.tolist(), 10)
    fitted = _Fitted(lambda number: data[number][0], len(data), shape)
    return ByClass(fitted, members, [f"digit {digit}" for digit in range(10)])
