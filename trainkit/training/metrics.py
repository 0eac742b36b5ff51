"""What training minimises and validation measures, of classes and of numbers."""

from __future__ import annotations

import math
from typing import cast

import timm.loss
import torch
import torchmetrics
from torch import Tensor, nn

from trainkit.config.direction import BETTER
from trainkit.config.recipe import LossSpec


def criterion(spec: LossSpec) -> nn.Module:
    """Return the loss that `train.loss:` names: from logits [N, K] and classes [N] or
    probabilities [N, K].
    """
    if spec.name == "bce":
        return cast(nn.Module, timm.loss.BinaryCrossEntropy(spec.smoothing, spec.target_threshold))
    if spec.name == "asymmetric":
        return cast(nn.Module, timm.loss.AsymmetricLossSingleLabel(eps=spec.smoothing))
    if spec.name == "mse":
        return KnownSquaredError()
    return nn.CrossEntropyLoss(label_smoothing=spec.smoothing)


class KnownSquaredError(nn.Module):
    """Mean of (output - target)^2 over the targets that are known; 0 where none is."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of outputs and targets [N, K], NaN where a target is not known.

        Raises:
            ValueError: the shapes differ.
        """
        if outputs.shape != targets.shape:
            raise ValueError(
                f"mse: outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} differ in "
                "shape"
            )
        known = ~targets.isnan()
        return torch.where(known, outputs - targets, 0).square().sum() / known.sum().clamp(min=1)


class _OfClasses(torchmetrics.Metric):  # type: ignore[misc]  # torchmetrics is half typed
    """A share of examples, from logits [N, K], whatever their size, and classes [N].

    NaN as soon as the logits of one example have no highest: NaN is no class, and neither is
    infinity.
    """

    def __init__(self) -> None:
        super().__init__()
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("unknown", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count one batch."""
        known = logits.amax(1).isfinite()
        self.count += known.numel()
        self.unknown += (~known).sum()
        self.add(logits, targets)

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Add to the states what is averaged, of a batch."""
        raise NotImplementedError

    def share(self, total: Tensor) -> Tensor:
        """Return `total` over the number of examples."""
        return torch.where(self.unknown > 0, math.nan, total.float() / self.count)


class Accuracy(_OfClasses):
    """Share of examples whose class is among the `top_k` highest logits."""

    higher_is_better = BETTER["accuracy"] == "max"

    def __init__(self, top_k: int = 1) -> None:
        super().__init__()
        self.top_k = top_k
        self.add_state("right", torch.tensor(0), dist_reduce_fx="sum")

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Add how many are right."""
        guesses = (
            logits.argmax(1, keepdim=True)
            if self.top_k == 1
            else logits.topk(self.top_k, dim=1).indices
        )
        self.right += (guesses == targets[:, None]).sum()

    def compute(self) -> Tensor:
        """Return the share."""
        return self.share(self.right)


class CalibrationError(_OfClasses):
    """sum_b n_b/N |accuracy_b - confidence_b| over bins of equal width, ((b - 1)/B, b/B], of the
    highest probability.

    The expected calibration error of Guo, Pleiss, Sun and Weinberger, On Calibration of Modern
    Neural Networks, ICML 2017, equations 2 and 3. Sums are kept as whole multiples of 2^-32, exact
    in any order: the value does not depend on batches or ranks.
    """

    higher_is_better = BETTER["calibration_error"] == "max"

    def __init__(self, bins: int = 15) -> None:
        super().__init__()
        self.bins = bins
        self.add_state("excess", torch.zeros(bins, dtype=torch.int64), dist_reduce_fx="sum")

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Add to each bin how much oftener its examples are right than they are sure."""
        confidence, predicted = logits.float().softmax(1).max(1)
        edges = torch.arange(1, self.bins, device=confidence.device) / self.bins
        place = torch.bucketize(confidence.nan_to_num(), edges)
        sure = (confidence.nan_to_num() * _WHOLE).round().long()
        excess = (predicted == targets).long() * _WHOLE - sure
        inside = place[:, None] == torch.arange(self.bins, device=place.device)
        self.excess += (inside * excess[:, None]).sum(0)

    def compute(self) -> Tensor:
        """Return the error."""
        return self.share(self.excess.abs().sum().float() / _WHOLE)


_WHOLE = 2**32


class NegativeLogLikelihood(torchmetrics.MeanMetric):  # type: ignore[misc]  # it is half typed
    """Mean of -log p(target) over all examples, from logits [N, K] and classes [N]."""

    higher_is_better = BETTER["nll"] == "max"

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count one batch."""
        super().update(nn.functional.cross_entropy(logits, targets, reduction="none"))


def classification_metrics(num_classes: int) -> torchmetrics.MetricCollection:
    """Return what is measured by default; every value is over examples, however batches and
    ranks divide them.
    """
    metrics: dict[str, torchmetrics.Metric] = {
        "accuracy": Accuracy(),
        "nll": NegativeLogLikelihood(nan_strategy="disable"),
        "calibration_error": CalibrationError(),
    }
    if num_classes > 5:
        metrics["top5"] = Accuracy(top_k=5)
    return torchmetrics.MetricCollection(metrics, compute_groups=False)


class _OfKnown(torchmetrics.Metric):  # type: ignore[misc]  # torchmetrics is half typed
    """A mean over the targets that are known, whatever their rows."""

    higher_is_better = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Count one batch [N, K] of outputs and targets, NaN where a target is not known."""
        known = ~targets.isnan()
        self.total += self.error(torch.where(known, outputs - targets, 0)).sum()
        self.count += known.sum()

    def error(self, difference: Tensor) -> Tensor:
        """Return what is averaged, of differences."""
        raise NotImplementedError

    def compute(self) -> Tensor:
        """Return the mean."""
        mean: Tensor = self.total / self.count
        return mean


class RootMeanSquaredError(_OfKnown):
    """sqrt(mean (output - target)^2) over the known targets."""

    def error(self, difference: Tensor) -> Tensor:
        """Return the squares."""
        return difference.square()

    def compute(self) -> Tensor:
        """Return the root of the mean."""
        return torch.sqrt(super().compute())


class MeanAbsoluteError(_OfKnown):
    """Mean |output - target| over the known targets."""

    def error(self, difference: Tensor) -> Tensor:
        """Return the sizes."""
        return difference.abs()


def regression_metrics() -> torchmetrics.MetricCollection:
    """Return what is measured where the targets are numbers, as `classification_metrics` does
    for classes.
    """
    # Metrics with equal sums after a first batch, in which nothing was known say, would be taken
    # for one and the same.
    return torchmetrics.MetricCollection(
        {"rmse": RootMeanSquaredError(), "mae": MeanAbsoluteError()}, compute_groups=False
    )
