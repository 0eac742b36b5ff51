"""The training pass differentiated twice: the hand-derived gradient, and its cost over the depth
of a network.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from trainkit_plugins.batch_norm import block_sizes, convert_batch_norm, normalize_blocks
from trainkit_plugins.batch_norm.blocks import Settings, normalize

EPS = 1e-3
WAYS = [  # batch, channels, space, ghost size, channel groups, blocks
    (6, 4, (2, 2), 3, 4, "strided"),
    (6, 4, (2, 2), 3, 4, "consecutive"),
    (7, 4, (3,), 3, 2, "strided"),  # a last block of another size
    (5, 4, (3,), 2, 2, "consecutive"),
    (4, 6, (2,), None, 3, "strided"),
    (4, 3, (2, 1, 2), 1, 3, "consecutive"),
    (6, 4, (), 3, 2, "strided"),
]


def make(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leaves(batch, channels, space):
    return [make(batch, channels, *space) * 2 + 1, make(channels, seed=1), make(channels, seed=2)]


def normed(x, weight, bias, ghost, groups, blocks):
    how = {"ghost_size": ghost, "channel_groups": groups, "blocks": blocks, "eps": EPS}
    return normalize_blocks(x, weight, bias, **how).output


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("batch", "channels", "space", "ghost", "groups", "blocks"), WAYS)
def test_second_derivatives_are_finite_differences(
    batch, channels, space, ghost, groups, blocks, last
):
    def f(x, weight, bias):
        return normed(x.transpose(1, -1) if last else x, weight, bias, ghost, groups, blocks)

    x, weight, bias = leaves(batch, channels, space)
    x = x.transpose(1, -1).contiguous() if last else x
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    assert torch.autograd.gradgradcheck(f, inputs)


@pytest.mark.parametrize(("batch", "channels", "space", "ghost", "groups", "blocks"), WAYS)
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_third_derivatives_are_those_of_ordinary_operations(
    batch, channels, space, ghost, groups, blocks, affine
):
    how = Settings(tuple(block_sizes(batch, ghost)), groups, EPS, blocks == "consecutive")

    def third(norm):
        x, weight, bias = (t.requires_grad_() for t in leaves(batch, channels, space))
        wanted = [x, weight, bias] if affine else [x]
        y = norm(*wanted, *[None] * (3 - len(wanted)))
        for power in (3, 2):  # so that no derivative is zero
            found = torch.autograd.grad(
                y.pow(power).sum(), wanted, create_graph=True, materialize_grads=True
            )
            y = sum(g.sin().sum() for g in found)
        return torch.autograd.grad(y, wanted, materialize_grads=True)

    ours = third(lambda *t: normed(*t, ghost, groups, blocks))
    theirs = third(lambda *t: normalize(*t, how)[0])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


class Count(TorchDispatchMode):
    """Counts the operations that reach a kernel."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


def calls_of_second_order(depth, **how):
    """Count the operations of a loss, its gradient, and the gradient of that through `depth`
    norms.
    """
    torch.manual_seed(0)
    layers = [
        layer for _ in range(depth) for layer in (nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh())
    ]
    model = nn.Sequential(*layers)
    convert_batch_norm(model, **how)
    weights = [m.weight for m in model if isinstance(m, nn.Linear)]
    with Count() as count:
        first = torch.autograd.grad(
            model(make(6, 4).float()).square().sum(), weights, create_graph=True
        )
        torch.stack([g.square().sum() for g in first]).sum().backward()
    return count.calls


@pytest.mark.parametrize(
    "how", [{"channel_groups": 2}, {"ghost_size": 2}, {"ghost_size": 3, "channel_groups": 4}]
)
def test_the_work_of_two_derivatives_grows_with_depth_and_no_faster(how):
    few, more, many = (calls_of_second_order(depth, **how) for depth in (2, 4, 8))
    assert many - more == 2 * (more - few)


@pytest.mark.parametrize("sizes", [(6, 9), (9, 6, 4), (3, 8, 3)])
def test_passes_of_other_sizes_may_lie_between_a_pass_and_its_gradient(sizes):
    """One block is torch's own norm, several write the running moments: neither spoils the
    other's graph.
    """
    layer = nn.BatchNorm1d(4)
    convert_batch_norm(layer, ghost_size=4)
    inputs = [make(size, 4, seed=size).float().requires_grad_() for size in sizes]
    together = torch.autograd.grad(sum(layer(x).pow(3).sum() for x in inputs), inputs)
    alone = [torch.autograd.grad(layer(x).pow(3).sum(), x)[0] for x in inputs]
    assert all(map(torch.equal, together, alone))
