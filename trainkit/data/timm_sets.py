"""Class folders, archives, and the data sets that timm and torchvision know by name, as two
splits of images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import timm.data
from PIL import Image

from trainkit.config.recipe import Recipe
from trainkit.data.class_folders import (
    ClassImages,
    innermost,
    open_classes,
    outermost,
    read_class_map,
)
from trainkit.data.image_files import Mode, decode, read_image
from trainkit.data.loader import Examples
from trainkit.data.preparation import mode_of
from trainkit.errors import UserError
from trainkit.system.foreign import foreign, no_file
from trainkit.system.paths import is_folder, is_there

if TYPE_CHECKING:
    from trainkit.data.timm_source import TimmSource

_LAYOUTS = {
    "folder": "images in {root}/{train}/<class>/ and {root}/{val}/<class>/",
    "tar": "archives {root}/{train} and {root}/{val} with a folder per class",
    "torch/cifar10": (
        "the extracted folder cifar-10-batches-py in {root}, or set data.download=true"
    ),
    "torch/cifar100": "the extracted folder cifar-100-python in {root}, or set data.download=true",
}
_NAMING = {
    "folder": innermost,
    "tar": innermost,
    "torch/folder": outermost,
    "torch/image_folder": outermost,
}
"""Where each split is a folder or file of its own: how its folders name the classes."""

_IDX = {"torch/mnist": "MNIST", "torch/kmnist": "KMNIST", "torch/fashion_mnist": "FashionMNIST"}
"""Where torchvision keeps their IDX files: in `raw` below a folder of this name."""

_LAYOUTS |= {
    name: f"the four extracted files in {{root}}/{folder}/raw, or set data.download=true"
    for name, folder in _IDX.items()
}
_LAYOUTS |= dict.fromkeys(("torch/folder", "torch/image_folder"), _LAYOUTS["folder"])
_SYNONYMS = (("train", "training"), ("val", "valid", "validation", "eval", "evaluation"))  # timm's


@dataclass(frozen=True)
class Opened:
    """One split: its images, and what is known of their classes and of what was left out."""

    examples: Examples
    names: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def open_splits(spec: TimmSource, recipe: Recipe) -> tuple[Opened, Opened, int]:
    """Return the training split, the validation split and how many classes there are.

    Raises:
        UserError: the files are not there, cannot be read, or the two do not have the same classes.
    """
    # An archive is named in full, a split without its ending.
    ending = ".tar" if spec.name == "tar" else ""
    splits = [
        f"{split.removesuffix(ending)}{ending}" for split in (spec.train_split, spec.val_split)
    ]
    layout = _LAYOUTS.get(spec.name, "the files as timm's documentation of this data set says")
    expected = layout.format(root=spec.root, train=splits[0], val=splits[1])
    mark = recipe.raw.nearest("data", "name")
    mode = mode_of(recipe.model.in_chans)
    try:
        naming = _NAMING.get(spec.name)
        if naming is None:
            train, val = (
                _by_name(spec, split, split == splits[0], mode, expected) for split in splits
            )
        else:
            places = [_place(Path(spec.root), split, spec.name, expected) for split in splits]
            index = _class_map(spec, places[0])
            train, val = (_opened(open_classes(place, naming, mode, index)) for place in places)
        return train, val, _count(train, val, splits, spec, recipe)
    except UserError as error:
        raise UserError(f"{mark}: data: {error}") from None


def _opened(found: ClassImages) -> Opened:
    return Opened(found.images, found.names, found.counts, found.notes)


def _place(root: Path, split: str, name: str, expected: str) -> Path:
    """Return the folder or archive of a split, which may go by another of timm's words for it."""
    ending = ".tar" if name == "tar" else ""
    word = split.removesuffix(ending)
    others = next((words for words in _SYNONYMS if word in words), ())
    try:
        there = next(
            (root / f"{w}{ending}" for w in (word, *others) if is_there(root / f"{w}{ending}")),
            None,
        )
    except (OSError, ValueError):  # no permission; a NUL character in the path
        there = None
    if there is None:
        wrong = no_file(root)
        wrong = (
            "it is not there"
            if wrong == "is a folder"
            else (
                f"there is no {root}"
                if wrong == "there is no such file"
                else f"{root} {wrong or 'is a file'}"
            )
        )
    elif ending:
        wrong = no_file(there)
    else:
        wrong = None if is_folder(there) else "it is no folder"
    if there is None or wrong:
        raise UserError(f"cannot open split {split!r} of {name!r} ({wrong}); expected {expected}")
    return there


def _class_map(spec: TimmSource, place: Path) -> dict[str, int] | None:
    if not spec.class_map:
        return None
    path = Path(spec.class_map)
    return read_class_map(path if no_file(path) is None else place / path)


