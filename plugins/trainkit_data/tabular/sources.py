"""Sources of rows of features. Imports no torch: recipes are checked before it loads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from trainkit import DataSource

if TYPE_CHECKING:
    from trainkit import Data, Recipe
    from trainkit.training.device import Device


class TableSource(DataSource):
    """Rows of features and a target column, from a CSV or Parquet file or from scikit-learn.

    Gaps become NaN.
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

    def build(self, recipe: Recipe, device: Device) -> Data:
        """Return the tables for this rank."""
        from trainkit_data.tabular.tables import build

        return build(self, recipe, device)


class RatingsSource(DataSource):
    """Users' ratings of items, a row per user: to predict held-out ratings from the others.

    NaN stands where there is no rating.
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
    def _check(self) -> RatingsSource:
        low, high = self.rate
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"rate is two numbers with 0 < low <= high <= 1; got [{low:g}, {high:g}]"
            )
        return self

    def build(self, recipe: Recipe, device: Device) -> Data:
        """Return the ratings for this rank."""
        from trainkit_data.tabular.ratings import build

        return build(self, recipe, device)
