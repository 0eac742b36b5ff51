"""Batch norm, ReLU and max pooling in one, written for being differentiated twice on a CPU.

torch differentiates the backward pass of a batch norm by some twenty passes over the activations,
and its max pooling of NCHW arrays is not vectorised.

The backward passes here are derived as follows. All is per channel; sums run over its n values u_i.

    m = sum u / n,  v = sum (u - m)^2 / n,  r = (v + eps)^(-1/2),  x_i = (u_i - m) r
    y = relu(x_k + b), with k the place of the largest value of each window

First derivative. dv/du_j = 2 (u_j - m)/n and x_j = (u_j - m) r give

    dr/du_j   = -r^2 x_j / n
    dx_i/du_j = r (delta_ij - 1/n - x_i x_j / n)

Let q be the gradient g of y where y > 0, at the places k, and 0 elsewhere; S1 = sum q and
S2 = sum q x. Then db = S1, and du_j = sum_i q_i dx_i/du_j is

    du_j = r (q_j - S1/n - x_j S2/n)

Second derivative. For cotangents h of du and e of db, with H1 = sum h, H2 = sum h x and
T = sum h q - S1 H1/n - S2 H2/n, what is differentiated is

    f = sum h du + e S1 = r T + e S1

Places and signs are constant almost everywhere, so q depends on g alone:

    df/dq_i = r (h_i - H1/n - x_i H2/n) + e

By way of r, and of x with dT/dx_i = -(q_i H2 + h_i S2)/n,

    df/du_j = T dr/du_j + r sum_i (dT/dx_i) (dx_i/du_j)
            = -(r^2/n) (H2 q_j + S2 h_j) + (r^2/n^2) (H2 S1 + S2 H1)
              + x_j ((2 r^2/n^2) H2 S2 - (r^2/n) T)

where sum_i (q_i H2 + h_i S2) x_i = 2 H2 S2 gave the factor 2.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function_variadic

from .kernels import batch_norm, rows_of

_aten = torch.ops.aten


def norm_relu_pool(input: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return batch norm with the batch's statistics and a shift, then ReLU, then 2x2 max pooling.

    A norm without negative scale keeps order, so pooling can come first: norm and ReLU then see a
    quarter of the values. On a CPU this runs in channels-last memory, which is what the result has.

    Args:
        input: [N, C, H, W].
        bias: the shift [C].
        eps: added to the variance.

    Returns:
        [N, C, H // 2, W // 2].

    Raises:
        ValueError: there is a single value per channel.
    """
    if has_torch_function_variadic(input, bias):
        result: Tensor = handle_torch_function(norm_relu_pool, (input, bias), input, bias, eps)
        return result
    here = input.device.type == "cpu" and input.dtype in (torch.float32, torch.float64)
    rows = input.numel() // input.shape[1]
    if (
        not here
        or rows < 2
        or input.dtype != bias.dtype
        or torch._C._functorch.peek_interpreter_stack() is not None
    ):
        return F.max_pool2d(
            F.relu(batch_norm(input, None, None, None, bias, training=True, eps=eps)), 2
        )
    fused: Tensor = _NormReluPool.apply(
        input.contiguous(memory_format=torch.channels_last), bias, eps
    )
    return fused


def _images(rows: Tensor, like: Tensor) -> Tensor:
    n, c, h, w = like.shape
    return rows.view(n, h, w, c).permute(0, 3, 1, 2)


class _NormReluPool(torch.autograd.Function):
    """y = relu((u_j - mean) r + b) at the largest j of each window, with r = (variance +
    eps)^-1/2.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, b: Tensor, eps: float) -> Tensor:
        mean, variance = torch.batch_norm_update_stats(u, None, None, 0.0)
        r = (variance + eps).rsqrt()
        pooled, window = _aten.max_pool2d_with_indices(u, [2, 2])
        y = torch.addcmul(b - mean * r, rows_of(pooled), r).relu_()
        # From places in a channel of an image to places in memory.
        n, c, h, w = u.shape
        first = torch.arange(n).mul_(h * w * c).view(-1, 1, 1) + torch.arange(c)
        place = first.add(window.permute(0, 2, 3, 1).reshape(n, -1, c), alpha=c).view(-1)
        ctx.save_for_backward(u, y, place, mean, r, b)
        return _images(y, pooled)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return *_NormReluPoolBackward.apply(g, *ctx.saved_tensors), None


class _NormReluPoolBackward(torch.autograd.Function):
    """(du, db) from the gradient g of y: the first derivative above.

    x is not kept: x = (u - m) r, and x = y - b at the places k where y > 0.
    """

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, u: Tensor, y: Tensor, place: Tensor, mean: Tensor, r: Tensor, b: Tensor
    ) -> Any:
        rows = rows_of(u)
        n = len(rows)
        q = _aten.threshold_backward(rows_of(g), y, 0)
        s1 = q.sum(0)
        s2 = (q * y).sum(0) - b * s1
        slope = r.square() * s2 / -n
        du = torch.addcmul(r * s1 / -n - slope * mean, rows, slope)
        du.view(-1).scatter_add_(0, place, (r * q).view(-1))
        ctx.save_for_backward(g, u, q, y, place, mean, r, b, s1, s2)
        ctx.set_materialize_grads(False)
        return _images(du, u), s1

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, h: Tensor | None, e: Tensor | None) -> Any:
        """Return the second derivative above, for cotangents h of du and e of db."""
        g, u, q, y, place, mean, r, b, s1, s2 = ctx.saved_tensors
        if h is None:
            dg = None
            if e is not None:
                dg = _images(_aten.threshold_backward(e.expand_as(y), y, 0), g)
            return dg, None, None, None, None, None, None
        h = h.contiguous(memory_format=torch.channels_last)
        rows, cotangent = rows_of(u), rows_of(h)
        n = len(rows)
        _, h2, h1 = _aten.native_batch_norm_backward(
            h, u, torch.ones_like(mean), None, None, mean, r, True, 0.0, [False, True, True]
        )
        at = cotangent.view(-1).index_select(0, place).view_as(q)
        t = (at * q).sum(0) - (s1 * h1 + s2 * h2) / n
        level = r * (b * h2 - h1) / n
        if e is not None:
            level = level + e
        dg = at.mul_(r).add_(level).addcmul_(y, r * h2 / -n)
        scale = r.square() / n
        slope = r * scale * (2 * h2 * s2 / n - t)
        du = torch.addcmul(scale * (h2 * s1 + s2 * h1) / n - slope * mean, rows, slope)
        du.addcmul_(cotangent, scale * -s2)
        du.view(-1).scatter_add_(0, place, (q * (scale * -h2)).view(-1))
        return (
            _images(_aten.threshold_backward(dg, y, 0), g),
            _images(du, u),
            None,
            None,
            None,
            None,
            None,
        )
