"""Choosing alpha, the weight of an example in its own inference statistics, on data that training
has not seen.

One pass over the data measures every alpha on each batch while it is there, so that reading,
decoding and moving it happens once. Of each example three numbers are kept, whatever the number of
classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from ..common.preserve import kept_modes
from .surgery import converted_layers

T = TypeVar("T")
Metric = Literal["nll", "accuracy"]

ALPHAS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)
"""What is tried where nothing else is asked for: denser where small experiments found the best
values.
"""


@dataclass(frozen=True)
class Point:
    """What one alpha gives on some examples.

    Attributes:
        alpha: the weight.
        accuracy: share of examples classified correctly.
        nll: mean of -log p(target), in nats.
        calibration_error: expected calibration error, 15 bins of equal width, L1, as runs report
            it.
    """

    alpha: float
    accuracy: float
    nll: float
    calibration_error: float


@dataclass(frozen=True)
class Gain:
    """A mean paired difference, alpha against 0, and half of its 95% interval (normal
    approximation).
    """

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ± {self.half:.4f}"


def score(logits: Tensor, targets: Tensor) -> Tensor:
    """Return for each example -log p(target), the highest probability, and whether its class is
    right; NaN for logits that are NaN.

    Args:
        logits: [N, K].
        targets: classes [N].

    Returns:
        [3, N], float64, on the CPU.
    """
    # In float64, so that the nll of a confident example is not rounded to 0.
    log_p = logits.detach().to("cpu", torch.float64).log_softmax(1)
    targets = targets.to("cpu")
    highest, predicted = log_p.max(1)
    nll = nn.functional.nll_loss(log_p, targets, reduction="none")
    return torch.stack(
        [nll, highest.exp(), (predicted == targets).double().where(highest.isfinite(), math.nan)]
    )


def sweep(
    model: nn.Module,
    batches: Iterable[T],
    predict: Callable[[T], tuple[Tensor, Tensor]],
    alphas: Sequence[float],
) -> Tensor:
    """Measure every alpha on every example; afterwards each layer has the alpha it had.

    Args:
        model: converted by `convert_batch_norm`, in evaluation mode.
        batches: of anything that `predict` takes; read once.
        predict: runs the model on a batch and gives logits [N, K] and classes [N].
        alphas: each in [0, 1].

    Returns:
        Scores [len(alphas), 3, N] in the order of the examples; see `score`.

    Raises:
        ValueError: the model has no converted layer, or there is no example.
    """
    layers = list(converted_layers(model).values())
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no converted batch norm; call convert_batch_norm(model) "
            "first"
        )
    before = [layer.example_weight for layer in layers]
    scores: list[Tensor] = []
    try:
        with torch.no_grad():
            for batch in batches:
                rows = []
                for alpha in alphas:
                    for layer in layers:
                        layer.example_weight = float(alpha)
                    rows.append(score(*predict(batch)))
                scores.append(torch.stack(rows))
    finally:
        for layer, alpha in zip(layers, before, strict=True):
            layer.example_weight = alpha
    if not scores:
        raise ValueError("there is no example to tune on")
    return torch.cat(scores, dim=2)


@contextmanager
def evaluating(model: nn.Module, weights: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """Put `model` into evaluation mode, with other weights where they are given; afterwards all
    is as before.
    """
    trained: dict[str, Tensor] = {}
    with kept_modes(model):
        try:
            if weights is not None:
                trained = {name: t.clone() for name, t in model.state_dict().items()}
                model.load_state_dict(weights)
            model.eval()
            yield
        finally:
            if trained:
                model.load_state_dict(trained)


def points(scores: Tensor, alphas: Sequence[float]) -> list[Point]:
    """Return what each alpha gives on average over the examples of `scores` [len(alphas), 3, N]."""
    found = []
    for alpha, (nll, confidence, correct) in zip(alphas, scores, strict=True):
        error = calibration_error(confidence, correct)
        found.append(Point(float(alpha), float(correct.mean()), float(nll.mean()), error))
    return found


def calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:
    """Return sum_b n_b/N |accuracy_b - confidence_b| over equal bins of confidence; NaN where a
    confidence is.

    Args:
        confidence: highest probability of each example [N], in [0, 1].
        correct: 1 where its class is right, else 0 [N].
        bins: number of bins.
    """
    if not bool(torch.isfinite(confidence).all()):
        return math.nan
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=confidence.dtype).index_add_(0, place, correct - confidence)
    return float(gaps.abs().sum() / confidence.numel())


def choose(curve: Sequence[Point], metric: Metric) -> Point:
    """Return the best point: least nll, or most accuracy and of those the least nll. Ties go to the
    least alpha.

    Points whose nll is not finite are left out.

    Raises:
        ValueError: there is no other.
    """
    usable = [point for point in curve if math.isfinite(point.nll)]
    if not usable:
        raise ValueError("no alpha gives finite predictions")
    return min(usable, key=lambda p: (-p.accuracy if metric == "accuracy" else 0.0, p.nll, p.alpha))


def halves(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Split examples into those of even and those of odd position: both halves have their share of
    every class even where the examples are sorted by class.

    Raises:
        ValueError: there are not two examples.
    """
    if scores.shape[2] < 2:
        raise ValueError(
            f"{scores.shape[2]} example cannot be split into one half to tune on and one to "
            "report on"
        )
    return scores[:, :, 0::2], scores[:, :, 1::2]


def gain(values: Tensor, baseline: Tensor) -> Gain:
    """Return the mean difference of paired values [N] to a baseline [N], with its 95% interval."""
    difference = values - baseline
    half = (
        1.96 * float(difference.std()) / difference.numel() ** 0.5
        if difference.numel() > 1
        else math.nan
    )
    return Gain(float(difference.mean()), half)


def choose_alpha(scores: Tensor, alphas: Sequence[float], metric: Metric) -> float:
    """Return the best alpha, or 0 unless the best is better than 0 by more than chance.

    The best of several alphas on some examples is often just the luckiest; so its paired gain over
    alpha 0 must have a 95% interval that excludes no gain, or inference is left as it is.

    Args:
        scores: [len(alphas), 3, N] of `sweep`.
        alphas: what was measured; 0 is among them.
        metric: by which to choose.

    Raises:
        ValueError: no alpha gives finite predictions.
    """
    known = list(map(float, alphas))
    best = choose(points(scores, alphas), metric).alpha
    row, sign = (0, -1) if metric == "nll" else (2, 1)
    found = gain(scores[known.index(best), row], scores[known.index(0.0), row])
    return best if sign * found.mean > found.half else 0.0
