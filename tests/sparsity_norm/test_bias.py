"""The bias as a number: correlations, measures, any model and loader."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from torch import Tensor, nn
from trainkit_plugins.sparsity_norm import (
    SparsityNorm,
    ZeroImputation,
    confidence,
    mean_logit,
    mean_prediction,
    pearson,
    sparsity_bias,
)

NAN = math.nan


def test_the_correlation_and_its_interval_are_those_of_scipy() -> None:
    draw = np.random.default_rng(0)
    x = draw.standard_normal(50)
    y = 0.5 * x + draw.standard_normal(50)
    wanted = pearsonr(x, y)
    low, high = wanted.confidence_interval(0.95)
    assert pearson(torch.tensor(x), torch.tensor(y)) == pytest.approx(
        (wanted.statistic, low, high), rel=1e-6
    )


def test_values_that_are_not_finite_do_not_count() -> None:
    x = torch.tensor([-math.inf, 1.0, 2.0, 3.0, 4.0])
    y = torch.tensor([5.0, 1.0, NAN, 3.0, 4.0])
    assert pearson(x, y).value == pytest.approx(
        pearson(torch.tensor([1.0, 3, 4]), torch.tensor([1.0, 3, 4])).value
    )
    assert math.isnan(pearson(x[:2], y[:2]).value)
    assert math.isnan(pearson(torch.arange(5.0), torch.ones(5)).value)
    assert pearson(torch.arange(5.0), torch.arange(5.0)).value == pytest.approx(1)


def test_measures_are_what_they_say() -> None:
    outputs = torch.tensor([[2.0, -4.0], [0.0, 1.0]])
    numbers = torch.tensor([[1.0, NAN], [NAN, NAN]])
    output, truth = mean_prediction(outputs, numbers)
    assert output.tolist() == [-1.0, 0.5]
    assert truth[0] == 1
    assert truth[1].isnan()
    largest, right = confidence(outputs, torch.tensor([0, 0]))
    assert largest.tolist() == pytest.approx([1 / (1 + math.exp(-6)), 1 / (1 + math.exp(-1))])
    assert right.tolist() == [1.0, 0.0]
    size, nothing = mean_logit(outputs, torch.tensor([0, 0]))
    assert size.tolist() == [3.0, 0.5]
    assert nothing.isnan().all()


class Behind(nn.Module):
    """A linear model behind a layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.drop, self.linear = layer, nn.Dropout(0.5), nn.Linear(40, 1)
        nn.init.constant_(self.linear.weight, 1 / 40)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(self.drop(self.layer(x)))
        return out


def loader() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = 3.5 + torch.randn(400, 40, generator=generator)
    rate = torch.exp(torch.empty(400, 1).uniform_(math.log(0.05), 0, generator=generator))
    y = x.mean(dim=1, keepdim=True)
    x = x.masked_fill(torch.rand(x.shape, generator=generator) > rate, NAN)
    return list(zip(x.split(64), y.split(64), strict=True))


def test_zero_imputation_shows_it_and_sparsity_normalization_does_not() -> None:
    zero = sparsity_bias(Behind(ZeroImputation()), loader())
    normalized = sparsity_bias(Behind(SparsityNorm(15.0)), loader())
    assert len(zero.count) == 400
    assert zero.correlation.value > 0.9
    assert abs(normalized.correlation.value) < 0.15
    assert zero.true_correlation == normalized.true_correlation
    assert abs(zero.true_correlation.value) < 0.15
    assert zero.correlation.low < zero.correlation.value < zero.correlation.high


def test_masks_may_stand_beside_inputs_that_the_model_takes() -> None:
    batches = loader()
    filled = [(x.nan_to_num(0.0), y, ~x.isnan()) for x, y in batches]
    one = sparsity_bias(Behind(nn.Identity()), filled)
    two = sparsity_bias(Behind(ZeroImputation()), batches)
    assert torch.equal(one.count, two.count)
    torch.testing.assert_close(one.output, two.output)


def test_the_model_is_measured_in_evaluation_mode_and_left_as_it_was() -> None:
    model = Behind(ZeroImputation())
    model.linear.eval()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, two = (sparsity_bias(model, loader(), mean_prediction) for _ in range(2))
    assert torch.equal(one.output, two.output)
    assert torch.equal(torch.get_rng_state(), before)
    assert (model.training, model.drop.training, model.linear.training) == (True, True, False)
    assert not one.output.requires_grad


def test_classes_are_measured_by_confidence_unless_asked_otherwise() -> None:
    model = nn.Linear(3, 4)
    batch = [(torch.randn(20, 3), torch.randint(4, (20,)))]
    found = sparsity_bias(model, batch)
    assert set(found.truth.tolist()) <= {0.0, 1.0}
    assert found.output.min() >= 0.25
    assert sparsity_bias(model, batch, mean_logit).truth.isnan().all()


def test_no_row_is_refused() -> None:
    with pytest.raises(ValueError, match="measured on rows, and there are none"):
        sparsity_bias(nn.Linear(2, 2), [])
