"""scikit-learn's handwritten digits as a source of data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from trainkit.data.images import ImageSource
from trainkit.errors import UserError

if TYPE_CHECKING:
    from trainkit.config.recipe import Recipe
    from trainkit.data.class_images import ImagesByClass, Where
    from trainkit.data.image_data import Splits


class DigitsSource(ImageSource):
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels, in 10 classes; always there."""

    name: Literal["digits"]
    val_fraction: float = Field(
        0.2, gt=0, lt=1, description="share held out, stratified; the same for every seed"
    )

    def splits(self, recipe: Recipe) -> Splits:
        """Return the images, split within each class."""
        from sklearn.model_selection import train_test_split

        from trainkit.data.image_data import GreyImages, splits_of_arrays

        images, targets = _load()
        # The split has a seed of its own: every recipe seed is validated on the same images.
        try:
            train_x, val_x, train_y, val_y = train_test_split(
                images, targets, test_size=self.val_fraction, stratify=targets, random_state=0
            )
        except ValueError:
            mark = recipe.raw.nearest("data", "val_fraction")
            message = (
                f"{self.val_fraction:g} of {len(images)} images leaves less than one of each class "
                "on one side"
            )
            raise UserError(f"{mark}: data.val_fraction: {message}") from None
        mean, std = float(train_x.mean()) / 255, float(train_x.std()) / 255
        return splits_of_arrays(
            GreyImages(train_x, train_y), GreyImages(val_x, val_y), list("0123456789"), mean, std
        )

    def images_by_class(self, where: Where, shape: tuple[int, int, int], key: str) -> ImagesByClass:
        """Return the images of digits 0 to 3, 4 to 6 or 7 to 9; of a target, all."""
        from PIL import Image

        from trainkit.data.class_images import Fitted, ImagesByClass, grouped

        images, targets = _load()
        first, end = {"train": (0, 4), "validation": (4, 7), "test": (7, 10), "target": (0, 10)}[
            where
        ]
        members = grouped(targets.tolist(), 10)[first:end]
        grey = Fitted(lambda number: Image.fromarray(images[number]), len(images), (1, *shape[1:]))
        return ImagesByClass(grey, members, [f"digit {digit}" for digit in range(first, end)])


def _load() -> tuple[Any, Any]:
    """Return the images [N, 8, 8] as bytes, and their classes [N]."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.rint(bunch.images * (255 / 16)).astype(np.uint8), bunch.target
