"""Omniglot, as torchvision stores it, by class."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from trainkit import ImagesByClass, UserError
from trainkit.data.class_images import Where, in_folders, subfolders

if TYPE_CHECKING:
    from trainkit_data.few_shot.sources import OmniglotSource

_CHARACTERS = (1100, 100, 423)  # Finn et al. 2017; their order of the characters cannot be had back
_ALPHABETS = 25  # of the 30 background alphabets; the others are for validation


def by_class(
    spec: OmniglotSource, where: Where, shape: tuple[int, int, int], key: str
) -> ImagesByClass:
    """Return the images of one split of the classes."""
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
        alphabets = [_characters(path) for path in subfolders(folder).values()]
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
        classes = _together(chosen)
    else:
        every = _together([*background, *evaluation])
        random.Random(0).shuffle(every)
        train, val, test = _CHARACTERS
        first = train * len(every) // (train + val + test)
        second = (train + val) * len(every) // (train + val + test)
        classes = (every[:first], every[first:second], every[second:])[index]
    if not classes:
        raise UserError(
            f"{key}: there are too few alphabets in {root / 'omniglot-py'} for a {where} split"
        )
    found = in_folders(dict(classes), shape, key, "images in <alphabet>/<character>/")
    # Ink is black in the files; as in the glyphs, and in the papers, it is light here.
    return ImagesByClass(
        lambda numbers: 255 - found.read(numbers), found.members, found.names, found.notes
    )


def _together(alphabets: Sequence[dict[str, Path]]) -> list[tuple[str, Path]]:
    """Return the characters of some alphabets, in order."""
    return list(chain.from_iterable(alphabet.items() for alphabet in alphabets))


def _characters(alphabet: Path) -> dict[str, Path]:
    return {f"{alphabet.name}/{name}": path for name, path in subfolders(alphabet).items()}
