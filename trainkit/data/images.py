"""Options of images, and what a source of images is. Imports neither torch nor timm: recipes are
checked before those load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator

from trainkit.config.data_source import STRICT, DataSource
from trainkit.data.policies import policy_problem
from trainkit.errors import UserError

if TYPE_CHECKING:
    from trainkit.config.recipe import Recipe
    from trainkit.data.class_images import ImagesByClass, Where
    from trainkit.data.image_data import Splits
    from trainkit.data.types import Data
    from trainkit.training.device import Device


class AugmentSpec(BaseModel):
    """Random transforms of training images, by timm's `create_transform`; the defaults are
    timm's.
    """

    model_config = STRICT

    scale: tuple[float, float] = Field(
        (0.08, 1.0), description="area of the random crop, as fractions"
    )
    ratio: tuple[float, float] = Field((0.75, 4 / 3), description="aspect ratio of the random crop")
    hflip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    vflip: float = Field(0.0, ge=0, le=1, description="probability of a vertical flip")
    color_jitter: float = Field(
        0.4, ge=0, description="strength of colour jitter; 0 for none (grey images)"
    )
    color_jitter_prob: float | None = Field(
        None, ge=0, le=1, description="probability of colour jitter; null: always"
    )
    grayscale_prob: float | None = Field(
        None, ge=0, le=1, description="probability that colours become greys; null: never"
    )
    gaussian_blur_prob: float | None = Field(
        None, ge=0, le=1, description="probability of a blur by 23 x 23 pixels; null: never"
    )
    auto_augment: str | None = Field(
        None, description="timm's policy string, such as rand-m9-mstd0.5"
    )
    re_prob: float = Field(0.0, ge=0, le=1, description="probability of random erasing")
    re_mode: Literal["const", "rand", "pixel"] = Field(
        "const",
        description="what is erased becomes the mean (const), one normally distributed colour "
        "(rand), or such a colour in each pixel (pixel, the default of timm's training script)",
    )
    re_count: int = Field(
        1, ge=1, le=100, description="most rectangles that are erased in one image"
    )
    crop_mode: Literal["rrc", "rkrc", "rkrr"] = Field(
        "rrc",
        description="rrc: a random part, resized; rkrc, rkrr: the whole image, resized by about "
        "as much with its proportions kept, then its middle (rkrc) or a random place (rkrr)",
    )
    interpolation: Literal[
        "random", "nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"
    ] = Field("random", description="how the crop is resized; random: bilinear or bicubic")
    repeats: float = Field(
        1.0,
        ge=1,
        le=100,
        description="copies of an image, each augmented by itself, that follow one another over "
        "the ranks (repeated augmentation); an epoch stays as long, and so has fewer images",
    )
    splits: int = Field(
        1,
        ge=1,
        le=16,
        description="parts of a batch that show its images in turn: the first only cropped and "
        "flipped, each further one augmented anew (AugMix: 3); 1: one part, augmented",
    )
    resplit: bool = Field(False, description="erase in the further splits alone")

    @field_validator("scale", "ratio")
    @classmethod
    def _check_range(cls, value: tuple[float, float], info: ValidationInfo) -> tuple[float, float]:
        low, high = value
        if not 0 < low <= high <= (1 if info.field_name == "scale" else 1000):
            most = " <= 1" if info.field_name == "scale" else ""
            raise ValueError(f"is two numbers with 0 < low <= high{most}; got [{low:g}, {high:g}]")
        return value

    @field_validator("resplit")
    @classmethod
    def _check_resplit(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("splits") == 1:
            raise ValueError(
                "spares the first of several splits, and there is one; set splits (AugMix: 3), or "
                "leave it out"
            )
        return value

    @field_validator("auto_augment")
    @classmethod
    def _check_policy(cls, value: str | None) -> str | None:
        wrong = "" if value is None else policy_problem(value)
        if wrong:
            raise ValueError(wrong)
        return value


class ImageSource(DataSource):
    """A source of images: what every one understands.

    A subclass has `splits`, or `images_by_class`, or both.
    """

    image_size: int | None = Field(
        None, ge=1, le=16_384, description="side in pixels; default: the model's own"
    )
    augment: AugmentSpec | None = Field(
        None, description="random transforms of training images; none: no change"
    )
    mean: tuple[float, ...] | None = Field(
        None, description="per channel, subtracted; default: the source's own"
    )
    std: tuple[float, ...] | None = Field(
        None, description="per channel, divided by; default: the source's own"
    )

    def splits(self, recipe: Recipe) -> Splits:
        """Return the training and the validation images.

        Raises:
            UserError: the files cannot be used, or the recipe does not fit them.
        """
        mark = recipe.raw.nearest("data", "name")
        raise UserError(
            f"{mark}: data: {self.name} has no class with both training and validation images; it "
            "is for few-shot tasks: switch on a plugin that draws them, or name other data"
        )

    def images_by_class(self, where: Where, shape: tuple[int, int, int], key: str) -> ImagesByClass:
        """Return the images of one split of the classes, for few-shot tasks.

        Args:
            where: which split; no class is in two of them.
            shape: channels, height and width that the images are to have.
            key: the recipe's name of the section, for messages.

        Raises:
            UserError: the files are not there, or there is no such split; the message does not say
                in which file of recipes.
        """
        raise UserError(f"{key}: {self.name} has no images in classes to make few-shot tasks of")

    def build(self, recipe: Recipe, device: Device) -> Data:
        """Return the images of both splits as this rank's data."""
        from trainkit.data.image_data import image_data

        return image_data(self.splits(recipe), self, recipe, device)
