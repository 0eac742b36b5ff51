"""Losses and metrics of numbers, of which some targets are not known."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
import torchmetrics
from hypothesis import given
from torch import nn
from torchmetrics import classification

from trainkit.config.recipe import LossSpec
from trainkit.errors import RecipeError
from trainkit.training.build import compose
from trainkit.training.metrics import (
    KnownSquaredError,
    classification_metrics,
    criterion,
    regression_metrics,
)

NAN = math.nan
numbers = st.floats(-100, 100, width=32)
pairs = st.lists(st.tuples(numbers, st.one_of(numbers, st.just(NAN))), min_size=1, max_size=30)


@given(pairs, st.integers(1, 7))
def test_metrics_are_over_known_targets_however_batches_divide_them(
    rows: list[tuple[float, float]], size: int
) -> None:
    outputs, targets = (torch.tensor(column)[:, None] for column in zip(*rows, strict=True))
    metrics = regression_metrics()
    for x, y in zip(outputs.split(size), targets.split(size), strict=True):
        metrics.update(x, y)
    found = {name: value.item() for name, value in metrics.compute().items()}
    known = [o - t for o, t in rows if t == t]
    if not known:
        assert all(math.isnan(value) for value in found.values())
        return
    assert found["rmse"] == pytest.approx(
        math.sqrt(sum(d * d for d in known) / len(known)), rel=1e-4, abs=1e-4
    )
    assert found["mae"] == pytest.approx(sum(map(abs, known)) / len(known), rel=1e-4, abs=1e-4)


def test_the_loss_counts_each_known_target_alike() -> None:
    loss = criterion(LossSpec(name="mse"))
    outputs = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    targets = torch.tensor([[0.0, NAN], [1.0, 1.0]])
    found = loss(outputs, targets)
    assert found.item() == pytest.approx((1 + 4 + 9) / 3)
    found.backward()
    assert outputs.grad is not None
    torch.testing.assert_close(outputs.grad, torch.tensor([[2.0, 0.0], [4.0, 6.0]]) / 3)


def test_where_all_targets_are_known_it_is_torchs() -> None:
    outputs, targets = torch.randn(5, 3), torch.randn(5, 3)
    torch.testing.assert_close(
        KnownSquaredError()(outputs, targets), nn.functional.mse_loss(outputs, targets)
    )


def test_nothing_known_is_a_loss_of_zero_with_gradients_of_zero() -> None:
    outputs = torch.randn(2, 2, requires_grad=True)
    loss = KnownSquaredError()(outputs, torch.full((2, 2), NAN))
    loss.backward()
    assert loss.item() == 0
    assert outputs.grad is not None
    assert outputs.grad.abs().sum() == 0


def test_shapes_that_differ_are_refused_rather_than_spread() -> None:
    with pytest.raises(
        ValueError, match=r"mse: outputs \(4, 1\) and targets \(4,\) differ in shape"
    ):
        KnownSquaredError()(torch.zeros(4, 1), torch.zeros(4))


def test_smoothing_is_not_for_numbers(write: Callable[..., Path]) -> None:
    text = (
        "model: {name: mlp}\ndata: {name: table, path: diabetes}\ntrain: {loss: {name: mse, "
        "smoothing: 0.1}}\n"
    )
    with pytest.raises(
        RecipeError,
        match=r"recipe.yaml:3: train.loss: smoothing is of classes, and mse compares numbers",
    ):
        compose(write(text))


# Classes.


def measured(
    metrics: torchmetrics.MetricCollection, *batches: tuple[torch.Tensor, torch.Tensor]
) -> dict[str, float]:
    metrics.reset()
    for logits, targets in batches:
        metrics.update(logits, targets)
    return {name: float(value) for name, value in metrics.compute().items()}


def by_hand(logits: torch.Tensor, targets: torch.Tensor, bins: int = 15) -> float:
    """Expected calibration error, example by example."""
    sums: dict[int, list[float]] = {}
    for row, target in zip(logits.double(), targets.tolist(), strict=True):
        p = row.softmax(0)
        confidence = float(p.max())
        place = max(1, math.ceil(confidence * bins))
        sums.setdefault(place, []).append((int(p.argmax()) == target) - confidence)
    return sum(abs(sum(gaps)) for gaps in sums.values()) / len(targets)


@pytest.mark.parametrize("scale", [1e-3, 0.3, 1.0, 4.0, 30.0])
def test_calibration_is_of_the_softmax_whatever_the_logits_size(scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits, targets = (
        scale * torch.rand(200, 7, generator=generator),
        torch.randint(7, (200,), generator=generator),
    )
    found = measured(classification_metrics(7), (logits, targets))["calibration_error"]
    assert found == pytest.approx(by_hand(logits, targets), abs=1e-6)
    # torchmetrics takes logits within [0, 1] for probabilities, and is right about the others.
    theirs = float(
        classification.MulticlassCalibrationError(7, n_bins=15)(logits.softmax(1), targets)
    )
    assert found == pytest.approx(theirs, abs=1e-6)


def test_a_confidence_of_one_belongs_to_the_last_bin() -> None:
    # Two of confidence 1, of which one is wrong, and two of 0.95, which are right: one bin, |3 -
    # 3.9| / 4.
    sure = torch.tensor([[200.0, 0.0], [200.0, 0.0]])
    nearly = torch.tensor([[math.log(19.0), 0.0]] * 2)
    found = measured(
        classification_metrics(2), (torch.cat([sure, nearly]), torch.tensor([0, 1, 0, 0]))
    )
    assert found["calibration_error"] == pytest.approx(0.9 / 4, abs=1e-6)


def test_calibration_by_hand_in_two_bins() -> None:
    # Confidences 0.6 (right), 0.6 (wrong), 0.9 (right): |1 - 1.2| / 3 + |1 - 0.9| / 3.
    logits = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.1, 0.9]]).log()
    found = measured(classification_metrics(2), (logits, torch.tensor([0, 1, 1])))
    assert found == pytest.approx(
        {"accuracy": 2 / 3, "calibration_error": 0.1, "nll": -math.log(0.6 * 0.4 * 0.9) / 3},
        abs=1e-6,
    )


@pytest.mark.parametrize("size", [1, 3, 64])
def test_no_value_depends_on_how_batches_divide_the_examples(size: int) -> None:
    generator = torch.Generator().manual_seed(2)
    logits, targets = (
        3 * torch.randn(64, 9, generator=generator),
        torch.randint(9, (64,), generator=generator),
    )
    metrics = classification_metrics(9)
    whole = measured(metrics, (logits, targets))
    parts = measured(metrics, *zip(logits.split(size), targets.split(size), strict=True))
    exact = ("accuracy", "top5", "calibration_error")
    assert {name: parts[name] for name in exact} == {name: whole[name] for name in exact}
    assert parts["nll"] == pytest.approx(whole["nll"], rel=1e-6)


def test_accuracies_are_torchmetrics_own_where_all_logits_are_numbers() -> None:
    generator = torch.Generator().manual_seed(3)
    logits, targets = (
        torch.randn(50, 8, generator=generator),
        torch.randint(8, (50,), generator=generator),
    )
    found = measured(
        classification_metrics(8), (logits[:20], targets[:20]), (logits[20:], targets[20:])
    )
    for name, k in (("accuracy", 1), ("top5", 5)):
        assert found[name] == float(
            classification.MulticlassAccuracy(8, average="micro", top_k=k)(logits, targets)
        )
    assert "top5" not in measured(classification_metrics(5), (logits[:, :5], targets % 5))


@pytest.mark.parametrize(
    "row",
    [
        [NAN] * 6,
        [0.0, NAN, 0.0, 0.0, 0.0, 0.0],
        [math.inf] * 6,
        [0.0] * 5 + [math.inf],
        [-math.inf] * 6,
    ],
)
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_logits_that_are_no_numbers_are_no_class(row: list[float], batch: int) -> None:
    batches = [(torch.randn(4, 6), torch.tensor([0, 1, 2, 5])) for _ in range(3)]
    batches[batch][0][3] = torch.tensor(row)
    found = measured(classification_metrics(6), *batches)
    assert found.keys() == {"accuracy", "nll", "calibration_error", "top5"}
    assert all(math.isnan(value) for value in found.values())


def test_a_class_may_be_ruled_out() -> None:
    logits = torch.tensor([[0.0, 1.0, -math.inf], [2.0, -math.inf, 0.0]])
    found = measured(classification_metrics(3), (logits, torch.tensor([1, 2])))
    assert found["accuracy"] == 0.5
    assert found["calibration_error"] == pytest.approx(
        by_hand(logits, torch.tensor([1, 2])), abs=1e-6
    )
