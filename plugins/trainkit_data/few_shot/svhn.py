"""SVHN's test images, by class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit import ImagesByClass, UserError
from trainkit.data.class_images import Fitted, Where, grouped

if TYPE_CHECKING:
    from trainkit_data.few_shot.sources import SvhnSource


def by_class(
    spec: SvhnSource, where: Where, shape: tuple[int, int, int], key: str
) -> ImagesByClass:
    """Return the images of one split of the classes."""
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
    members = grouped(data.labels.tolist(), 10)
    fitted = Fitted(lambda number: data[number][0], len(data), shape)
    return ImagesByClass(fitted, members, [f"digit {digit}" for digit in range(10)])
