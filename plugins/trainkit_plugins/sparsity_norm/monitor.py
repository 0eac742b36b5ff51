"""`sparsity_bias`: whether the model's output follows how much of its input is observed."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr
from trainkit_data.few_shot import GeneratedStream

from trainkit import (
    Batch,
    Data,
    History,
    Plugin,
    Predictions,
    Run,
    Section,
    figure,
    hookimpl,
)

from .paper import CITATION

if TYPE_CHECKING:
    from torch import Tensor

    from .bias import Measure, SparsityBias


class SparsityBiasMonitor(Plugin):
    """Measure whether the model's output follows how much of its input is observed.

    At the start and after every validation: the correlation, over validation rows, of log(number of
    observed entries) with the output, and that with the truth beside it. The run stays
    bit-identical to one without this plugin.
    """

    citation: ClassVar[str] = CITATION
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
            self.refuse(
                run, "", "needs batches of inputs and targets, and these data are drawn tasks"
            )
        return data

    @hookimpl
    def on_fit_start(self, run: Run) -> None:
        """Measure the untrained model, and look whether the run to compare with is there."""
        from .bias import sparsity_bias

        if self.baseline is not None and not self._points(_history(self.baseline)):
            why = f"{self.baseline} is not the folder of a finished run with {self.name}"
            self.refuse(run, "baseline", why)
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
