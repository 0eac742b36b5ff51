"""The formula: against its slow twin, in its limiting cases, and where nothing is observed."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from trainkit_plugins.sparsity_norm import normalize, observed

from tests.reference.sparsity_norm import sparsity_norm

NAN = math.nan


def some(*shape: int, seed: int = 0, rate: float = 0.6) -> tuple[Tensor, Tensor]:
    """Return values and a mask."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x, torch.rand(shape, generator=generator) < rate


numbers = st.floats(-1e6, 1e6, width=32)
rows = st.integers(1, 6).flatmap(
    lambda d: st.lists(
        st.lists(st.one_of(numbers, st.just(NAN)), min_size=d, max_size=d), min_size=1, max_size=5
    )
)


# The six properties, and the mask.


@given(rows, st.floats(0.01, 1e3))
def test_it_is_the_formula(values: list[list[float]], k: float) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    found = normalize(x, observed(x), k)
    wanted = torch.tensor([sparsity_norm(row, k) for row in values], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@given(rows)
def test_rows_of_k_observed_entries_stay_as_they_are(values: list[list[float]]) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    for row in x:
        m = observed(row[None])
        if m.any():
            assert torch.equal(normalize(row[None], m, float(m.sum())), torch.where(m, row, 0))


def test_a_full_mask_with_k_the_number_of_entries_changes_no_bit() -> None:
    x = some(5, 3, 4, 4)[0].float()
    assert torch.equal(normalize(x, observed(x), 48.0), x)
    assert torch.equal(normalize(x, observed(x), 16.0, per_channel=True), x)


@given(rows, st.floats(0.01, 1e3))
def test_a_row_sums_to_k_times_the_mean_of_what_is_observed(
    values: list[list[float]], k: float
) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    mean = x.nanmean(dim=1).nan_to_num()
    torch.testing.assert_close(
        normalize(x, observed(x), k).sum(dim=1), k * mean, rtol=1e-9, atol=1e-6
    )


def test_doubling_every_column_leaves_the_sum() -> None:
    x, m = some(6, 7)
    twice, mask = torch.cat([x, x], dim=1), torch.cat([m, m], dim=1)
    torch.testing.assert_close(
        normalize(twice, mask, 3.0).sum(dim=1), normalize(x, m, 3.0).sum(dim=1)
    )
    zero = torch.where(m, x, 0).sum(dim=1)
    torch.testing.assert_close(torch.where(mask, twice, 0).sum(dim=1), 2 * zero)


def outputs(network: Any, rate: float, seed: int) -> tuple[float, float]:
    """Return the mean output of a network with zero imputation and with sparsity normalization
    at a rate.
    """
    generator = torch.Generator().manual_seed(seed)
    x = 1 + torch.randn(4000, 100, generator=generator, dtype=torch.float64)
    m = torch.rand(x.shape, generator=generator) < rate
    return network(torch.where(m, x, 0)).mean().item(), network(normalize(x, m, 50.0)).mean().item()


RATES = (0.1, 0.3, 0.5, 0.7, 0.9)


def test_the_mean_output_of_a_linear_network_follows_the_rate_without_it_and_not_with_it() -> None:
    torch.manual_seed(0)
    w = torch.randn(100, dtype=torch.float64) + 0.5
    zero, normalized = zip(
        *(outputs(lambda x: x @ w, rate, i) for i, rate in enumerate(RATES)), strict=True
    )
    level = 50 * w.mean().item()  # K mu mean(w), whatever the rate
    for rate, z, n in zip(RATES, zero, normalized, strict=True):
        assert z == pytest.approx(rate * w.sum().item(), rel=0.1)
        assert n == pytest.approx(level, rel=0.1)
    assert zero[-1] / zero[0] == pytest.approx(9, rel=0.15)


def test_behind_a_convex_activation_sparse_rows_give_more_as_their_variance_does() -> None:
    torch.manual_seed(0)
    first, second = (
        torch.randn(100, 64, dtype=torch.float64) / 10,
        torch.rand(64, dtype=torch.float64),
    )
    found = [
        outputs(lambda x: torch.relu(x @ first) @ second, rate, i) for i, rate in enumerate(RATES)
    ]
    zero, normalized = zip(*found, strict=True)
    assert list(zero) == sorted(zero)
    assert list(normalized) == sorted(
        normalized, reverse=True
    )  # the over-correction of Jensen's inequality


def test_masks_of_one_size_with_k_the_number_of_entries_are_inverted_dropout() -> None:
    x, _ = some(6, 8)
    m = torch.stack(
        [torch.randperm(8, generator=torch.Generator().manual_seed(i)) < 2 for i in range(6)]
    )
    torch.testing.assert_close(normalize(x, m, 8.0), x * m / 0.25)


def test_layer_norm_right_behind_a_first_layer_without_bias_undoes_it() -> None:
    x, m = some(6, 8)
    m[:, 0] = True
    torch.manual_seed(0)
    first, norm = (
        nn.Linear(8, 5, bias=False, dtype=torch.float64),
        nn.LayerNorm(5, eps=0, dtype=torch.float64),
    )
    torch.testing.assert_close(norm(first(normalize(x, m, 3.0))), norm(first(torch.where(m, x, 0))))


def test_an_observed_zero_counts_and_a_missing_entry_may_hold_anything() -> None:
    x = torch.tensor([[0.0, 4.0, NAN, NAN]])
    assert normalize(x, observed(x), 1.0).tolist() == [[0.0, 2.0, 0.0, 0.0]]
    junk = torch.tensor([[0.0, 4.0, math.inf, 7.0]])
    mask = torch.tensor([[1, 1, 0, 0]])
    assert normalize(junk, observed(junk, mask), 1.0).tolist() == [[0.0, 2.0, 0.0, 0.0]]


# Nothing observed; gradients.


def test_a_row_without_anything_gives_zeros_and_finite_gradients() -> None:
    x = torch.tensor([[NAN, NAN], [1.0, NAN]], requires_grad=True)
    layer = nn.Linear(2, 3)
    found = normalize(x, observed(x), 2.0)
    assert found[0].tolist() == [0.0, 0.0]
    layer(found).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad[0].tolist() == [0.0, 0.0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("per_channel", [False, True])
def test_gradients_are_exact(per_channel: bool) -> None:
    x, m = some(3, 2, 2, 3)
    m[0] = False
    m[1, 0] = False
    x.requires_grad_()
    k = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, k: normalize(x, m, k, per_channel=per_channel), (x, k)
    )


# Images.


def test_channels_are_counted_together_or_each_by_itself() -> None:
    x = torch.ones(1, 2, 1, 2)
    m = torch.tensor([[[[True, True]], [[True, False]]]])
    assert normalize(x, m, 3.0).flatten().tolist() == [1.0, 1.0, 1.0, 0.0]
    assert normalize(x, m, 2.0, per_channel=True).flatten().tolist() == [1.0, 1.0, 2.0, 0.0]
    k = torch.tensor([[[4.0]], [[1.0]]])
    assert normalize(x, m, k, per_channel=True).flatten().tolist() == [2.0, 2.0, 1.0, 0.0]


def test_an_absent_channel_gives_zeros_and_leaves_the_others() -> None:
    x = torch.full((1, 2, 2, 2), 3.0)
    x[:, 1] = NAN
    found = normalize(x, observed(x), 4.0, per_channel=True)
    assert found[0, 0].tolist() == [[3.0, 3.0], [3.0, 3.0]]
    assert found[0, 1].tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert normalize(x, observed(x), 8.0)[0, 0].tolist() == [[6.0, 6.0], [6.0, 6.0]]


def test_a_pixel_is_missing_whole_if_it_is_asked() -> None:
    x = torch.zeros(1, 2, 1, 3)
    x[0, 1, 0, 2] = NAN
    assert observed(x).flatten().tolist() == [True, True, True, True, True, False]
    assert observed(x, whole_pixels=True).flatten().tolist() == [True, True, False] * 2


def test_a_mask_by_pixel_expands_to_channels() -> None:
    m = torch.tensor([[[[1, 0, 1]]]])
    assert observed(torch.zeros(1, 2, 1, 3), m).flatten().tolist() == [True, False, True] * 2


def test_a_mask_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a mask \(2, 3\) does not fit inputs \(2, 4\)"):
        observed(torch.zeros(2, 4), torch.ones(2, 3))
    with pytest.raises(ValueError, match="have no pixels"):
        observed(torch.zeros(2, 4), whole_pixels=True)


# Precision and layout.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_counts_more_entries_than_it_can_hold(dtype: torch.dtype) -> None:
    x = torch.ones(2, 3, 160, 160, dtype=dtype)  # 76,800 entries: more than the largest float16
    x[1, :, ::2] = NAN
    found = normalize(x, observed(x), 76_800.0)
    assert found.dtype == dtype
    assert (found[0] == 1).all()
    assert (found[1, :, 1::2] == 2).all()


def test_channels_last_stays() -> None:
    x = some(2, 3, 4, 4)[0].contiguous(memory_format=torch.channels_last)
    assert normalize(x, observed(x), 5.0).is_contiguous(memory_format=torch.channels_last)