def _by_name(spec: TimmSource, split: str, training: bool, mode: Mode, expected: str) -> Opened:
    """Return a split of a data set that timm opens by its name."""
    if spec.name in _IDX:
        for file in sorted(Path(spec.root, _IDX[spec.name], "raw").glob("*-ubyte")):
            _check_idx(file)
    try:
        dataset = timm.data.create_dataset(
            spec.name,
            root=spec.root,
            split=split,
            is_training=training,
            download=spec.download,
            class_map=spec.class_map,
            input_img_mode=mode,
        )
        wrong = _unusable(dataset)
    except Exception as error:  # a reader of any kind, on bytes of any kind
        nothing = type(error).__name__ if is_there(spec.root) else f"there is no {spec.root}"
        wrong = (str(error).strip().splitlines() or [nothing])[0]
    if wrong:
        raise UserError(
            f"cannot open split {split!r} of {spec.name!r} ({wrong}); expected {expected}"
        )
    names = tuple(_class_names(dataset))
    targets = getattr(dataset, "targets", None)  # torchvision's name
    known = targets is not None and len(names) > 0
    if known:
        _check_targets(
            np.asarray(targets), len(dataset), len(names), f"split {split!r} of {spec.name!r}"
        )
    counts = tuple(np.bincount(np.asarray(targets), minlength=len(names)).tolist()) if known else ()
    return Opened(Read(dataset, mode, f"split {split!r} of {spec.name!r}"), names, counts)


def _check_idx(file: Path) -> None:
    """Refuse a file of the IDX format (http://yann.lecun.com/exdb/mnist/) that does not hold what
    its header says.

    Raises:
        UserError: it does not.
    """
    if (what := foreign(file)) is not None:
        raise UserError(f"{file}: {what}")
    with file.open("rb") as opened:
        head = opened.read(4)
        sizes = opened.read(4 * head[3]) if len(head) == 4 and head[:3] == b"\0\0\x08" else b""
    if not sizes or len(sizes) < 4 * head[3]:
        raise UserError(f"{file}: is no IDX file of bytes; get it anew")
    wanted = 4 + len(sizes) + int(np.prod(np.frombuffer(sizes, ">u4").astype(np.int64)))
    if (size := file.stat().st_size) != wanted:
        raise UserError(
            f"{file}: is not whole: its header says {wanted:,} bytes, it has {size:,}; get it anew"
        )


def _check_targets(targets: np.ndarray[Any, Any], images: int, classes: int, name: str) -> None:
    if len(targets) != images:
        raise UserError(
            f"{name} has {images:,} images and {len(targets):,} labels; get its files anew"
        )
    outside = np.flatnonzero((targets < 0) | (targets >= classes))
    if len(outside):
        image = int(outside[0])
        raise UserError(
            f"{name}: image {image} has label {targets[image]}, and there are {classes} classes"
        )


class Read:
    """A data set of timm or torchvision whose files are decoded here: one that cannot be read is an
    error.

    timm's own `ImageDataset` would give the next image in its place.

    Args:
        dataset: the data set.
        mode: L for grey, RGB for colour.
        name: of the data set, for messages.
    """

    def __init__(self, dataset: Any, mode: Mode, name: str) -> None:
        self._dataset, self._mode, self._name = dataset, mode, name
        self._reader = getattr(dataset, "reader", None)
        if hasattr(dataset, "loader"):  # torchvision's, where images lie in files of their own
            dataset.loader = partial(read_image, mode=mode)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        name = f"image {index} of {self._name}"
        try:
            if self._reader is None:
                image, target = self._dataset[index]
            else:
                file, target, *_ = self._reader[index]
                with file:
                    image = decode(file, self._mode, _said(self._reader.filename, index) or name)
            if int(target) < 0:
                raise UserError(f"{name}: has no label ({int(target)})")
            return image, int(target)
        except UserError:
            raise
        except Exception as error:  # a reader of any kind, on bytes of any kind
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise UserError(f"{name}: cannot be read ({reason}); mend the data") from None


def _said(filename: Callable[[int], str], index: int) -> str | None:
    try:
        return str(filename(index))
    except Exception:  # not every reader knows
        return None


def _unusable(dataset: Any) -> str | None:
    """Return why a split that timm has opened cannot be trained on, or None."""
    if isinstance(dataset, timm.data.IterableImageDataset):
        return (
            "it is a stream, whose order and place cannot be restored; use one with random access"
        )
    return None if len(dataset) else "it is empty"


def _class_names(dataset: Any) -> list[str]:
    """Return the classes of a data set in order; none where it does not say."""
    reader = getattr(dataset, "reader", dataset)
    said = (
        getattr(reader, attribute, None)
        for attribute in ("class_to_idx", "class_name_to_idx", "classes")
    )
    names = next((names for names in said if names), ())
    return [str(name) for name in names]


def _count(train: Opened, val: Opened, splits: list[str], spec: TimmSource, recipe: Recipe) -> int:
    """Return the number of classes, having looked whether both splits have the same."""
    if train.names and val.names and train.names != val.names:
        one = sorted(set(train.names) ^ set(val.names))[0]
        where = splits[0] if one in train.names else splits[1]
        fix = "give both the same, or a class_map"
        raise UserError(f"the splits differ in their classes: {one!r} is in {where!r} only; {fix}")
    there = len(train.names)
    if spec.num_classes is not None and spec.num_classes < there:
        raise UserError(
            f"data.num_classes is {spec.num_classes}, and there are {there} classes; leave it out"
        )
    count = spec.num_classes or there or recipe.model.num_classes
    if not count:
        raise UserError("the source does not say how many classes it has; set data.num_classes")
    return count
