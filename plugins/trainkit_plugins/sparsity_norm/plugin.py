"""`sparsity_norm` and `sparsity_bias`: the layer before a model, and the monitor of what it is
there for.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr, model_validator
from trainkit_data.few_shot import GeneratedStream

from trainkit import (
    Batch,
    Data,
    History,
    Plugin,
    Predictions,
    Run,
    Section,
    UserError,
    figure,
    hookimpl,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .bias import Measure, SparsityBias
    from .layers import MissingInput
    from .statistics import Statistics

_CITATION = """\
@inproceedings{yi2020why,
  title={Why Not to Use Zero Imputation? Correcting Sparsity Bias in Training Neural Networks},
  author={Yi, Joonyoung and Lee, Juhyuk and Kim, Kwang Joon and Hwang, Sung Ju and Yang, Eunho},
  booktitle={International Conference on Learning Representations},
  year={2020}
}"""


class SparsityNormalization(Plugin):
    """Scale each input with missing entries by how many it has, or fill the gaps in another way.

    x_SN = K * (x * m) / ||m||_1 with the mask m of what is observed (not NaN), in training and at
    test alike. What it needs to know of the data is learned from the training rows before training.
    """

    citation: ClassVar[str] = _CITATION
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
            raise UserError(f"{_where(self, run)}: {error}") from None
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


def _where(plugin: Plugin, run: Run) -> str:
    return f"{run.recipe.raw.nearest('plugins', plugin.name)}: plugins.{plugin.name}"


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


class SparsityBiasMonitor(Plugin):
    """Measure whether the model's output follows how much of its input is observed.

    At the start and after every validation: the correlation, over validation rows, of log(number of
    observed entries) with the output, and that with the truth beside it. The run stays
    bit-identical to one without this plugin.
    """

    citation: ClassVar[str] = _CITATION
    neutral: ClassVar[dict[str, Any]] = {}

    output: Literal["auto", "prediction", "confidence", "logit"] = Field(
        "auto",
        description=(
            "what of the output: mean predicted number; largest probability, beside whether it is "
            "right; mean size of the logits. auto: the first for numbers, the second for classes"
        ),
    )
    baseline: str | None = Field(
        None,
        description=(
            "folder of a finished run with this monitor, shown as the state before: with method "
            "zero, say"
        ),
    )
    points: int = Field(
        400,
        ge=2,
        description="validation rows that the plot shows, evenly chosen; all are measured",
    )

    _found: list[Tensor] = PrivateAttr(default_factory=list)
    _last: Tensor | None = PrivateAttr(default=None)

    @property
    def _measure(self) -> Measure | None:
        from .bias import confidence, mean_logit, mean_prediction

        named: dict[str, Measure] = {
            "prediction": mean_prediction,
            "confidence": confidence,
            "logit": mean_logit,
        }
        return named.get(self.output)

    @hookimpl(wrapper=True)
    def build_data(self, run: Run) -> Generator[None, Data, Data]:
        """Refuse tasks, whose model adapts before it predicts: it has no output of its own to
        measure.
        """
        data = yield
        if isinstance(data.train, GeneratedStream):
            raise UserError(
                f"{_where(self, run)}: needs batches of inputs and targets, and these data are "
                "drawn tasks"
            )
        return data

    @hookimpl
    def on_fit_start(self, run: Run) -> None:
        """Measure the untrained model, and look whether the run to compare with is there."""
        from .bias import sparsity_bias

        if self.baseline is not None and not self._points(_history(self.baseline)):
            raise UserError(
                f"{_where(self, run)}.baseline: {self.baseline} is not the folder of a finished run"
                f" with {self.name}"
            )
        if run.step > 0:
            return
        with run.untouched(), run.device.autocast():
            found = sparsity_bias(run.model, run.data.val, self._measure)
        self._log(self._together(found, run), run)
        self._log_points(run)

    @hookimpl
    def on_evaluate_start(self) -> None:
        """Begin anew."""
        self._found = []

    @hookimpl(wrapper=True)
    def evaluate_batch(self, batch: Any) -> Generator[None, Predictions, Predictions]:
        """Look at a validation batch and what the model made of it."""
        from .bias import points_of

        predictions = yield
        if isinstance(batch, Batch):
            self._found.append(points_of(batch.inputs, *predictions, self._measure))
        return predictions

    @hookimpl
    def on_evaluate_end(self, run: Run) -> None:
        """Log the correlation over all rows."""
        import torch

        from .bias import SparsityBias

        if self._found:
            self._log(self._together(SparsityBias(*torch.cat(self._found, dim=1)), run), run)
            self._found = []

    @hookimpl
    def on_fit_end(self, run: Run) -> None:
        """Log the rows of the last validation, for the plot."""
        self._log_points(run)

    def _together(self, own: SparsityBias, run: Run) -> SparsityBias:
        """Return the rows of all ranks, and remember those that will be shown."""
        import torch

        from .bias import SparsityBias

        stacked = torch.stack([own.count, own.output, own.truth])
        rows = torch.cat(run.device.gather(stacked), dim=1)
        chosen = (
            torch.linspace(0, rows.shape[1] - 1, min(self.points, rows.shape[1])).round().long()
        )
        self._last = rows[:, chosen]
        return SparsityBias(*rows)

    def _log(self, found: SparsityBias, run: Run) -> None:
        for name, value in (
            ("correlation", found.correlation),
            ("true_correlation", found.true_correlation),
        ):
            run.log.record(f"{self.name}/{name}", value.value)
            run.log.record(f"{self.name}/{name}_interval", _pair(value.low, value.high))

    def _log_points(self, run: Run) -> None:
        for name, values in zip(
            ("count", "output", "truth"), self._last if self._last is not None else (), strict=False
        ):
            run.log.record(f"{self.name}/{name}", values)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows of the last validation, and which of their numbers are known; what is
        saved is finite.
        """
        if self._last is None:
            return {}
        known = self._last.isfinite()
        return {"rows": self._last.where(known, 0), "known": known}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put them back."""
        if state:
            self._last = state["rows"].where(state["known"], float("nan"))

    def _points(self, history: History) -> list[tuple[list[float], ...]]:
        names = (f"{self.name}/{name}" for name in ("count", "output", "truth"))
        return history.together(*names)[1]

    def report(self, history: History) -> list[Section]:
        """Plot the output over the number of observed entries, before and after, and the
        correlation over training.
        """
        from .report import describe

        now = self._points(history)
        if not now:
            return []
        earlier = self._points(_history(self.baseline)) if self.baseline is not None else []
        title = (
            "the untrained model" if not earlier else f"before: {Path(self.baseline or '').name}"
        )
        left, right = (earlier or now)[-1 if earlier else 0], now[-1]
        drawn, axes = figure(1, 3, height=3.1)
        series = [
            history.series(f"{self.name}/{name}") for name in ("correlation", "true_correlation")
        ]
        text, table = describe(axes, (title, left), ("this run, trained", right), series)
        return [Section("Output and number of observed entries", text, [drawn], table)]


def _pair(low: float, high: float) -> Tensor:
    import torch

    return torch.tensor([low, high])


def _history(folder: str) -> History:
    return History.read(Path(folder) / "metrics.jsonl")
