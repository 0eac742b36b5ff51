"""Class folders for few-shot tasks: the images of each split's classes in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trainkit.data.class_images import ImagesByClass, Where, in_folders, subfolders
from trainkit.errors import UserError

if TYPE_CHECKING:
    from trainkit.data.timm_source import TimmSource


def split_by_class(
    spec: TimmSource, where: Where, shape: tuple[int, int, int], key: str
) -> ImagesByClass:
    """Return the images of a split by class.

    Raises:
        UserError: the data are no class folders, or a class is in two splits.
    """
    if spec.name not in ("folder", "torch/folder", "torch/image_folder"):
        raise UserError(
            f"{key}: the classes of {spec.name!r} cannot be split for few-shot tasks; use folder, "
            "with the images of each split's classes in a folder of its own"
        )
    names = {"train": spec.train_split, "validation": spec.val_split, "test": spec.test_split}
    folder = names["test" if where == "target" else where]
    expected = f"images in {spec.root}/{folder}/<class>/"
    classes = subfolders(Path(spec.root) / folder)
    if not classes:
        raise UserError(
            f"{key}: there are no class folders in {Path(spec.root) / folder}; expected {expected}"
        )
    for split, other in names.items():
        if split != where and where != "target":
            for shared in classes.keys() & subfolders(Path(spec.root) / other).keys():
                raise UserError(
                    f"{key}: class {shared!r} is in {folder!r} and in {other!r}; the splits of "
                    "few-shot data have no class in common"
                )
    return in_folders(classes, shape, key, expected)
