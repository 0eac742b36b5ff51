"""Sources of images that few-shot tasks are made of. Imports neither torch nor timm: recipes are
checked before those load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from trainkit import ImageSource
from trainkit.errors import suggest
from trainkit_data.few_shot.faces import FACES, Script

if TYPE_CHECKING:
    from trainkit import ImagesByClass, Recipe, Splits
    from trainkit.data.class_images import Where


class GlyphsSource(ImageSource):
    """Letters rendered from matplotlib's fonts: a class is a letter, an image one face of it.

    For few-shot tasks the scripts make the splits; for classification those of `scripts` are all
    classes there are.
    """

    name: Literal["glyphs"]
    image_size: int | None = Field(
        28, ge=8, le=16_384, description="side in pixels; null: the model's own"
    )
    scripts: tuple[Script, ...] = Field(
        ("latin", "greek"), min_length=1, description="whose letters are the classes"
    )
    letters: int | None = Field(
        None, ge=2, description="use only so many of them, evenly spread; default: all"
    )
    variants: int = Field(
        2, ge=1, le=16, description="images of each letter in each of 12 faces, distorted anew"
    )
    val_faces: tuple[str, ...] = Field(
        ("DejaVuSans-Oblique", "DejaVuSansMono-Bold", "DejaVuSerif-BoldItalic"),
        min_length=1,
        description="faces held out for validation, by their file names in matplotlib",
    )

    val_scripts: tuple[Script, ...] = Field(
        ("cyrillic",), min_length=1, description="few-shot: validation classes"
    )
    test_scripts: tuple[Script, ...] = Field(
        ("armenian", "georgian"), min_length=1, description="few-shot: test classes"
    )
    rotations: bool = Field(
        False, description="few-shot: a letter and its three turns by 90 degrees are four classes"
    )

    @field_validator("scripts", "val_faces", "val_scripts", "test_scripts")
    @classmethod
    def _once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("names one twice")
        return names

    @field_validator("val_faces")
    @classmethod
    def _faces(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in FACES:
                raise ValueError(
                    f"{name!r} is no face{suggest(name, FACES)} (there are: {', '.join(FACES)})"
                )
        if len(names) == len(FACES):
            raise ValueError("holds out every face; leave some for training")
        return names

    def splits(self, recipe: Recipe) -> Splits:
        """Return the letters of `scripts`, split by face."""
        from trainkit_data.few_shot.glyph_images import splits

        return splits(self, recipe)

    def images_by_class(self, where: Where, shape: tuple[int, int, int], key: str) -> ImagesByClass:
        """Return the images of one split of the classes."""
        from trainkit_data.few_shot.glyph_images import by_class

        return by_class(self, where, shape, key)


class OmniglotSource(ImageSource):
    """Omniglot's 1,623 handwritten characters of 50 alphabets, as torchvision stores them.

    Each has 20 images.
    """

    name: Literal["omniglot"]
    image_size: int | None = Field(
        28, ge=8, le=16_384, description="side in pixels; null: the model's own"
    )
    root: str = Field(description="folder that holds torchvision's omniglot-py")
    download: bool = Field(False, description="let torchvision download the files")
    split: Literal["alphabets", "characters"] = Field(
        "alphabets",
        description=(
            "25 background alphabets, the other 5, the evaluation set; or 1,100, 100 and 423 "
            "characters"
        ),
    )
    rotations: bool = Field(
        True, description="a character and its three turns by 90 degrees are four classes"
    )

    def images_by_class(self, where: Where, shape: tuple[int, int, int], key: str) -> ImagesByClass:
        """Return the images of one split of the classes."""
        from trainkit_data.few_shot.omniglot import by_class

        return by_class(self, where, shape, key)


class CifarFsSource(ImageSource):
    """CIFAR-FS (Bertinetto et al. 2019): CIFAR-100 as image files, for few-shot tasks.

    64, 16 and 20 of its classes are in the splits.
    """

    name: Literal["cifar_fs"]
    image_size: int | None = Field(
        32, ge=8, le=16_384, description="side in pixels; null: the model's own"
    )
    root: str = Field(description="folder that holds data/<class>/ and splits/bertinetto/")

    def images_by_class(self, where: Where, shape: tuple[int, int, int], key: str) -> ImagesByClass:
        """Return the images of one split of the classes."""
        from trainkit_data.few_shot.cifar_fs import by_class

        return by_class(self, where, shape, key)


class SvhnSource(ImageSource):
    """SVHN's test images, 10 classes of house-number digits: for few-shot tests only.

    The file is as torchvision stores it.
    """

    name: Literal["svhn"]
    image_size: int | None = Field(
        32, ge=8, le=16_384, description="side in pixels; null: the model's own"
    )
    root: str = Field(description="folder that holds test_32x32.mat")
    download: bool = Field(False, description="let torchvision download the file")

    def images_by_class(self, where: Where, shape: tuple[int, int, int], key: str) -> ImagesByClass:
        """Return the images of one split of the classes."""
        from trainkit_data.few_shot.svhn import by_class

        return by_class(self, where, shape, key)
