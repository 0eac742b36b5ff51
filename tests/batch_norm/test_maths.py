"""The functions and the layer against the slow twin, known special cases, limits and finite
differences.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from trainkit_plugins.batch_norm import (
    block_sizes,
    convert_batch_norm,
    cpu,
    mix_moments,
    normalize_blocks,
    normalize_examples,
    update_moments,
)
from trainkit_plugins.batch_norm.blocks import Settings, normalize

from tests.reference import batch_norm as reference

N, C, EPS = 8, 6, 1e-5


def exact(a, b):
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def make(*shape, seed=0, dtype=torch.float64):
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def nested(x):
    return x.double().flatten(2).tolist() if x.dim() > 2 else x.double()[:, :, None].tolist()


def doubles(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def train(x, weight=None, bias=None, **how):
    return normalize_blocks(
        x, weight, bias, **({"ghost_size": None, "channel_groups": None, "eps": EPS} | how)
    )


def arranged(x, lay):
    """Return the same numbers in another order of memory."""
    if lay == "last" and x.dim() > 2:
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if lay == "sliced":
        return torch.stack([x, -x], dim=-1)[..., 0]
    if lay == "transposed":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    return x


SHAPES = {
    "batch": st.integers(1, 13),
    "ghost": st.none() | st.integers(1, 7),
    "channels": st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 3), (6, 1), (17, 17)]),
    "space": st.sampled_from([(), (1,), (3,), (2, 3), (5, 5), (2, 2, 2)]),
    "lay": st.sampled_from(["contiguous", "last", "sliced", "transposed"]),
    "blocks": st.sampled_from(["any", "strided", "consecutive"]),
    "affine": st.booleans(),
    "size": st.sampled_from(["small", "middle", "large"]),  # taken for a tensor of that size
}


def ways_of(ghost, groups, blocks):
    return {"ghost_size": ghost, "channel_groups": groups, "blocks": blocks}


def strided(x, blocks):
    return blocks == "strided" or (blocks == "any" and x.is_contiguous())


def values_per_statistic(x, ghost, groups):
    return min(block_sizes(len(x), ghost)) * x[0].numel() // groups


@contextmanager
def taken_for(size):
    """Choose among the ways that differ by the size of tensors."""
    long, threads = 0 if size == "large" else cpu._LONG, 2 if size == "small" else 1
    with (
        mock.patch.object(cpu, "_LONG", long),
        mock.patch.object(torch, "get_num_threads", return_value=threads),
    ):
        yield


@given(
    **SHAPES, dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])
)
@settings(max_examples=150)
def test_training_is_the_slow_twin(batch, ghost, channels, space, lay, blocks, affine, size, dtype):
    C, G = channels
    x = arranged(make(batch, C, *space, dtype=dtype) * 2 + 1, lay)
    weight, bias = (
        (make(C, seed=1, dtype=dtype), make(C, seed=2, dtype=dtype)) if affine else (None, None)
    )
    if values_per_statistic(x, ghost, G) == 1:
        with pytest.raises(ValueError, match="more than 1 value"):
            train(x, weight, bias, **ways_of(ghost, G, blocks))
        return
    with taken_for(size):
        done = train(x, weight, bias, **ways_of(ghost, G, blocks))
    gamma, beta = (
        (t.double().tolist() for t in (weight, bias)) if affine else ([1.0] * C, [0.0] * C)
    )
    index = reference.blocks_of(batch, ghost, strided=strided(x, blocks))
    y = doubles(reference.train(nested(x), gamma, beta, index, G, EPS))
    assert done.output.dtype == dtype
    tolerance = {
        torch.float64: 1e-9,
        torch.float32: 1e-3,
        torch.bfloat16: 3e-2,
        torch.float16: 1e-2,
    }[dtype]
    torch.testing.assert_close(
        done.output.double(), y.reshape(x.shape), rtol=tolerance, atol=tolerance
    )
    m1, m2 = map(doubles, reference.running(nested(x), [0.0] * C, [0.0] * C, 0.0))
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(done.mean.double(), m1, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(done.var.double(), m2 - m1**2, rtol=tolerance, atol=tolerance)


@given(**SHAPES, order=st.sampled_from(["same", "contiguous", "expanded"]))
@settings(max_examples=150)
def test_gradients_are_those_of_ordinary_operations(
    batch, ghost, channels, space, lay, blocks, affine, size, order
):
    C, G = channels
    x = arranged(make(batch, C, *space), lay).requires_grad_()
    if values_per_statistic(x, ghost, G) == 1:
        return
    params = [make(C, seed=s).requires_grad_() for s in (1, 2)] if affine else [None, None]
    wanted = [t for t in (x, *params) if t is not None]
    how = Settings(tuple(block_sizes(batch, ghost)), G, EPS, not strided(x, blocks))
    dy = make(*x.shape, seed=3)
    dy = {"same": arranged(dy, lay), "contiguous": dy, "expanded": dy.flatten()[0].expand(x.shape)}[
        order
    ]
    with taken_for(size):
        ours = torch.autograd.grad(
            train(x, *params, **ways_of(ghost, G, blocks)).output, wanted, dy
        )
    theirs = torch.autograd.grad(normalize(x, *params, how)[0], wanted, dy)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("size", ["small", "middle", "large"])
@pytest.mark.parametrize("lay", ["contiguous", "last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_activation_in_place_may_follow(size, lay, dtype):
    results = []
    for inplace in (True, False):
        x = arranged(make(8, 4, 3, 3, dtype=dtype), lay).requires_grad_()
        with taken_for(size):
            y = (
                torch.relu_(train(x, ghost_size=2).output)
                if inplace
                else torch.relu(train(x, ghost_size=2).output)
            )
        results.append((y, *torch.autograd.grad(y.sum(), x)))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize(
    ("ghost", "groups", "blocks"),
    [
        (2, 4, "strided"),
        (3, 4, "consecutive"),
        (1, 2, "strided"),
        (2, 2, "consecutive"),
        (4, 1, "strided"),
    ],
)
def test_finite_differences(ghost, groups, blocks):
    def f(*t):
        return train(*t, **ways_of(ghost, groups, blocks)).output

    inputs = [make(5, 4, 2), make(4, seed=1), make(4, seed=2)]
    torch.autograd.gradcheck(f, [t.requires_grad_() for t in inputs])
    torch.autograd.gradgradcheck(f, [inputs[0], *inputs[1:]], fast_mode=True)


@given(
    batch=st.integers(1, 9),
    G=st.sampled_from([1, 2, 3, 6]),
    alpha=st.floats(0, 1),
    space=SHAPES["space"],
)
def test_inference_is_the_slow_twin(batch, G, alpha, space):
    x, gamma, beta = make(batch, C, *space), make(C, seed=1), make(C, seed=2)
    m1, var = make(C, seed=3), make(C, seed=4).square() + 0.1
    y = normalize_examples(x, m1, var, gamma, beta, example_weight=alpha, channel_groups=G, eps=EPS)
    m2 = (var + m1**2).tolist()
    twin = reference.infer(nested(x), gamma.tolist(), beta.tolist(), m1.tolist(), m2, alpha, G, EPS)
    torch.testing.assert_close(y, doubles(twin).reshape(x.shape), rtol=1e-8, atol=1e-9)


def test_special_cases_are_torch_layers():
    x, weight, bias = make(N, C, 5, 5), make(C, seed=1), make(C, seed=2)
    affine = {"weight": weight, "bias": bias, "eps": EPS}
    exact(train(x, weight, bias).output, F.batch_norm(x, None, None, weight, bias, True, 0.1, EPS))
    halves = [F.batch_norm(c, None, None, weight, bias, True, 0.1, EPS) for c in x.split(4)]
    exact(train(x, weight, bias, ghost_size=4, blocks="consecutive").output, torch.cat(halves))
    exact(
        train(x, weight, bias, ghost_size=1, channel_groups=3).output, F.group_norm(x, 3, **affine)
    )
    exact(
        train(x, weight, bias, ghost_size=1, channel_groups=1).output, F.group_norm(x, 1, **affine)
    )
    exact(train(x, ghost_size=1, channel_groups=1).output, F.layer_norm(x, x.shape[1:], eps=EPS))
    exact(
        train(x, weight, bias, ghost_size=1).output,
        F.instance_norm(x, None, None, weight, bias, eps=EPS),
    )


def test_group_norm_at_inference_is_example_weight_one():
    x, running = make(N, C, 5, 5), (make(C, seed=3), make(C, seed=4).square())
    for groups in (1, 3, 6):
        y = normalize_examples(
            x, *running, None, None, example_weight=1.0, channel_groups=groups, eps=EPS
        )
        exact(y, F.group_norm(x, groups, eps=EPS))


@pytest.mark.parametrize("n", [2, 16, 100])
def test_an_outlier_is_bounded_by_the_block_in_training_and_by_alpha_at_inference(n):
    x = torch.zeros(n, 1, dtype=torch.float64)
    x[0] = 1e6
    assert train(x, eps=0.0).output.abs().max().item() == pytest.approx(math.sqrt(n - 1), rel=1e-9)
    alpha, zero, one = 1 / n, torch.zeros(1).double(), torch.ones(1).double()
    limit = math.sqrt((1 - alpha) / alpha)
    seen = normalize_examples(
        x * 1e6, zero, one, None, None, example_weight=alpha, channel_groups=None, eps=0.0
    )
    assert seen.max().item() == pytest.approx(limit, rel=1e-9)
    assert limit == pytest.approx(math.sqrt(n - 1))


def test_without_example_weight_an_example_does_not_see_the_batch():
    x, running = make(N, C, 5, 5), (make(C, seed=3), make(C, seed=4).square())
    for alpha in (0.0, 0.3):
        how = {"example_weight": alpha, "channel_groups": None, "eps": EPS}
        whole = normalize_examples(x, *running, None, None, **how)
        exact(whole[3:4], normalize_examples(x[3:4], *running, None, None, **how))
        if alpha == 0:
            exact(whole, F.batch_norm(x, *running, eps=EPS))


@pytest.mark.parametrize("ghost", [None, 4, 2, 1])
@pytest.mark.parametrize("groups", [6, 3, 1])
def test_running_moments_are_those_of_the_batch_whatever_the_grouping(ghost, groups):
    x = make(N, C, 5, 5) + make(C, seed=5)[:, None, None]
    done = train(x, ghost_size=ghost, channel_groups=groups)
    m1, var = torch.zeros(C).double(), torch.ones(C).double()
    update_moments(m1, var, done.mean, done.var, 0.01)
    exact(m1, 0.01 * x.mean((0, 2, 3)))
    exact(var + m1**2, 0.99 + 0.01 * x.square().mean((0, 2, 3)))


def test_moments_are_pooled_over_unequal_blocks():
    x = make(11, C, 2, 2)
    done = train(x, ghost_size=4)
    assert block_sizes(11, 4) == [4, 4, 3]
    exact(done.mean, x.mean((0, 2, 3)))
    exact(done.var, x.var((0, 2, 3), correction=0))


def test_a_block_is_a_set_of_examples():
    x = make(N, C, 3, 3)
    y = train(x, ghost_size=4).output  # strided: even and odd examples
    within = torch.tensor([2, 1, 0, 3, 4, 5, 6, 7])
    exact(train(x[within], ghost_size=4).output, y[within])
    across = torch.tensor([1, 0, 2, 3, 4, 5, 6, 7])
    moved = train(x[across], ghost_size=4).output
    assert (moved[across] - y)[2:].abs().amin(dim=(1, 2, 3)).min() > 1e-4


@pytest.mark.parametrize(
    ("batch", "ghost", "sizes"),
    [
        (8, None, [8]),
        (8, 8, [8]),
        (5, 8, [5]),
        (16, 8, [8, 8]),
        (17, 8, [8, 9]),
        (20, 8, [8, 12]),
        (21, 8, [8, 8, 5]),
        (12, 8, [12]),
        (3, 2, [3]),
        (3, 1, [1, 1, 1]),
        (0, 8, [0]),
    ],
)
def test_block_sizes(batch, ghost, sizes):
    assert block_sizes(batch, ghost) == sizes


@given(batch=st.integers(0, 300), ghost=st.integers(1, 64))
def test_every_example_is_used_and_no_block_is_less_than_half_full(batch, ghost):
    sizes = block_sizes(batch, ghost)
    assert sum(sizes) == batch
    assert len(sizes) == 1 or all(2 * s > ghost and 2 * s <= 3 * ghost for s in sizes)


@pytest.mark.parametrize("groups", [6, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_nearly_constant_channel_has_no_negative_variance(groups, dtype):
    x = (30 + 1e-3 * make(64, C, 4, 4)).to(dtype)
    raw = x.float().square().mean((2, 3)) - x.float().mean((2, 3)) ** 2
    if dtype == torch.float32:
        assert raw.min() < -1e-5  # what the raw moments of single examples give
    done = train(x, ghost_size=2, channel_groups=groups, eps=1e-7)
    assert done.output.isfinite().all()
    assert done.var.min() >= 0
    mean, var = torch.full((C,), 30.0), torch.zeros(C)
    update_moments(mean, var, done.mean, done.var, 1.0)
    assert var.min() >= 0
    for alpha in (0.0, 0.1, 1.0):
        _, mixed = mix_moments(x, mean, var, example_weight=alpha, channel_groups=groups)
        assert mixed.min() >= 0


def test_half_precision_is_summed_in_float32():
    x = (1000 + make(64, C, 16, 16)).to(torch.float16)
    done = train(x, ghost_size=32)
    torch.testing.assert_close(done.mean.double(), x.double().mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        done.var.double(), x.double().var((0, 2, 3), correction=0), rtol=1e-3, atol=0
    )


def test_the_layer_and_the_functions_are_one():
    layer = nn.BatchNorm2d(C, eps=1e-3, momentum=0.2).double()
    convert_batch_norm(layer, ghost_size=4, channel_groups=3, example_weight=0.25)
    x, before = make(N, C, 3, 3), (torch.zeros(C).double(), torch.ones(C).double())
    done = normalize_blocks(x, layer.weight, layer.bias, ghost_size=4, channel_groups=3, eps=1e-3)
    update_moments(*before, done.mean, done.var, 0.2)
    exact(layer(x), done.output)
    exact(layer.running_mean, before[0])
    exact(layer.running_var, before[1])
    how = {"example_weight": 0.25, "channel_groups": 3, "eps": 1e-3}
    exact(layer.eval()(x), normalize_examples(x, *before, layer.weight, layer.bias, **how))
