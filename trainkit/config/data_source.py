"""What every source of data is: a class whose fields are the options of a recipe's `data:` section.

Imports neither torch nor timm: recipes are checked before those load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from trainkit.config.recipe import Recipe
    from trainkit.data.types import Data
    from trainkit.training.device import Device

STRICT = ConfigDict(
    extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False, validate_default=True
)


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


WORKERS = (
    "processes that read data; null: one for each core of the machine, shared among its ranks, at "
    "most 8; the data are the same for any number"
)


class DataSource(BaseModel):
    """A source of data: a subclass adds its options as fields, and builds the data from them.

    A distribution offers it in the entry-point group `trainkit.data`; a recipe names it in `data:`,
    or a local one by `path/to/file.py:Class`. The class is imported to check a recipe, so its
    module imports what computes (torch, timm) inside `build` alone.
    """

    model_config = STRICT

    batch_size: int = Field(64, ge=1, le=2**24, description="examples per micro-batch and rank")
    eval_batch_size: int | None = Field(
        None, ge=1, le=2**24, description="examples per validation batch; default: batch_size"
    )
    workers: int | None = Field(0, ge=0, le=1024, description=WORKERS)
    drop_last: bool = Field(
        False, description="leave out the last, short training batch of an epoch"
    )
    missing: MissingSpec | None = Field(
        None, description="entries of the inputs to hide; default: none"
    )
    name: str = Field(min_length=1, description="of the source of data")

    def build(self, recipe: Recipe, device: Device) -> Data:
        """Return the data for this rank.

        `trainkit.make_streams` makes them of two sets of examples.

        Args:
            recipe: the recipe, of which this object is the `data:` section.
            device: says which rank this is, of how many.

        Raises:
            UserError: the files cannot be used, or the recipe does not fit them.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method `build`")
