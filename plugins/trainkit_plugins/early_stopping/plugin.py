"""`early_stopping`: a patience on one validation metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, PrivateAttr, model_validator

from trainkit import Plugin, Run, goodness, hookimpl


class EarlyStopping(Plugin):
    """Stop when a validation metric has not improved for a number of validations."""

    citation: ClassVar[str] = ""
    neutral: ClassVar[dict[str, Any]] = {"patience": 10**9}

    metric: str | None = Field(
        None, description="what to watch; default: the recipe's checkpoint.metric"
    )
    mode: Literal["max", "min"] | None = Field(
        None,
        description=(
            "whether more or less is better; default: checkpoint.mode, for checkpoint.metric only"
        ),
    )
    patience: int = Field(
        5, ge=1, description="stop after so many validations in a row without improvement"
    )
    min_delta: float = Field(
        0.0, allow_inf_nan=False, ge=0, description="the least change that counts as an improvement"
    )

    _best: float | None = PrivateAttr(default=None)
    _since: int = PrivateAttr(default=0)

    @model_validator(mode="after")
    def _check(self) -> EarlyStopping:
        if (self.metric is None) != (self.mode is None):
            raise ValueError(
                "give metric and mode together (whether more or less of it is better), or neither "
                "for those of `checkpoint:`"
            )
        return self

    def _watched(self, run: Run) -> tuple[str, Literal["max", "min"]]:
        checkpoint = run.recipe.checkpoint
        return self.metric or checkpoint.metric, self.mode or checkpoint.mode

    @hookimpl
    def on_fit_start(self, run: Run) -> None:
        """Refuse a metric that this run does not measure."""
        metric, _ = self._watched(run)
        known = list(run.metrics.keys())
        if metric not in known:
            self.refuse(
                run,
                "metric",
                f"this run does not measure {metric!r} (it measures: {', '.join(known)})",
            )

    @hookimpl
    def on_evaluate_end(self, metrics: Mapping[str, float], run: Run) -> None:
        """Compare with the best so far; ask for the end of training when the patience is used
        up.
        """
        metric, mode = self._watched(run)
        value, needed = float(metrics[metric]), -math.inf
        if self._best is not None:
            needed = goodness(self._best, mode) + self.min_delta
        if goodness(value, mode) > needed:
            self._best, self._since = value, 0
            return
        self._since += 1
        if self._since >= self.patience:
            best = "was never a number"
            if self._best is not None:
                best = f"has not got better than {self._best:.6g}"
            run.stop(f"early_stopping: {metric} {best} for {self._since} validations")

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and how many validations ago it was."""
        return {"best": self._best, "since": self._since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put them back."""
        self._best, self._since = state["best"], state["since"]

    def idle(self, run: Run) -> dict[str, str]:
        """Say that the run ends before the patience does."""
        train = run.recipe.train
        validations = -(-train.epochs // train.evaluate_every)
        if self.patience < validations:
            return {}
        return {
            "patience": (
                f"{self.patience:,} validations, and this run has {validations}: it never stops "
                "early"
            )
        }

    def explain(self, run: Run) -> list[str]:
        """Say what is watched."""
        metric, mode = self._watched(run)
        every = run.recipe.train.evaluate_every
        better = {"max": "higher", "min": "lower"}[mode]
        return [
            f"watches {metric} ({better} is better), measured every {every} epoch(s); stops after "
            f"{self.patience} validations without a gain above {self.min_delta:g}"
        ]
