"""The `data:` section of a recipe. Imports neither torch nor timm: recipes are checked before
those load.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from trainkit.data.policies import policy_problem
from trainkit.errors import suggest

STRICT = ConfigDict(
    extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False, validate_default=True
)


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
    auto_augment: str | None = Field(
        None, description="timm's policy string, such as rand-m9-mstd0.5"
    )
    re_prob: float = Field(0.0, ge=0, le=1, description="probability of random erasing")
    interpolation: Literal[
        "random", "nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"
    ] = Field("random", description="how the crop is resized; random: bilinear or bicubic")

    @field_validator("scale", "ratio")
    @classmethod
    def _check_range(cls, value: tuple[float, float], info: ValidationInfo) -> tuple[float, float]:
        low, high = value
        if not 0 < low <= high <= (1 if info.field_name == "scale" else 1000):
            most = " <= 1" if info.field_name == "scale" else ""
            raise ValueError(f"is two numbers with 0 < low <= high{most}; got [{low:g}, {high:g}]")
        return value

    @field_validator("auto_augment")
    @classmethod
    def _check_policy(cls, value: str | None) -> str | None:
        wrong = "" if value is None else policy_problem(value)
        if wrong:
            raise ValueError(wrong)
        return value


class MissingSpec(BaseModel):
    """Entries of the inputs to hide: they become NaN, after normalisation. What is missing anyway
    stays missing.

    What is hidden of an example is a function of (this seed, split, index): the same in every epoch
    and run.
    """

    model_config = STRICT

    kind: Literal["at_random", "blocks", "depends"] = Field(
        description=(
            "independent of everything; one rectangle (of a row: a run of columns); more where a "
            "value is high"
        )
    )
    rate: tuple[float, float] = Field(
        (0.05, 0.95), description="share hidden, drawn uniformly for each example"
    )
    per: Literal["entry", "pixel", "channel"] = Field(
        "pixel",
        description="what is hidden at once: a number; a pixel in all channels; a whole channel",
    )
    on: str | None = Field(
        None, description="depends, in a table: the column whose value decides; it stays visible"
    )
    slope: float = Field(
        2.0,
        description=(
            "depends: rate = lo + (hi - lo) * sigmoid(slope * value), of a standardised value"
        ),
    )
    seed: int = Field(
        0, ge=0, lt=2**63, description="of what is hidden; the recipe's seed does not change it"
    )

    @model_validator(mode="after")
    def _check(self) -> MissingSpec:
        low, high = self.rate
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"rate is two numbers with 0 <= low <= high <= 1; got [{low:g}, {high:g}]"
            )
        if self.kind == "blocks" and self.per == "entry":
            raise ValueError("a block hides pixels or whole channels; set per to one of these")
        return self


_WORKERS = (
    "processes that read data; null: one for each core of the machine, shared among its ranks, at "
    "most 8; the data are the same for any number"
)


class StreamSpec(BaseModel):
    """What every data source understands."""

    model_config = STRICT

    batch_size: int = Field(64, ge=1, le=2**24, description="examples per micro-batch and rank")
    eval_batch_size: int | None = Field(
        None, ge=1, le=2**24, description="examples per validation batch; default: batch_size"
    )
    workers: int | None = Field(0, ge=0, le=1024, description=_WORKERS)
    drop_last: bool = Field(
        False, description="leave out the last, short training batch of an epoch"
    )
    missing: MissingSpec | None = Field(
        None, description="entries of the inputs to hide; default: none"
    )


class DataSpec(StreamSpec):
    """What every source of images understands."""

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


class DigitsSpec(DataSpec):
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels, in 10 classes; always there,
    nothing to download.
    """

    name: Literal["digits"]
    val_fraction: float = Field(
        0.2, gt=0, lt=1, description="share held out, stratified; the same for every seed"
    )


SCRIPTS = ("latin", "greek", "cyrillic", "armenian", "georgian")
FACES = tuple(
    f"DejaVu{family}{style}"
    for family, italic in (("Sans", "Oblique"), ("SansMono", "Oblique"), ("Serif", "Italic"))
    for style in ("", "-Bold", f"-{italic}", f"-Bold{italic}")
)
"""The faces in which all glyphs are rendered, by the names of their font files."""

Script = Literal["latin", "greek", "cyrillic", "armenian", "georgian"]


