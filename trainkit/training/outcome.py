"""What a run has reached so far: its best validations, its last one, and its wall time."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from trainkit.config.direction import goodness
from trainkit.config.recipe import CheckpointSpec


class Outcome:
    """Ranks the validations of a run, and counts its seconds.

    Args:
        spec: says by which metric validations are ranked, and how many are kept.

    Attributes:
        best: the best validations, the best first: epoch, value, all metrics, file of the weights.
        final: the metrics of the last validation.
    """

    def __init__(self, spec: CheckpointSpec) -> None:
        self.best: list[dict[str, Any]] = []
        self.final: dict[str, float] = {}
        self._spec = spec
        self._seconds_before = 0.0
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, over all its sessions."""
        return self._seconds_before + time.monotonic() - self._started

    def add(self, epoch: int, metrics: Mapping[str, float]) -> int | None:
        """Take in a validation; return its rank from 0 if it is among the best."""
        self.final = dict(metrics)
        entry = {
            "epoch": epoch,
            "value": metrics[self._spec.metric],
            "metrics": dict(metrics),
            "file": f"best-{epoch + 1:04d}.safetensors",
        }
        ranked = sorted([*self.best, entry], key=self._rank)
        self.best = ranked[: self._spec.keep_best]
        rank = ranked.index(entry)
        if rank < self._spec.keep_best:
            return rank
        return None

    def _rank(self, entry: Mapping[str, Any]) -> tuple[bool, float, int]:
        """Return what sorts better validations first, and those that are not finite last.

        A tie keeps the earlier one.
        """
        value, epoch = entry["value"], entry["epoch"]
        if not math.isfinite(value):
            return True, 0.0, epoch
        return False, -goodness(value, self._spec.mode), epoch

    def state_dict(self) -> dict[str, Any]:
        """Return all of it."""
        return {"best": self.best, "final": self.final, "seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put it back, as the earlier sessions of the run left it."""
        self.best, self.final = list(state["best"]), dict(state["final"])
        self._seconds_before = state["seconds"]
