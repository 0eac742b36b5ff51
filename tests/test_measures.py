"""Losses and metrics of numbers, of which some targets are not known."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from trainkit.build import compose
from trainkit.errors import RecipeError
from trainkit.measures import KnownSquaredError, criterion, regression_metrics
from trainkit.recipe import LossSpec

NAN = math.nan
numbers = st.floats(-100, 100, width=32)
pairs = st.lists(st.tuples(numbers, st.one_of(numbers, st.just(NAN))), min_size=1, max_size=30)


@given(pairs, st.integers(1, 7))
def test_metrics_are_over_known_targets_however_batches_divide_them(rows: list[tuple[float, float]], size: int) -> None:
    outputs, targets = (torch.tensor(column)[:, None] for column in zip(*rows, strict=True))
    metrics = regression_metrics()
    for x, y in zip(outputs.split(size), targets.split(size), strict=True):
        metrics.update(x, y)
    found = {name: value.item() for name, value in metrics.compute().items()}
    known = [o - t for o, t in rows if t == t]
    if not known:
        assert all(math.isnan(value) for value in found.values())
        return
    assert found["rmse"] == pytest.approx(math.sqrt(sum(d * d for d in known) / len(known)), rel=1e-4, abs=1e-4)
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
    torch.testing.assert_close(KnownSquaredError()(outputs, targets), nn.functional.mse_loss(outputs, targets))


def test_nothing_known_is_a_loss_of_zero_with_gradients_of_zero() -> None:
    outputs = torch.randn(2, 2, requires_grad=True)
    loss = KnownSquaredError()(outputs, torch.full((2, 2), NAN))
    loss.backward()
    assert loss.item() == 0
    assert outputs.grad is not None
    assert outputs.grad.abs().sum() == 0


def test_shapes_that_differ_are_refused_rather_than_spread() -> None:
    with pytest.raises(ValueError, match=r"mse: outputs \(4, 1\) and targets \(4,\) differ in shape"):
        KnownSquaredError()(torch.zeros(4, 1), torch.zeros(4))


def test_smoothing_is_not_for_numbers(write: Callable[..., Path]) -> None:
    text = "model: {name: mlp}\ndata: {name: table, path: diabetes}\ntrain: {loss: {name: mse, smoothing: 0.1}}\n"
    with pytest.raises(
        RecipeError, match=r"recipe.yaml:3: train.loss: smoothing is of classes, and mse compares numbers"
    ):
        compose(write(text))
