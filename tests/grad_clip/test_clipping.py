import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from trainkit_plugins.grad_clip import (
    clip_by_global_norm,
    clip_by_value,
    clip_tensors_by_global_norm,
    global_norm,
)

from tests.reference import grad_clip as twin

NAN, INF = math.nan, math.inf
entry = st.floats(-1e6, 1e6, allow_nan=False).map(lambda v: v if abs(v) > 1e-100 else 0.0)
vectors = st.lists(st.lists(entry, min_size=1, max_size=6), min_size=1, max_size=4)
thresholds = st.floats(1e-3, 1e6)


def parameters(*gradients, dtype=torch.float64):
    made = []
    for g in gradients:
        p = nn.Parameter(torch.zeros(len(g), dtype=dtype))
        p.grad = torch.tensor(g, dtype=dtype)
        made.append(p)
    return made


def bits(params):
    return [p.grad.clone().view(torch.uint8) for p in params]


def flat(params):
    return [v for p in params for v in p.grad.tolist()]


@given(vectors, thresholds)
def test_output_is_no_longer_than_max_norm_and_reported_as_it_is(gradients, max_norm):
    params = parameters(*gradients)
    result = clip_by_global_norm(params, max_norm)
    assert result.before.item() == pytest.approx(
        twin.norm([v for g in gradients for v in g]), rel=1e-12
    )
    assert twin.norm(flat(params)) <= max_norm * (1 + 1e-12)
    assert result.after.item() == pytest.approx(twin.norm(flat(params)), rel=1e-12)
    assert result.clipped.item() == (result.before.item() > max_norm)


@given(vectors, thresholds)
def test_every_gradient_is_scaled_by_the_one_coefficient(gradients, max_norm):
    params = parameters(*gradients)
    result = clip_by_global_norm(params, max_norm)
    before = [v for g in gradients for v in g]
    norm = twin.norm(before)
    h = twin.clip_step(norm, 1.0, max_norm) if norm else 1.0
    assert flat(params) == pytest.approx([h * v for v in before], rel=1e-12)
    assert result.coefficient.item() == pytest.approx(h, rel=1e-12)


@given(vectors, thresholds)
def test_clipping_twice_is_clipping_once(gradients, max_norm):
    params = parameters(*gradients)
    clip_by_global_norm(params, max_norm)
    once = flat(params)
    clip_by_global_norm(params, max_norm)
    assert flat(params) == pytest.approx(once, rel=1e-14)


