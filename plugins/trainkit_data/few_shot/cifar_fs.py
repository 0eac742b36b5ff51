"""CIFAR-FS, by class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trainkit import ImagesByClass, UserError
from trainkit.data.class_images import Where, in_folders
from trainkit.system.foreign import foreign

if TYPE_CHECKING:
    from trainkit_data.few_shot.sources import CifarFsSource


def by_class(
    spec: CifarFsSource, where: Where, shape: tuple[int, int, int], key: str
) -> ImagesByClass:
    """Return the images of one split of the classes."""
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
    return in_folders({name: root / "data" / name for name in names}, shape, key, expected)
