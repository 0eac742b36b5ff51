"""Accuracy over episodes, with the interval that few-shot papers give."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half-width of its 95% interval, 1.96 * deviation / sqrt(n) (NaN
    for one value).
    """
    found = torch.tensor(values, dtype=torch.float64)
    deviation = found.std().item() if len(values) > 1 else math.nan
    return found.mean().item(), 1.96 * deviation / math.sqrt(len(values))


def episode_accuracies(logits: Tensor, targets: Tensor, size: int) -> Tensor:
    """Return the accuracy of each episode [E], from logits [E * size, ways] and classes [E *
    size].
    """
    return _right(logits, targets).view(-1, size).mean(1)


def by_step(logits: Tensor, targets: Tensor) -> list[float]:
    """Return the accuracy after each step, from one task's logits [K + 1, M, ways] and classes
    [M].
    """
    found: list[float] = _right(logits, targets).mean(-1).tolist()
    return found


def _right(logits: Tensor, targets: Tensor) -> Tensor:
    """Return 1 where the highest logit is that of the class, else 0; NaN where there is no
    highest.
    """
    return (logits.argmax(-1) == targets).double().where(logits.amax(-1).isfinite(), math.nan)


def in_order(shares: Sequence[Sequence[T]]) -> list[T]:
    """Return what the ranks found in the order of the tasks: rank r of w has tasks r, r + w, r +
    2w …
    """
    return [shares[i % len(shares)][i // len(shares)] for i in range(sum(map(len, shares)))]


class EpisodeMetrics:
    """A collection of metrics with `accuracy_interval` added: half the width of the 95% interval
    over episodes.

    Args:
        metrics: the collection, as torchmetrics has them.
        size: query examples of an episode.
        gather: returns every rank's value, in order.
    """

    higher_is_better = None

    def __init__(
        self, metrics: Any, size: int, gather: Callable[[list[float]], list[list[float]]]
    ) -> None:
        self.metrics = metrics
        self._size, self._gather = size, gather
        self._accuracies: list[Tensor] = []

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count the episodes of a batch."""
        self.metrics.update(logits, targets)
        self._accuracies.append(episode_accuracies(logits, targets, self._size))

    def compute(self) -> Mapping[str, Any]:
        """Return the value of each metric over everything counted since `reset`, on all ranks
        together.
        """
        own = torch.cat(self._accuracies).tolist() if self._accuracies else []
        everywhere = in_order(self._gather(own))
        return {**self.metrics.compute(), "accuracy_interval": mean_and_interval(everywhere)[1]}

    def reset(self) -> None:
        """Forget everything counted."""
        self.metrics.reset()
        self._accuracies = []

    def keys(self) -> Iterable[str]:
        """Return the names of the metrics."""
        return [*self.metrics.keys(), "accuracy_interval"]

    def __getitem__(self, name: str) -> Any:
        return self if name == "accuracy_interval" else self.metrics[name]
