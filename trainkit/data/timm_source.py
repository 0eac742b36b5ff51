"""The data sets of timm and torchvision as a source of data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from trainkit.config.data_source import WORKERS
from trainkit.data.images import AugmentSpec, ImageSource

if TYPE_CHECKING:
    from trainkit.config.recipe import Recipe
    from trainkit.data.class_images import ImagesByClass, Where
    from trainkit.data.image_data import Splits


class TimmSource(ImageSource):
    """Data sets with random access of `timm.data.create_dataset`, such as folders of images.

    Their names are timm's: `folder`, `tar`, `torch/cifar10`, `hfds/…`, …
    """

    name: str = Field(description="timm's name of the data set")
    root: str = Field(description="folder (or archive) that holds the files")
    train_split: str = Field("train", description="timm's name of the training split")
    val_split: str = Field("validation", description="timm's name of the validation split")
    download: bool = Field(False, description="let timm download the files, where the source can")
    class_map: str = Field("", description="file that maps class names to indices")
    test_split: str = Field(
        "test", description="few-shot: timm's name of the split that has the test classes"
    )
    num_classes: int | None = Field(
        None, ge=2, description="needed only where the source does not say"
    )
    workers: int | None = Field(None, ge=0, le=1024, description=WORKERS)
    augment: AugmentSpec | None = Field(
        AugmentSpec(scale=(0.08, 1.0)),
        description="random transforms of training images; null: no change",
    )

    def splits(self, recipe: Recipe) -> Splits:
        """Return the images of both splits."""
        from trainkit.data.image_data import Splits
        from trainkit.data.preparation import pretrained_cfg
        from trainkit.data.timm_sets import open_splits

        train, val, count = open_splits(self, recipe)
        cfg = pretrained_cfg(recipe)
        return Splits(
            train.examples,
            val.examples,
            count,
            cfg.mean,
            cfg.std,
            False,
            train.names,
            train.counts,
            val.counts,
            (*train.notes, *val.notes),
        )

    def images_by_class(self, where: Where, shape: tuple[int, int, int], key: str) -> ImagesByClass:
        """Return the images of a split, of which every folder is a class."""
        from trainkit.data.split_folders import split_by_class

        return split_by_class(self, where, shape, key)
