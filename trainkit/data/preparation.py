"""How an image becomes a model's input: size, crop, channels and scale, beside what the model
was made for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import timm.data
from PIL import Image

from trainkit.config.recipe import Recipe
from trainkit.errors import UserError

if TYPE_CHECKING:
    from trainkit.data.images import ImageSource


@dataclass(frozen=True)
class Preparation:
    """How images are prepared to be measured: the shorter side is resized, the middle cut out,
    pixels are scaled.

    Attributes:
        size: side of the result in pixels.
        crop_pct: its share of the resized image's shorter side.
        crop_mode: timm's name of how that is cut out.
        interpolation: timm's name of how the image is resized.
        mean: per channel, of pixels in [0, 1]: subtracted.
        std: per channel, divided by afterwards.
    """

    size: int
    crop_pct: float
    crop_mode: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def transform(self) -> Any:
        """Return the transform, from an image of the right mode to a tensor [C, H, W]."""
        return timm.data.create_transform(
            (len(self.mean), self.size, self.size),
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            mean=self.mean,
            std=self.std,
        )

    def describe(self) -> str:
        """Say in one line what is done."""
        resized = round(self.size / self.crop_pct)
        cut = "no crop but to a square" if self.crop_pct == 1 else f"the middle {self.size} cut out"
        return (
            f"shorter side to {resized} pixels ({self.interpolation}), {cut} (crop_pct "
            f"{self.crop_pct:g}, {self.crop_mode}); mean {_listed(self.mean)}, std "
            f"{_listed(self.std)}"
        )

    def differences(self, other: Preparation) -> list[str]:
        """Say what of `other`, the model's own, is not done here."""
        lines = []
        for name in ("size", "crop_pct", "crop_mode", "interpolation", "mean", "std"):
            here, there = getattr(self, name), getattr(other, name)
            alike = (
                all(abs(a - b) < 5e-4 for a, b in zip(here, there, strict=True))
                if name in ("mean", "std")
                else (here == there)
            )
            if not alike:
                lines.append(f"{name} {_listed(there)} (here {_listed(here)})")
        return lines


def _listed(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(f"{v:.3g}" for v in (value if len(set(value)) > 1 else value[:1]))
    return f"{value:g}" if isinstance(value, float) else str(value)


def for_measuring(
    spec: ImageSource, recipe: Recipe, mean: Sequence[float], std: Sequence[float]
) -> Preparation:
    """Return how validation images of a recipe are prepared.

    Args:
        spec: the data.
        recipe: the recipe.
        mean: the source's own.
        std: the source's own.
    """
    channels = recipe.model.in_chans
    scale = (as_channels(values, channels) for values in (spec.mean or mean, spec.std or std))
    return Preparation(size_of(spec, recipe), 1.0, "center", "bicubic", *scale)


def of_the_model(recipe: Recipe) -> Preparation | None:
    """Return what timm says that a recipe's model was made for; None where it says nothing."""
    cfg = timm.models.get_pretrained_cfg(recipe.model.name)
    if cfg is None:
        return None
    said = timm.data.resolve_data_config(pretrained_cfg=cfg.to_dict())
    scale = (as_channels(said[name], recipe.model.in_chans) for name in ("mean", "std"))
    return Preparation(
        int(said["input_size"][-1]),
        float(said["crop_pct"]),
        said["crop_mode"],
        said["interpolation"],
        *scale,
    )


def explain(preparation: Preparation, recipe: Recipe) -> tuple[str, ...]:
    """Return the lines that say how validation images are prepared, and what the model was made
    for instead.
    """
    own = of_the_model(recipe)
    differences = [] if own is None else preparation.differences(own)
    if not differences:
        return (preparation.describe(),)
    return preparation.describe(), f"{recipe.model.name} was made for {', '.join(differences)}"


def pretrained_cfg(recipe: Recipe) -> Any:
    """Return timm's configuration of a recipe's model; its defaults where it has none."""
    return timm.models.get_pretrained_cfg(recipe.model.name) or timm.models.PretrainedCfg()


def size_of(spec: ImageSource, recipe: Recipe) -> int:
    """Return the side of an image in pixels: what the data say, or what the model was made for."""
    return spec.image_size or int(pretrained_cfg(recipe).input_size[-1])


def check_channels(recipe: Recipe) -> None:
    """Refuse numbers of channels that do not fit images or one another."""
    channels = recipe.model.in_chans
    if channels not in (1, 3):
        mark = recipe.raw.nearest("model", "in_chans")
        wrong = f"images have 1 (grey) or 3 (colour) channels, the model takes {channels}"
        raise UserError(f"{mark}: model.in_chans: {wrong}")
    for name in ("mean", "std"):
        values = getattr(recipe.data, name)
        if values is not None and len(values) not in (1, channels):
            mark = recipe.raw.nearest("data", name)
            raise UserError(
                f"{mark}: data.{name}: has {len(values)} values; give one, or one for each of "
                f"{channels}"
            )


def as_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return one value per channel: as given, or their mean for each where the numbers differ."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def mode_of(channels: int) -> Literal["L", "RGB"]:
    """Return Pillow's name of images of so many channels."""
    return "L" if channels == 1 else "RGB"


class AsMode:
    """Convert an image to as many channels as the model takes, then transform it."""

    def __init__(self, transform: Any, channels: int) -> None:
        self.transform = transform
        self.mode = mode_of(channels)

    def __call__(self, image: Image.Image) -> Any:
        """Return the transformed image."""
        return self.transform(image if image.mode == self.mode else image.convert(self.mode))
