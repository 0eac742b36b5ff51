"""What does each alpha give? Alpha is the weight of an example in its own inference statistics.

One pass over the data measures every alpha on each batch while it is there, so that reading,
decoding and moving it happens once. Of each example three numbers are kept, whatever the number of
classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..common.preserve import kept_modes
from .surgery import converted_layers

T = TypeVar("T")

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
