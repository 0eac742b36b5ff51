"""The variable sparsity problem as a number: does a model's output follow how much of its input
is observed?
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .normalization import observed

Measure = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From outputs and targets of a batch: one number per row for the output, and the true value of
it [N], [N].
"""


class Correlation(NamedTuple):
    """Pearson's correlation with its 95% interval by Fisher's transform; NaN where it is not
    defined.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SparsityBias:
    """Rows as points: how many entries are observed, what the model says, and what is true.

    Attributes:
        count: observed entries of each row [n].
        output: the output as one number [n].
        truth: its true value [n]; NaN where it is not known.
    """

    count: Tensor
    output: Tensor
    truth: Tensor

    @property
    def correlation(self) -> Correlation:
        """Of log(count) with the output."""
        return pearson(self.count.log(), self.output)

    @property
    def true_correlation(self) -> Correlation:
        """Of log(count) with the truth: what the output's would be without a bias."""
        return pearson(self.count.log(), self.truth)


def pearson(x: Tensor, y: Tensor) -> Correlation:
    """Return the correlation of two rows of numbers [n] over the places where both are finite."""
    both = x.isfinite() & y.isfinite()
    x, y = x[both].double(), y[both].double()
    n = len(x)
    x, y = x - x.mean(), y - y.mean()
    size = float(x.norm() * y.norm())
    if n < 3 or size == 0:
        return Correlation(math.nan, math.nan, math.nan)
    r = max(-1.0, min(1.0, float(x @ y) / size))
    if n == 3:
        return Correlation(r, -1.0, 1.0)
    if abs(r) == 1:
        return Correlation(r, r, r)
    half = 1.959964 / math.sqrt(n - 3)
    return Correlation(r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half))


def mean_prediction(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers: the mean of a row's outputs, and of its targets that are known (NaN is not
    known).
    """
    return outputs.mean(dim=1), targets.nanmean(dim=1)


def confidence(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Classes: the largest probability of a row, and whether that class is right (1) or not (0)."""
    largest, predicted = outputs.softmax(dim=1).max(dim=1)
    return largest, (predicted == targets).to(largest.dtype)


def mean_logit(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Classes: the mean size of a row's logits; there is no true value of it."""
    return outputs.abs().mean(dim=1), outputs.new_full((len(outputs),), math.nan)


def measure_for(targets: Tensor) -> Measure:
    """Return the measure that is used unless another is asked for: by whether targets are
    classes or numbers.
    """
    return mean_prediction if targets.is_floating_point() and targets.ndim == 2 else confidence


@torch.no_grad()
def points_of(
    inputs: Tensor,
    outputs: Tensor,
    targets: Tensor,
    measure: Measure | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Return observed entries, output and truth of a batch's rows [3, N] on the CPU; see
    `sparsity_bias`.
    """
    count = observed(inputs, mask).flatten(1).sum(dim=1)
    output, truth = (measure or measure_for(targets))(outputs, targets)
    return torch.stack([values.float().cpu() for values in (count, output, truth)])


@torch.no_grad()
def sparsity_bias(
    model: nn.Module, loader: Iterable[tuple[Tensor, ...]], measure: Measure | None = None
) -> SparsityBias:
    """Return what `model` makes of rows with many and with few observed entries.

    The model is measured in evaluation mode and left in the mode in which it was. Rows of which
    nothing is observed do not count in correlations.

    Args:
        model: takes inputs [N, ...].
        loader: batches of inputs with NaN for what is missing, and targets; or of inputs as the
            model takes them, targets and masks.
        measure: how an output becomes one number, and what is true; default: `mean_prediction` for
            targets that are numbers [N, K], `confidence` for classes.

    Raises:
        ValueError: there is no batch.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    points: list[Tensor] = []
    try:
        for inputs, targets, *rest in loader:
            inputs, targets = inputs.to(device), targets.to(device)
            mask = rest[0].to(device) if rest else None
            points.append(points_of(inputs, model(inputs).float(), targets, measure, mask))
    finally:
        for module, mode in modes:
            module.training = mode
    if not points:
        raise ValueError("the bias is measured on rows, and there are none")
    return SparsityBias(*torch.cat(points, dim=1))
