"""The layers: what they learn from training rows, keep, check, and how they stand to one
another.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from trainkit_plugins.sparsity_norm import (
    InvertedDropout,
    MaskAsInput,
    MeanImputation,
    MissingInput,
    SparsityNorm,
    ZeroImputation,
    normalize,
    statistics_of,
)

from tests.reference.sparsity_norm import column_means, mean_count, sparsity_norm

NAN = math.nan
ROWS = [[1.0, NAN, 3.0], [NAN, 5.0, 1.0], [2.0, NAN, NAN], [NAN, NAN, NAN]]


def gappy(*shape: int, seed: int = 0, rate: float = 0.6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    return x.masked_fill(torch.rand(shape, generator=generator) > rate, NAN)


def fitted(layer: MissingInput, *batches: Tensor) -> MissingInput:
    layer.fit(batches)
    return layer


# What is learned.


def test_k_and_means_are_those_of_the_training_rows() -> None:
    layer = SparsityNorm(center=True)
    layer.fit([torch.tensor(ROWS[:3]), torch.tensor(ROWS[3:])])
    assert layer.k is not None
    assert layer.mean is not None
    assert layer.k.item() == mean_count(ROWS) == 1.25
    assert layer.mean.tolist() == column_means(ROWS) == [1.5, 5.0, 2.0]
    test = torch.tensor([[7.0, NAN, 9.0], [NAN, NAN, NAN]])
    before = copy.deepcopy(layer.state_dict())
    found = layer(test)
    wanted = [sparsity_norm(row, 1.25, [1.5, 5.0, 2.0]) for row in test.tolist()]
    torch.testing.assert_close(found, torch.tensor(wanted))
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


entries = st.one_of(st.floats(-100, 100, width=32), st.just(NAN))


@given(
    st.lists(st.lists(entries, min_size=3, max_size=3), min_size=1, max_size=8), st.integers(1, 8)
)
def test_statistics_do_not_depend_on_batches(rows: list[list[float]], size: int) -> None:
    x = torch.tensor(rows)
    if x.isnan().all():
        with pytest.raises(ValueError, match="nothing is observed"):
            statistics_of([x])
        return
    whole, parts = statistics_of([x]), statistics_of(x.split(size))
    assert whole.mean_count == parts.mean_count == pytest.approx(mean_count(rows))
    torch.testing.assert_close(whole.mean, torch.tensor(column_means(rows), dtype=torch.float64))
    torch.testing.assert_close(parts.mean, whole.mean)


def test_statistics_of_images_are_by_channel() -> None:
    x = gappy(5, 2, 3, 4)
    found = statistics_of([x[:2], x[2:]])
    assert found.shape == (2, 3, 4)
    assert found.mean_count == pytest.approx((~x.isnan()).sum().item() / 5)
    assert found.rate == pytest.approx((~x.isnan()).double().mean().item())
    torch.testing.assert_close(found.mean_count_by_channel.sum().item(), found.mean_count)
    torch.testing.assert_close(found.mean, x.double().transpose(0, 1).flatten(1).nanmean(dim=1))


def test_masks_may_be_given_beside_inputs() -> None:
    x = gappy(5, 4)
    pairs = statistics_of([(x.nan_to_num(), ~x.isnan())])
    alone = statistics_of([x])
    assert torch.equal(pairs.count, alone.count)
    assert torch.equal(pairs.total, alone.total)


def test_a_feature_that_was_never_observed_has_the_mean_zero() -> None:
    assert statistics_of([torch.tensor([[1.0, NAN]])]).mean.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no training rows"),
        ([torch.zeros(0, 3)], "no training rows"),
        ([torch.full((2, 3), NAN)], "nothing is observed"),
        (
            [torch.zeros(2, 3), torch.zeros(2, 4)],
            r"inputs of shape \(3,\) and of \(4,\) are not of one data set",
        ),
    ],
)
def test_rows_from_which_nothing_can_be_learned_are_refused(
    batches: list[Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SparsityNorm().fit(batches)


@pytest.mark.parametrize("k", [0.0, -1.0, math.inf, NAN])
def test_k_is_a_number_above_zero(k: float) -> None:
    with pytest.raises(ValueError, match="K is a number above 0"):
        SparsityNorm(k)


def test_a_given_k_needs_no_rows_and_is_not_learned() -> None:
    layer = SparsityNorm(2.0)
    x = gappy(4, 3)
    first = layer(x)
    layer.fit([x])
    assert torch.equal(layer(x), first)


@pytest.mark.parametrize(
    "layer", [SparsityNorm(), MeanImputation(), ZeroImputation(center=True), InvertedDropout()]
)
def test_a_layer_that_knows_nothing_says_so(layer: MissingInput) -> None:
    with pytest.raises(
        RuntimeError,
        match=rf"{type(layer).__name__} knows nothing of the training rows yet; call fit",
    ):
        layer(torch.zeros(2, 3))


def test_what_is_for_images_is_refused_for_rows() -> None:
    with pytest.raises(ValueError, match="no channels to count in; set per to row"):
        SparsityNorm(per="channel").fit([torch.zeros(2, 3)])
    with pytest.raises(ValueError, match="have no pixels; set mask to entry"):
        ZeroImputation(mask="pixel").check((3,))
    with pytest.raises(ValueError, match="have no pixels"):
        SparsityNorm(mask="pixel").fit([torch.zeros(2, 3)])


# The layers beside one another.


def test_zeros_and_means_stand_where_nothing_is() -> None:
    x = torch.tensor(ROWS)
    assert ZeroImputation()(x)[0].tolist() == [1.0, 0.0, 3.0]
    assert fitted(MeanImputation(), x)(x)[1].tolist() == [1.5, 5.0, 1.0]
    assert fitted(ZeroImputation(center=True), x)(x)[1].tolist() == [0.0, 0.0, -1.0]


def test_mean_imputation_is_zero_imputation_of_centred_rows_for_a_layer_with_bias() -> None:
    x = gappy(6, 4)
    torch.manual_seed(0)
    first = nn.Linear(4, 3)
    mean, centred = fitted(MeanImputation(), x), fitted(ZeroImputation(center=True), x)
    shifted = copy.deepcopy(first)
    assert mean.mean is not None
    shifted.bias.data += first.weight.data @ mean.mean
    torch.testing.assert_close(first(mean(x)), shifted(centred(x)))


def test_a_full_row_is_left_as_it_is_by_every_imputation() -> None:
    x = torch.randn(5, 4)
    assert torch.equal(ZeroImputation()(x), x)
    assert torch.equal(fitted(SparsityNorm(), x)(x), x)
    assert torch.equal(fitted(InvertedDropout(), x)(x), x)
    torch.testing.assert_close(fitted(MeanImputation(), x)(x), x)


def test_inverted_dropout_has_one_rate_and_sparsity_normalization_each_rows_own() -> None:
    x = torch.tensor([[2.0, 2.0, 2.0, 2.0], [2.0, NAN, NAN, NAN], [2.0, NAN, NAN, 2.0]])
    dropout, own = fitted(InvertedDropout(), x), SparsityNorm(4.0)
    p = 7 / 12
    torch.testing.assert_close(dropout(x).sum(dim=1), torch.tensor([8 / p, 2 / p, 4 / p]))
    torch.testing.assert_close(own(x).sum(dim=1), torch.tensor([8.0, 8.0, 8.0]))


def test_the_mask_goes_behind_the_channels() -> None:
    x = gappy(3, 2, 2, 2)
    both = MaskAsInput()(x)
    assert both.shape == (3, 4, 2, 2)
    assert torch.equal(both[:, 2:].bool(), ~x.isnan())
    by_pixel = MaskAsInput(mask="pixel")(x)
    assert by_pixel.shape == (3, 3, 2, 2)
    assert torch.equal(by_pixel[:, 2].bool(), ~x.isnan().any(dim=1))
    assert MaskAsInput()(gappy(3, 5)).shape == (3, 10)


def test_images_are_centred_by_channel_also_of_one_pixel() -> None:
    x = gappy(50, 3, 1, 1)
    layer = fitted(SparsityNorm(center=True), x)
    assert layer.mean is not None
    assert layer.mean.shape == (3, 1, 1)
    torch.testing.assert_close(layer.mean.flatten(), x[:, :, 0, 0].nanmean(dim=0))


@given(
    st.lists(
        st.lists(st.one_of(entries, st.just(math.inf)), min_size=3, max_size=3),
        min_size=1,
        max_size=4,
    )
)
def test_gaps_said_by_nan_and_by_a_mask_are_the_same_bits(rows: list[list[float]]) -> None:
    x = torch.tensor(rows)
    for layer in (SparsityNorm(2.0), ZeroImputation()):
        said = layer(x.nan_to_num(7.0, posinf=math.inf), ~x.isnan())
        assert torch.equal(layer(x), said)
        assert torch.equal(layer(x), normalize(x, ~x.isnan(), 2.0)) or not isinstance(
            layer, SparsityNorm
        )


# State.

LAYERS: list[Any] = [
    lambda: SparsityNorm(center=True),
    lambda: SparsityNorm(3.0),
    lambda: MeanImputation(),
    lambda: ZeroImputation(center=True),
    lambda: MaskAsInput(center=True),
    lambda: InvertedDropout(center=True),
]


@pytest.mark.parametrize("make", LAYERS)
def test_a_state_gives_a_new_layer_what_it_knows(make: Any) -> None:
    x = gappy(8, 4)
    layer, fresh, same = fitted(make(), x), make(), fitted(make(), x)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    assert set(state) == set(layer.wanted)
    for other in (fresh, same):
        assert other.load_state_dict(state).missing_keys == []
        assert torch.equal(other(gappy(3, 4, seed=1)), layer(gappy(3, 4, seed=1)))


def test_a_layer_without_knowledge_has_an_empty_state() -> None:
    assert ZeroImputation().state_dict() == {}


def test_a_state_of_other_rows_is_refused_and_changes_nothing() -> None:
    layer = fitted(SparsityNorm(), torch.tensor(ROWS))
    other = fitted(SparsityNorm(), torch.tensor(ROWS[:2]))
    message = (
        "k was 2 when the weights were saved, and is 1.25 by the training rows here: they are not "
        "the same rows"
    )
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(other.state_dict())
    assert layer.k is not None
    assert layer.k.item() == 1.25
    with pytest.raises(RuntimeError, match=r"k was 5 when the weights were saved, and is 1\.25"):
        layer.load_state_dict(SparsityNorm(5.0).state_dict())


def test_a_state_without_what_is_needed_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r'Missing key.*"k"'):
        fitted(SparsityNorm(), torch.tensor(ROWS)).load_state_dict({})


def test_it_moves_and_changes_type_with_the_model() -> None:
    x = gappy(8, 4)
    layer = fitted(SparsityNorm(center=True), x)
    assert layer.to(torch.float64)(x.double()).dtype == torch.float64
    assert layer(x).dtype == torch.float32


def test_it_compiles_to_the_same_numbers() -> None:
    layer = fitted(SparsityNorm(center=True), gappy(8, 4))
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(gappy(5, 4, seed=1)), layer(gappy(5, 4, seed=1)))
