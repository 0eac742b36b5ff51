"""From the `data:` section of a recipe to streams of batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import timm.data
from PIL import Image

from trainkit.data import ratings, tables
from trainkit.data.deal import deal
from trainkit.data.loader import Examples, Images
from trainkit.data.missing import described, hide
from trainkit.data.spec import FACES, DataSpec, DigitsSpec, GlyphsSpec, RatingsSpec, TableSpec, TimmSpec
from trainkit.data.types import Data
from trainkit.device import Device
from trainkit.errors import UserError
from trainkit.recipe import Recipe
from trainkit.seeds import derive_seed


class Splits:
    """What a source gives: two sets of examples, and how to normalise them."""

    def __init__(
        self,
        train: Examples,
        val: Examples,
        num_classes: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        fits: bool,
    ) -> None:
        self.train, self.val, self.num_classes = train, val, num_classes
        self.mean, self.std = mean, std
        self.fits_in_memory = fits


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
        mark = recipe.source.nearest("data", "name")
        raise UserError(
            f"{mark}: data: {spec.name} has no class with both training and validation images; it is for few-shot "
            "tasks: switch on a plugin that draws them, or name other data"
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
    size = size_of(spec, recipe)
    mean, std = (_channels(values, channels) for values in (spec.mean or splits.mean, spec.std or splits.std))
    common = {"input_size": (channels, size, size), "mean": mean, "std": std}
    plain = _as_mode(timm.data.create_transform(**common, interpolation="bicubic", crop_pct=1.0), channels)
    augmented = plain
    if spec.augment is not None:
        # color_jitter is a strength for timm, or None: it reads 0 as the default.
        options = spec.augment.model_dump() | {"color_jitter": spec.augment.color_jitter or None}
        augmented = _as_mode(timm.data.create_transform(**common, is_training=True, **options), channels)
    train = Images(
        splits.train,
        augmented,
        None if spec.augment is None else derive_seed(recipe.seed, "augment"),
        cache=splits.fits_in_memory,
    )
    val = Images(splits.val, plain, None, cache=splits.fits_in_memory)
    count = f"{len(train):,} training and {len(val):,} validation images, {splits.num_classes} classes"
    return deal(
        hide(train, recipe, "train"),
        hide(val, recipe, "val"),
        recipe,
        device,
        outputs=splits.num_classes,
        input_size=(channels, size, size),
        summary=f"{spec.name}: {count}{described(spec.missing)}",
        missing=spec.missing is not None,
    )


class _Arrays:
    """Grey images held as an array of bytes [N, H, W]."""

    def __init__(self, images: np.ndarray[Any, Any], targets: np.ndarray[Any, Any]) -> None:
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), int(self.targets[index])


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
        mark = recipe.source.nearest("data", "val_fraction")
        message = f"{spec.val_fraction:g} of {len(images)} images leaves less than one of each class on one side"
        raise UserError(f"{mark}: data.val_fraction: {message}") from None
    mean, std = float(train_x.mean()) / 255, float(train_x.std()) / 255
    return Splits(_Arrays(train_x, train_y), _Arrays(val_x, val_y), 10, (mean,), (std,), fits=True)


def _glyphs(spec: GlyphsSpec, recipe: Recipe) -> Splits:
    from trainkit.data.glyphs import LARGEST, load_glyphs

    everything = load_glyphs(min(size_of(spec, recipe), LARGEST), spec.variants)
    try:
        glyphs = everything.of(spec.scripts, spec.letters)
    except ValueError as error:
        raise UserError(f"{recipe.source.nearest('data', 'letters')}: data.letters: {error}") from None
    held_out = np.isin(FACES, spec.val_faces)
    train_x, val_x = glyphs.images[:, ~held_out], glyphs.images[:, held_out]
    mean, std = float(train_x.mean()) / 255, float(train_x.std()) / 255
    train, val = (_Arrays(*_by_class(images)) for images in (train_x, val_x))
    return Splits(train, val, len(glyphs.letters), (mean,), (std,), fits=True)


def _by_class(images: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return images [classes, ..., H, W] in one row [N, H, W], and their classes [N]."""
    flat = images.reshape(len(images), -1, *images.shape[-2:])
    return flat.reshape(-1, *images.shape[-2:]), np.repeat(np.arange(len(flat)), flat.shape[1])


_LAYOUTS = {
    "folder": "images in {root}/{train}/<class>/ and {root}/{val}/<class>/",
    "tar": "archives {root}/{train} and {root}/{val} with a folder per class",
    "torch/cifar10": "the extracted folder cifar-10-batches-py in {root}, or set data.download=true",
    "torch/cifar100": "the extracted folder cifar-100-python in {root}, or set data.download=true",
}
_LAYOUTS |= dict.fromkeys(("torch/folder", "torch/image_folder"), _LAYOUTS["folder"])
_BY_SPLIT = ("folder", "tar", "torch/folder", "torch/image_folder")  # where each split is a folder or file of its own


