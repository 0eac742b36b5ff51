"""Folders and archives of class folders: the images of one split, and the class of each.

A class without an image is an error, images outside any class folder are left out and named.

Classes are in timm's natural order (`class 2` before `class 10`), those of torchvision's
`torch/folder` in plain order. Names that natural order holds for equal, such as `1` and `01`, stay
two classes, in the order of their characters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from timm.utils import natural_key

from trainkit.data.file_search import Found, search, search_archive, some
from trainkit.data.image_files import ImageFiles, Members, Mode, Paths
from trainkit.errors import UserError
from trainkit.system.foreign import foreign
from trainkit.system.paths import is_folder

Naming = Callable[[PurePosixPath], str]
"""From the folder of an image, relative to its split's, to the name of its class."""


def innermost(folder: PurePosixPath) -> str:
    """Name a class by the folder that its images lie in, as timm does."""
    return folder.name


def outermost(folder: PurePosixPath) -> str:
    """Name a class by the folder below the split's, however deep its images lie, as torchvision
    does.
    """
    return folder.parts[0] if folder.parts else ""


@dataclass(frozen=True)
class ClassImages:
    """The images of one split, and their classes.

    Attributes:
        images: the images.
        names: of the classes, in order.
        notes: what was left out, one line for each kind.
    """

    images: ImageFiles
    names: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """How many images each class has."""
        return tuple(np.bincount(self.images.targets, minlength=len(self.names)).tolist())


def open_classes(
    place: Path, naming: Naming, mode: Mode, index: dict[str, int] | None = None
) -> ClassImages:
    """Return the images in a folder or an archive of class folders.

    Args:
        place: the folder or archive.
        naming: how the folder of an image names its class.
        mode: L for grey, RGB for colour.
        index: from names of classes to their numbers; default: all that are there, in natural
            order.

    Raises:
        UserError: it cannot be read, holds no class, or one without images, or two folders that
            name one class.
    """
    archive = not is_folder(place)
    found = search_archive(place) if archive else search(place)
    if found.bare:
        raise UserError(f"{place}/{_bare(found)}")
    folders = [path.rpartition("/")[0] for path in found.images]
    notes = found.notes(str(place))
    outside = [path for path, folder in zip(found.images, folders, strict=True) if not folder]
    names = _names({PurePosixPath(folder) for folder in set(folders) - {""}}, naming, place)
    if not names:
        what = "images, but outside any class folder" if outside else "no image that can be read"
        raise UserError(f"{place}: holds {what}" + "".join(f" ({note})" for note in notes))
    if outside:
        notes.append(f"{place}: left out, as in no class folder: {some(outside)}")
    if index is None:
        index = {name: i for i, name in enumerate(sorted(set(names.values()), key=_order(naming)))}
    elif unknown := sorted(set(names.values()) - index.keys(), key=_natural):
        notes.append(f"{place}: left out, as not in the class map: {some(unknown)}")
    by_folder = {str(folder): index.get(name, -1) for folder, name in names.items()} | {"": -1}
    targets = [by_folder[folder] for folder in folders]
    used = [i for i, target in enumerate(targets) if target >= 0]
    if not used:
        raise UserError(f"{place}: none of its classes is in the class map")
    order = _order(naming)
    used.sort(key=lambda i: order(found.images[i]))
    read: Paths | Members
    if archive:
        read = Members(str(place), [found.places[i] for i in used])
    else:
        read = Paths([f"{place}/{found.images[i]}" for i in used])
    classes: list[str] = [""] * (max(index.values()) + 1)
    for name, number in index.items():
        classes[number] = classes[number] or name
    files = ImageFiles(read, np.array([targets[i] for i in used]), mode)
    return ClassImages(files, tuple(classes), tuple(notes))


def _order(naming: Naming) -> Callable[[str], Any]:
    """Return in which order classes and images come: timm's, or torchvision's, which is plain."""
    return _natural if naming is innermost else str


def _natural(name: str) -> tuple[Any, str]:
    return natural_key(name), name


def _bare(found: Found) -> str:
    name = found.bare[0]
    below = Counter(
        ending or "no ending"
        for ending, paths in found.unread.items()
        for path in paths
        if path.startswith(f"{name}/")
    )
    more = f" (and {len(found.bare) - 1} more like it)" if len(found.bare) > 1 else ""
    if not below:
        return f"{name}: this class{more} holds no image; put some in, or take the folder away"
    kinds = ", ".join(sorted(below))
    return (
        f"{name}: this class{more} holds no file that is read as an image, only {kinds}; convert "
        "them to .png or .jpg"
    )


def _names(
    folders: Iterable[PurePosixPath], naming: Naming, place: Path
) -> dict[PurePosixPath, str]:
    """Return the class of each folder."""
    names: dict[PurePosixPath, str] = {}
    first: dict[str, PurePosixPath] = {}
    for folder in sorted(folders):
        name = names[folder] = naming(folder)
        other = first.setdefault(name, folder)
        if naming is innermost and other != folder:
            raise UserError(
                f"{place}: {other} and {folder} would both be class {name!r}; rename one, or set "
                "data.name to torch/folder, whose classes are the outermost folders"
            )
    return names


def read_class_map(path: Path) -> dict[str, int]:
    """Return the classes that a text file lists, one a line, numbered from 0; or those that timm
    finds in a .pkl.

    Raises:
        UserError: it cannot be read, or names a class twice.
    """
    if path.suffix.lower() == ".pkl":
        return _pickled_class_map(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: {foreign(path) or getattr(error, 'strerror', None) or 'is no UTF-8 text'}"
        ) from None
    lines = [line.strip() for line in text.rstrip().split("\n")]
    for number, name in enumerate(lines, start=1):
        if not name:
            raise UserError(f"{path}:{number}: names no class")
        if name in lines[: number - 1]:
            raise UserError(
                f"{path}:{number}: class {name!r} is already on line {lines.index(name) + 1}"
            )
    return {name: i for i, name in enumerate(lines)}


def _pickled_class_map(path: Path) -> dict[str, int]:
    from timm.data.readers.class_map import load_class_map

    try:
        found = load_class_map(str(path))  # reads plain values only
    except Exception as error:  # spoiled bytes may raise anything
        raise UserError(
            f"{path}: {foreign(path) or 'is no class map that can be read'} ({error})"
        ) from None
    plain = all(
        isinstance(name, str) and type(number) is int and number >= 0
        for name, number in found.items()
    )
    if not found or not plain:
        raise UserError(f"{path}: a class map is names of classes and their numbers from 0")
    return dict(found)