@given(vectors, st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
def test_below_the_threshold_nothing_changes_in_any_bit(gradients, dtype):
    params = parameters(*gradients, dtype=dtype)
    norm = global_norm([p.grad for p in params]).item()
    before = bits(params)
    if math.isfinite(norm):
        result = clip_by_global_norm(params, max(norm, 1e-30))
        assert result.coefficient.item() == 1.0
        assert not result.clipped
    assert all(map(torch.equal, bits(params), before))


def test_the_multiplication_that_accelerators_always_do_keeps_every_bit():
    # They multiply by a coefficient of exactly 1 instead of waiting to learn it.
    special = [1e-45, -1e-45, -0.0, 3.4e38, 1.1754944e-38, INF, -INF, NAN]
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        values = torch.cat([torch.tensor(special), torch.randn(1000)]).to(dtype)
        product = values.clone()
        torch._foreach_mul_([product], torch.ones((), dtype=dtype))
        assert torch.equal(product.view(torch.uint8), values.view(torch.uint8))


@pytest.mark.parametrize("bad", [INF, -INF, NAN])
@pytest.mark.parametrize("max_norm", [1.0, INF])
def test_non_finite_norm_is_reported_and_gradients_keep_their_bits(bad, max_norm):
    params = parameters([3.0, bad], [4.0])
    before = bits(params)
    result = clip_by_global_norm(params, max_norm)
    assert all(map(torch.equal, bits(params), before))
    assert result.coefficient.item() == 1.0
    assert not result.clipped
    assert (
        str(result.before.item())
        == str(result.after.item())
        == ("nan" if math.isnan(bad) else "inf")
    )


@pytest.mark.parametrize(
    ("value", "dtype", "norm"),
    [
        (1e30, torch.float32, 2e30),
        (3e38, torch.float32, 6e38),
        (1e200, torch.float64, 2e200),
        (2e38, torch.bfloat16, 4e38),
        (1e25, torch.complex64, 2e25),
    ],
)
@pytest.mark.parametrize("max_norm", [1.0, 1e-3, 50.0])
def test_a_finite_gradient_is_clipped_though_its_squares_overflow(value, dtype, norm, max_norm):
    first, second = (nn.Parameter(torch.zeros(2, dtype=dtype)) for _ in range(2))
    first.grad, second.grad = (
        torch.full((2,), value, dtype=dtype),
        torch.full((2,), -value, dtype=dtype),
    )
    result = clip_by_global_norm([first, second], max_norm)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    clipped = torch.cat([first.grad, second.grad]).to(wide)
    assert float(torch.linalg.vector_norm(clipped)) == pytest.approx(max_norm, rel=1e-2)
    torch.testing.assert_close(clipped[:2], -clipped[2:])
    assert result.clipped
    assert result.before.item() == (
        pytest.approx(norm, rel=1e-2) if norm < 3.4e38 or value > 1e100 else INF
    )
    assert result.after.item() == pytest.approx(max_norm, rel=1e-5)


def test_a_large_gradient_beside_small_ones_keeps_their_proportion():
    params = parameters([1e25, 0.0], [1e24])
    assert clip_by_global_norm(params, 2.0).before.item() == pytest.approx(1e25 * math.sqrt(1.01))
    assert flat(params) == pytest.approx([2 / math.sqrt(1.01), 0, 0.2 / math.sqrt(1.01)])
    assert global_norm([torch.full((4,), 1e38)]).item() == pytest.approx(2e38)
    assert global_norm([torch.full((4,), 1e38), torch.tensor([INF])]).item() == INF
    assert math.isnan(global_norm([torch.full((4,), 1e38), torch.tensor([NAN])]).item())


def test_a_gradient_whose_squares_vanish_has_its_norm():
    params = parameters([3e-30], [4e-30], dtype=torch.float32)
    result = clip_by_global_norm(params, 1e-30)
    assert result.before.item() == pytest.approx(5e-30)
    assert flat(params) == pytest.approx([6e-31, 8e-31])
    assert global_norm([torch.full((4,), 1e-200, dtype=torch.float64)]).item() == pytest.approx(
        2e-200
    )
    assert global_norm([torch.zeros(0)]).item() == 0


def test_infinite_threshold_measures_only():
    params = parameters([3e5], [4e5])
    before = bits(params)
    result = clip_by_global_norm(params, INF)
    assert (result.before.item(), result.after.item(), result.coefficient.item()) == (5e5, 5e5, 1.0)
    assert all(map(torch.equal, bits(params), before))


def test_zero_gradients_stay_zero():
    params = parameters([0.0, -0.0])
    assert clip_by_global_norm(params, 1.0).coefficient.item() == 1.0
    assert flat(params) == [0.0, 0.0]


def test_no_gradients_at_all():
    assert clip_by_global_norm([nn.Parameter(torch.ones(2))], 1.0).before.item() == 0.0
    assert clip_by_global_norm([], 1.0).coefficient.item() == 1.0


def test_a_single_parameter_and_a_parameter_without_gradient():
    (p,) = parameters([3.0, 4.0])
    idle = nn.Parameter(torch.ones(3, dtype=torch.float64))
    clip_by_global_norm([idle, p], 1.0)
    assert idle.grad is None
    assert idle.tolist() == [1.0, 1.0, 1.0]
    clip_by_global_norm(p, 0.5)
    assert p.grad.tolist() == pytest.approx([0.3, 0.4])


def test_frozen_parameters_are_not_mistaken_for_gradients():
    frozen = torch.full((2,), 100.0)
    (p,) = parameters([3.0, 4.0])
    clip_by_global_norm([frozen, p], 1.0)
    assert frozen.tolist() == [100.0, 100.0]


def test_a_parameter_listed_twice_is_counted_and_scaled_once():
    (p,) = parameters([3.0, 4.0])
    assert clip_by_global_norm([p, p], 1.0).before.item() == 5.0
    assert p.grad.tolist() == pytest.approx([0.6, 0.8])


def test_tensors_themselves():
    tensors = [torch.tensor([3.0]), None, torch.tensor([4.0])]
    clip_tensors_by_global_norm(tensors, 1.0)
    assert [t.item() for t in tensors if t is not None] == pytest.approx([0.6, 0.8])


def test_dtypes_may_be_mixed():
    params = [
        *parameters([3.0], dtype=torch.float32),
        *parameters([4.0], dtype=torch.bfloat16),
        *parameters([12.0], dtype=torch.float64),
    ]
    result = clip_by_global_norm(params, 6.5)
    assert result.before.dtype == torch.float64
    assert result.before.item() == 13.0
    assert flat(params) == [1.5, 2.0, 6.0]


def test_a_half_precision_norm_is_taken_in_float32():
    params = parameters([6e4] * 16, dtype=torch.float16)
    result = clip_by_global_norm(params, 1.0)
    assert result.before.item() == pytest.approx(4 * torch.tensor(6e4).half().item())
    assert flat(params) == pytest.approx([0.25] * 16, rel=1e-3)
    theirs = parameters([6e4] * 16, dtype=torch.float16)
    assert nn.utils.clip_grad_norm_(theirs, 1.0).isinf()


def test_complex_gradients():
    p = nn.Parameter(torch.zeros(1, dtype=torch.complex128))
    p.grad = torch.tensor([3 + 4j], dtype=torch.complex128)
    assert clip_by_global_norm(p, 1.0).before.item() == 5.0
    assert p.grad.item() == pytest.approx(0.6 + 0.8j)


def test_differences_from_torch():
    ours, theirs = parameters([3e-6], [4e-6]), parameters([3e-6], [4e-6])
    clip_by_global_norm(ours, 1e-6)
    nn.utils.clip_grad_norm_(theirs, 1e-6)
    assert twin.norm(flat(ours)) == pytest.approx(1e-6, rel=1e-12)
    assert twin.norm(flat(theirs)) == pytest.approx(1e-6 * 5 / 6, rel=1e-6)
    just_below, theirs = parameters([1 - 5e-7]), parameters([1 - 5e-7])
    clip_by_global_norm(just_below, 1.0)
    nn.utils.clip_grad_norm_(theirs, 1.0)
    assert flat(just_below) == [1 - 5e-7]
    assert flat(theirs) != [1 - 5e-7]


def test_agrees_with_torch_up_to_its_offset():
    torch.manual_seed(0)
    shapes = [(64, 3, 7, 7), (64,), (10, 64)]
    ours = [nn.Parameter(torch.zeros(s)) for s in shapes]
    theirs = [nn.Parameter(torch.zeros(s)) for s in shapes]
    for a, b in zip(ours, theirs, strict=True):
        a.grad = torch.randn(a.shape)
        b.grad = a.grad.clone()
    norm = nn.utils.clip_grad_norm_(theirs, 1.0)
    assert clip_by_global_norm(ours, 1.0).before.item() == pytest.approx(norm.item(), rel=1e-6)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_long_tensors_lose_no_precision(layout):
    values = torch.randn(2**8, 2**4, 2**5, 2**5, generator=torch.Generator().manual_seed(0))
    values = values.contiguous(memory_format=layout)
    exact = values.double().square().sum().sqrt().item()
    # Summed as one tensor, torch 2.15 is off by 8e-5 here.
    assert global_norm([values]).item() == pytest.approx(exact, rel=2e-5)


def test_a_long_tensor_that_cannot_be_cut_along_its_first_dimension():
    assert global_norm([torch.ones(1, 2**19)]).item() == pytest.approx(2**9.5, rel=1e-5)


@given(vectors, thresholds)
def test_clipping_by_value_clamps_each_entry(gradients, max_value):
    params = parameters(*gradients)
    result = clip_by_value(params, max_value)
    before = [v for g in gradients for v in g]
    assert flat(params) == [max(-max_value, min(max_value, v)) for v in before]
    assert result.before.item() == pytest.approx(twin.norm(before), rel=1e-12)
    assert result.after.item() == pytest.approx(twin.norm(flat(params)), rel=1e-12)


def test_clipping_by_value_treats_non_finite_entries_as_torch_does():
    ours, theirs = parameters([INF, -INF, NAN, 3.0]), parameters([INF, -INF, NAN, 3.0])
    clip_by_value(ours, 2.0)
    nn.utils.clip_grad_value_(theirs, 2.0)
    assert str(flat(ours)) == str(flat(theirs)) == "[2.0, -2.0, nan, 2.0]"
    unlimited = parameters([INF, NAN, 3.0])
    before = bits(unlimited)
    clip_by_value(unlimited, INF)
    assert all(map(torch.equal, bits(unlimited), before))


@pytest.mark.parametrize("value", [0.0, -1.0, NAN])
def test_thresholds_must_be_positive(value):
    with pytest.raises(
        ValueError, match=r"max_norm must be positive, got .*; use inf to clip nothing"
    ):
        clip_by_global_norm([], value)
    with pytest.raises(ValueError, match="max_value must be positive"):
        clip_by_value([], value)


def test_sparse_and_complex_gradients_are_refused_before_anything_changes():
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    (dense,) = parameters([30.0])
    with pytest.raises(ValueError, match=r"torch\.sparse_coo.*sparse=False"):
        clip_by_global_norm([dense, embedding.weight], 1.0)
    z = nn.Parameter(torch.zeros(1, dtype=torch.complex64))
    z.grad = torch.ones_like(z)
    with pytest.raises(ValueError, match="complex64 gradient has no order"):
        clip_by_value([dense, z], 1.0)
    assert flat([dense]) == [30.0]