def _timm(spec: TimmSpec, recipe: Recipe) -> Splits:
    # An archive is named in full, a split without its ending.
    ending = ".tar" if spec.name == "tar" else ""
    splits = [f"{split.removesuffix(ending)}{ending}" for split in (spec.train_split, spec.val_split)]
    layout = _LAYOUTS.get(spec.name, "the files as timm's documentation of this data set says")
    expected = layout.format(root=spec.root, train=splits[0], val=splits[1])
    mark = recipe.source.nearest("data", "name")
    found = []
    for split in splits:
        try:
            dataset = timm.data.create_dataset(
                spec.name,
                root=spec.root,
                split=split,
                is_training=split == splits[0],
                download=spec.download,
                class_map=spec.class_map,
                input_img_mode="L" if recipe.model.in_chans == 1 else "RGB",
            )
            wrong = _unusable(dataset, spec)
        except (AssertionError, OSError, RuntimeError, ValueError, KeyError, ImportError, TypeError) as error:
            nothing = type(error).__name__ if Path(spec.root).exists() else f"there is no {spec.root}"
            wrong = (str(error).strip().splitlines() or [nothing])[0]
        if wrong:
            raise UserError(
                f"{mark}: data: cannot open split {split!r} of {spec.name!r} ({wrong}); expected {expected}"
            )
        found.append(dataset)
    names = [_class_names(dataset) for dataset in found]
    if names[0] and names[1] and names[0] != names[1]:
        one = sorted(set(names[0]) ^ set(names[1]))[0]
        where = splits[0] if one in names[0] else splits[1]
        message = (
            f"the splits differ in their classes: {one!r} is in {where!r} only; give both the same, or a class_map"
        )
        raise UserError(f"{mark}: data: {message}")
    count = spec.num_classes or len(names[0]) or recipe.model.num_classes
    if not count:
        raise UserError(f"{mark}: data: the source does not say how many classes it has; set data.num_classes")
    cfg = _pretrained_cfg(recipe)
    return Splits(found[0], found[1], count, cfg.mean, cfg.std, fits=False)


def _unusable(dataset: Any, spec: TimmSpec) -> str | None:
    """Return why a split that timm has opened cannot be trained on, or None."""
    if isinstance(dataset, timm.data.IterableImageDataset):
        return "it is a stream, whose order and place cannot be restored; use one with random access"
    root = getattr(getattr(dataset, "reader", dataset), "root", None)
    if spec.name in _BY_SPLIT and root is not None and Path(root) == Path(spec.root):
        return "it is not there, and timm would take everything below the root instead"
    return None if len(dataset) else "it is empty"


def _class_names(dataset: Any) -> list[str]:
    """Return the classes of a data set in order; none where it does not say."""
    reader = getattr(dataset, "reader", dataset)
    said = (getattr(reader, attribute, None) for attribute in ("class_to_idx", "class_name_to_idx", "classes"))
    names = next((names for names in said if names), ())
    return [str(name) for name in names]


def _pretrained_cfg(recipe: Recipe) -> Any:
    return timm.models.get_pretrained_cfg(recipe.model.name) or timm.models.PretrainedCfg()


def size_of(spec: DataSpec, recipe: Recipe) -> int:
    """Return the side of an image in pixels: what the data say, or what the model was made for."""
    return spec.image_size or int(_pretrained_cfg(recipe).input_size[-1])


def check_channels(recipe: Recipe) -> None:
    """Refuse numbers of channels that do not fit images or one another."""
    channels = recipe.model.in_chans
    if channels not in (1, 3):
        mark = recipe.source.nearest("model", "in_chans")
        wrong = f"images have 1 (grey) or 3 (colour) channels, the model takes {channels}"
        raise UserError(f"{mark}: model.in_chans: {wrong}")
    for name in ("mean", "std"):
        values = getattr(recipe.data, name)
        if values is not None and len(values) not in (1, channels):
            mark = recipe.source.nearest("data", name)
            raise UserError(f"{mark}: data.{name}: has {len(values)} values; give one, or one for each of {channels}")


def _channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return one value per channel: as given, or their mean for each where the numbers differ."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


class _as_mode:
    """Convert an image to as many channels as the model takes, then transform it."""

    def __init__(self, transform: Any, channels: int) -> None:
        self.transform = transform
        self.mode = "L" if channels == 1 else "RGB"

    def __call__(self, image: Image.Image) -> Any:
        return self.transform(image if image.mode == self.mode else image.convert(self.mode))