class GlyphsSpec(DataSpec):
    """Letters rendered from the fonts that come with matplotlib: a class is a letter, an image one
    face of it.

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


class TableSpec(StreamSpec):
    """Rows of features and a target column, from a CSV or Parquet file or from scikit-learn;
    gaps become NaN.
    """

    name: Literal["table"]
    path: str = Field(
        min_length=1,
        description="file (.csv, .tsv, .parquet), or breast_cancer, diabetes, iris, wine",
    )
    target: str | None = Field(
        None, description="the column to predict; scikit-learn's tables have their own"
    )
    task: Literal["auto", "classification", "regression"] = Field(
        "auto",
        description=(
            "auto: words, or at most 20 different whole numbers, are classes; other numbers are not"
        ),
    )
    drop: tuple[str, ...] = Field((), description="columns to leave out, such as identifiers")
    categorical: tuple[str, ...] = Field(
        (), description="columns of numbers that are names of categories"
    )
    gaps: tuple[str, ...] = Field(
        (), description="further words for a gap, beside: empty, NA, N/A, NaN, null, None, ?"
    )
    val_fraction: float = Field(
        0.2, gt=0, lt=1, description="share held out, stratified; the same for every seed"
    )


class RatingsSpec(StreamSpec):
    """Users' ratings of items, a row per user: to predict held-out ratings from the others. NaN
    where there is none.
    """

    name: Literal["ratings"]
    path: str | None = Field(
        None,
        description=(
            "MovieLens file (u.data, ratings.dat, ratings.csv) or its folder; default: made up, low"
            " rank"
        ),
    )
    users: int = Field(800, ge=2, le=10_000, description="made up: users")
    items: int = Field(200, ge=2, le=10_000, description="made up: items")
    rank: int = Field(4, ge=1, le=1000, description="made up: rank of the ratings without noise")
    noise: float = Field(
        0.3, ge=0, description="made up: standard deviation of the noise; that of the rest is 1"
    )
    rate: tuple[float, float] = Field(
        (0.03, 0.8),
        description="made up: share of items that a user rates, drawn log-uniformly for each user",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**63,
        description="made up: of everything; the recipe's seed does not change it",
    )
    val_fraction: float = Field(
        0.1, gt=0, lt=1, description="share of each user's ratings held out; same for any seed"
    )

    @model_validator(mode="after")
    def _check(self) -> RatingsSpec:
        low, high = self.rate
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"rate is two numbers with 0 < low <= high <= 1; got [{low:g}, {high:g}]"
            )
        return self


class TimmSpec(DataSpec):
    """Any data set with random access of `timm.data.create_dataset`: `folder`, `tar`,
    `torch/cifar10`, `hfds/…`, …
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
    workers: int | None = Field(None, ge=0, le=1024, description=_WORKERS)
    augment: AugmentSpec | None = Field(
        AugmentSpec(scale=(0.08, 1.0)),
        description="random transforms of training images; null: no change",
    )

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        known = [*BUILT_IN, *_FILES]
        if "/" not in name and name not in known:
            near = suggest(name, known)
            raise ValueError(
                f"no data set has this name{near} (there are: {', '.join(known)}, torch/…, hfds/…)"
            )
        return name


class OmniglotSpec(DataSpec):
    """Omniglot's 1,623 handwritten characters of 50 alphabets, 20 images each, as torchvision
    stores them.
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


class CifarFsSpec(DataSpec):
    """CIFAR-FS (Bertinetto et al. 2019): CIFAR-100 as image files, 64, 16 and 20 of its classes
    in the splits.
    """

    name: Literal["cifar_fs"]
    image_size: int | None = Field(
        32, ge=8, le=16_384, description="side in pixels; null: the model's own"
    )
    root: str = Field(description="folder that holds data/<class>/ and splits/bertinetto/")


class SvhnSpec(DataSpec):
    """SVHN's test images, 10 classes of house-number digits, as torchvision stores them:
    few-shot tests only.
    """

    name: Literal["svhn"]
    image_size: int | None = Field(
        32, ge=8, le=16_384, description="side in pixels; null: the model's own"
    )
    root: str = Field(description="folder that holds test_32x32.mat")
    download: bool = Field(False, description="let torchvision download the file")


BUILT_IN = {
    name: name for name in ("digits", "glyphs", "table", "ratings", "omniglot", "cifar_fs", "svhn")
}
"""Names that do not go to timm. A new one adds its spec here, below, and in `data/sources.py` or
`data/pools.py`.
"""


_FILES = ("folder", "tar")  # timm's names without a prefix: it would read any other as a folder too


def _tag(value: Any) -> str:
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return BUILT_IN.get(name, "timm") if isinstance(name, str) else "timm"


AnyDataSpec = Annotated[
    Annotated[DigitsSpec, Tag("digits")]
    | Annotated[GlyphsSpec, Tag("glyphs")]
    | Annotated[OmniglotSpec, Tag("omniglot")]
    | Annotated[CifarFsSpec, Tag("cifar_fs")]
    | Annotated[SvhnSpec, Tag("svhn")]
    | Annotated[TableSpec, Tag("table")]
    | Annotated[RatingsSpec, Tag("ratings")]
    | Annotated[TimmSpec, Tag("timm")],
    Discriminator(_tag),
]
