"""The operations with backward passes of their own, against torch's and against finite
differences.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from trainkit_plugins.maml.fused import norm_relu_pool
from trainkit_plugins.maml.kernels import conv2d


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def written_out(u: Tensor, b: Tensor, eps: float) -> Tensor:
    mean = u.mean((0, 2, 3), keepdim=True)
    variance = (u - mean).square().mean((0, 2, 3), keepdim=True)
    return F.max_pool2d(F.relu((u - mean) * (variance + eps).rsqrt() + b.view(1, -1, 1, 1)), 2)


@pytest.mark.parametrize("shape", [(3, 2, 4, 4), (2, 3, 7, 5), (4, 1, 2, 2)])
@pytest.mark.parametrize("last", [False, True])
def test_norm_relu_pool_and_its_first_two_derivatives(shape: tuple[int, ...], last: bool):
    u, b = draw(*shape), draw(shape[1], seed=1)
    given = u.contiguous(memory_format=torch.channels_last) if last else u
    found, wanted = norm_relu_pool(given, b, 1e-3), written_out(u, b, 1e-3)
    torch.testing.assert_close(found, wanted)
    results = []
    for value in (found, wanted):
        first = torch.autograd.grad(value.square().sum(), (u, b), create_graph=True)
        total = sum((g.sin() * torch.arange(g.numel()).view(g.shape)).sum() for g in first)
        results.append([*first, *torch.autograd.grad(total, (u, b))])
    for a, c in zip(*results, strict=True):
        torch.testing.assert_close(a, c)
    assert torch.autograd.gradgradcheck(lambda u, b: norm_relu_pool(u, b, 1e-3), (u, b))


def test_norm_relu_pool_in_half_precision_and_under_vmap_is_torchs():
    u, b = draw(4, 2, 4, 4).detach(), draw(2, seed=1).detach()
    torch.testing.assert_close(
        torch.vmap(norm_relu_pool, (0, None, None))(u[None], b, 1e-3)[0], written_out(u, b, 1e-3)
    )
    half = norm_relu_pool(u.bfloat16(), b.float(), 1e-3)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), written_out(u, b, 1e-3), rtol=0.1, atol=0.1)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm_relu_pool(u[:1, :, :1, :1].contiguous(), b, 1e-3)


@pytest.mark.parametrize("kernel", [(3, 3), (1, 5), (2, 2), (1, 1)])
@pytest.mark.parametrize(("stride", "dilation", "groups"), [(1, 1, 1), (2, 1, 1), (2, 2, 2)])
def test_convolution_of_maps_of_one_place(
    kernel: tuple[int, int], stride: int, dilation: int, groups: int
):
    x, w = draw(3, 4, 1, 1), draw(2, 4 // groups, *kernel, seed=1)
    how = (None, stride, tuple(k // 2 * dilation for k in kernel), dilation, groups)
    found, wanted = conv2d(x, w, *how), F.conv2d(x, w, *how)
    torch.testing.assert_close(found, wanted)
    for a, b in zip(
        *(torch.autograd.grad(y.square().sum(), (x, w)) for y in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("autocast", [False, True])
def test_in_bfloat16_nothing_of_a_gradient_is_left_unwritten(autocast: bool):
    x, w, dy = (
        draw(*shape).detach().bfloat16()
        for shape in ((5, 192, 1, 1), (96, 192, 3, 3), (5, 96, 1, 1))
    )
    for _ in range(3):
        memory = [
            torch.full((w.numel() * k,), float("nan"), dtype=torch.bfloat16) for k in (1, 2, 4)
        ]
        del memory  # what is allocated next may lie there
        leaf = (w.float() if autocast else w).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = conv2d(x, leaf, None, 2, 1)
        (gradient,) = torch.autograd.grad(y, leaf, dy)
        assert gradient.isfinite().all()
        assert gradient.count_nonzero((0, 1)).tolist() == [
            [0, 0, 0],
            [0, w[:, :, 0, 0].numel(), 0],
            [0, 0, 0],
        ]


@pytest.mark.parametrize(
    ("channels", "groups", "stride", "padding", "dilation"),
    [(4, 2, 2, 1, 1), (4, 1, (2, 1), (1, 0), 1), (4, 4, 1, 2, 2), (1, 1, 1, 1, 1)],
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("last", [False, True])
def test_convolution_and_its_first_two_derivatives(
    channels, groups, stride, padding, dilation, bias, last
):
    x, w, b = draw(2, channels, 6, 5), draw(4, channels // groups, 3, 3, seed=1), draw(4, seed=2)
    how = (stride, padding, dilation, groups)
    images = torch.empty_like(x, memory_format=torch.channels_last).copy_(x) if last else x
    arguments = (images, w, b) if bias else (images, w)

    def convolve(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return conv2d(x, w, b, *how)

    torch.testing.assert_close(
        convolve(*arguments), F.conv2d(*arguments, *(() if bias else (None,)), *how)
    )
    leaves = tuple(a.detach().requires_grad_() for a in arguments)
    assert torch.autograd.gradcheck(convolve, leaves)
    assert torch.autograd.gradgradcheck(convolve, leaves)
