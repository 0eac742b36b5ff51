"""`sparsity_norm`: the layer before a model; its monitor has a file of its own."""

from __future__ import annotations

import functools
import operator
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr, model_validator

from trainkit import (
    Batch,
    Plugin,
    Run,
    hookimpl,
)

from .paper import CITATION

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .layers import MissingInput
    from .statistics import Statistics


class SparsityNormalization(Plugin):
    """Scale each input with missing entries by how many it has, or fill the gaps in another way.

    x_SN = K * (x * m) / ||m||_1 with the mask m of what is observed (not NaN), in training and at
    test alike. What it needs to know of the data is learned from the training rows before training.
    """

    citation: ClassVar[str] = CITATION
    # On data without gaps: where there are some, a run without the plugin is refused.
    neutral: ClassVar[dict[str, Any]] = {"method": "sparsity_norm", "k": "mean", "center": False}

    method: Literal["sparsity_norm", "zero", "mean", "zero_and_mask", "inverted_dropout"] = Field(
        "sparsity_norm",
        description=(
            "K x m / ||m||_1; x m; training means in the gaps; x m with m as further channels; x m "
            "/ p with one p for all rows"
        ),
    )
    center: bool = Field(
        True,
        description=(
            "first take off the mean of the observed training entries, by channel of images or by "
            "feature"
        ),
    )
    k: Literal["mean"] | Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        "mean",
        description="sparsity_norm: K; mean: the mean number of observed entries of a training row",
    )
    mask: Literal["entry", "pixel"] = Field(
        "entry", description="pixel: a pixel with a missing channel is missing in all of them"
    )
    per: Literal["row", "channel"] = Field(
        "row",
        description=(
            "sparsity_norm: count all of an input's observed entries, or those of each channel by "
            "itself"
        ),
    )

    _statistics: Statistics | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _check(self) -> SparsityNormalization:
        if self.method != "sparsity_norm" and (self.k != "mean" or self.per != "row"):
            raise ValueError(
                f"k and per are of method sparsity_norm; leave them out with {self.method}"
            )
        if self.method == "mean" and not self.center:
            raise ValueError(
                "method mean puts the training means into the gaps; leave center out, or take "
                "method zero"
            )
        return self

    def _layer(self) -> MissingInput:
        from .layers import (
            InvertedDropout,
            MaskAsInput,
            MeanImputation,
            SparsityNorm,
            ZeroImputation,
        )

        if self.method == "sparsity_norm":
            k = None if self.k == "mean" else self.k
            return SparsityNorm(k, center=self.center, mask=self.mask, per=self.per)
        if self.method == "mean":
            return MeanImputation(mask=self.mask)
        others = {
            "zero": ZeroImputation,
            "zero_and_mask": MaskAsInput,
            "inverted_dropout": InvertedDropout,
        }
        return others[self.method](center=self.center, mask=self.mask)

    @hookimpl(wrapper=True)
    def build_model(self, run: Run) -> Generator[None, nn.Module, nn.Module]:
        """Put the layer before the model, having learned what it needs from the training rows."""
        from .attach import attach
        from .statistics import statistics_of

        model = yield
        layer = self._layer()
        try:
            layer.check(run.data.input_size)
            if not layer.learned:  # else it has no need of the data
                own = statistics_of(_inputs(run), whole_pixels=self.mask == "pixel")
                self._statistics = _of_all_ranks(own, run)
                layer.learn(self._statistics)
            attach(model, layer, run.data.input_size)
        except ValueError as error:
            self.refuse(run, "", str(error))
        model.takes_missing = True  # type: ignore[assignment]  # a module takes any attribute
        return model

    def explain(self, run: Run) -> list[str]:
        """Say what was learned from the training rows, and what becomes of the weights."""
        found, wanted, lines = self._statistics, self._layer().wanted, []
        if found is None:
            lines.append("learns nothing from the data")
        else:
            rows = f"{found.rows:,} training rows: {found.rate:.1%} of entries observed"
            lines.append(f"learned from {rows}, {found.mean_count:.6g} of a row on average")
            if never := int((found.count == 0).sum()):
                lines.append(
                    f"{never} channels or features are never observed: their mean counts as 0"
                )
        if wanted:
            names = ", ".join(f"sparsity_norm.{name}" for name in wanted)
            lines.append(
                f"kept weights: timm's keys, and {names}; plain timm loads them with strict=False"
            )
        return lines


def _inputs(run: Run) -> Iterator[Tensor]:
    """Yield this rank's training inputs, once, as the first epoch has them."""
    for batch in run.data.train.batches(0, 0):
        if not isinstance(batch, Batch):
            raise ValueError(
                f"needs batches of inputs and targets, and these data give {type(batch).__name__}"
            )
        yield batch.inputs


def _of_all_ranks(own: Statistics, run: Run) -> Statistics:
    """Return the statistics of all ranks' rows together, the same bits on each."""
    everywhere: list[Statistics] = run.device.gather(own)
    return functools.reduce(operator.add, everywhere)
