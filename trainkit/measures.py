"""What training minimises and validation measures, of classes and of numbers."""

from __future__ import annotations

from typing import Any, cast

import timm.loss
import torch
import torchmetrics
from torch import Tensor, nn
from torchmetrics import classification

from trainkit.recipe import LossSpec


def criterion(spec: LossSpec) -> nn.Module:
    """Return the loss that `train.loss:` names: from logits [N, K] and classes [N] or probabilities [N, K]."""
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
            raise ValueError(f"mse: outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} differ in shape")
        known = ~targets.isnan()
        return torch.where(known, outputs - targets, 0).square().sum() / known.sum().clamp(min=1)


class NegativeLogLikelihood(torchmetrics.MeanMetric):  # type: ignore[misc]  # torchmetrics is half typed
    """Mean of -log p(target) over all examples, from logits [N, K] and classes [N]."""

    higher_is_better = False

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count one batch."""
        super().update(nn.functional.cross_entropy(logits, targets, reduction="none"))


def classification_metrics(num_classes: int) -> torchmetrics.MetricCollection:
    """Return what is measured by default; every value is over examples, however batches and ranks divide them."""
    options: dict[str, Any] = {"num_classes": num_classes, "validate_args": False}
    metrics: dict[str, torchmetrics.Metric] = {
        "accuracy": classification.MulticlassAccuracy(average="micro", **options),
        "nll": NegativeLogLikelihood(nan_strategy="disable"),
        "calibration_error": classification.MulticlassCalibrationError(n_bins=15, **options),
    }
    if num_classes > 5:
        metrics["top5"] = classification.MulticlassAccuracy(average="micro", top_k=5, **options)
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
    """Return what is measured where the targets are numbers, as `classification_metrics` does for classes."""
    # Metrics with equal sums after a first batch, in which nothing was known say, would be taken for one and the same.
    return torchmetrics.MetricCollection(
        {"rmse": RootMeanSquaredError(), "mae": MeanAbsoluteError()}, compute_groups=False
    )
