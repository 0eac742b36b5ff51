"""Operations written for being differentiated twice on a CPU: fewer passes over memory, and no slow
kernels.

torch differentiates the backward pass of a convolution by convolutions with kernels as large as the
image, that of a batch norm by some twenty passes over the activations, and its max pooling of NCHW
arrays is not vectorised. Here each backward pass is a function of its own, with its gradient
derived by hand.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function_variadic

_aten = torch.ops.aten


class _Conv(torch.autograd.Function):
    """y = x * w + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, *how: Any) -> Tensor:
        ctx.how = how
        ctx.bias = b is not None
        ctx.save_for_backward(x, w)
        return _convolve(x, w, b, how)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, w = ctx.saved_tensors
        wanted = (
            ctx.needs_input_grad[0],
            ctx.needs_input_grad[1],
            ctx.bias and ctx.needs_input_grad[2],
        )
        return *_ConvBackward.apply(dy, x, w, wanted, *ctx.how), *(None for _ in ctx.how)


class _ConvBackward(torch.autograd.Function):
    """(dx, dw, db) of a convolution, from dy, x and w."""

    @staticmethod
    def forward(
        ctx: Any, dy: Tensor, x: Tensor, w: Tensor, wanted: tuple[bool, ...], *how: Any
    ) -> Any:
        ctx.how = how
        ctx.save_for_backward(dy, x, w)
        ctx.set_materialize_grads(False)
        return _conv_backward(dy, x, w, how, wanted)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, hx: Tensor | None, hw: Tensor | None, hb: Tensor | None) -> Any:
        dy, x, w = ctx.saved_tensors
        how = ctx.how
        for_dy, for_x, for_w = ctx.needs_input_grad[:3]
        grad_dy = grad_x = grad_w = None
        if for_dy:
            shape = (1, -1, *(1 for _ in dy.shape[2:]))
            forms = [] if hx is None else [_convolve(hx, w, None, how)]
            forms += [] if hw is None else [_convolve(x, hw, hb, how)]
            forms += [hb.view(shape).expand_as(dy)] if hb is not None and hw is None else []
            grad_dy = forms[0] if len(forms) == 1 else sum(forms) if forms else None
        if for_x and hw is not None:
            grad_x = _conv_backward(dy, x, hw, how, (True, False, False))[0]
        if for_w and hx is not None:
            grad_w = _conv_backward(dy, hx, w, how, (False, True, False))[1]
        return grad_dy, grad_x, grad_w, None, *(None for _ in how)


def _convolve(x: Tensor, w: Tensor, b: Tensor | None, how: Any) -> Tensor:
    # Of one channel in channels-last memory, torch's kernel takes four times as long as a product
    # with the windows.
    if (
        x.shape[1] == 1
        and how == ([1, 1], [1, 1], [1, 1], 1)
        and w.shape[2:] == (3, 3)
        and _is_rows(x)
    ):
        n, _, height, width = x.shape
        windows = F.pad(x[:, 0], (1, 1, 1, 1)).unfold(1, 3, 1).unfold(2, 3, 1).reshape(-1, 9)
        rows = (
            windows @ w.view(-1, 9).t() if b is None else torch.addmm(b, windows, w.view(-1, 9).t())
        )
        return rows.view(n, height, width, -1).permute(0, 3, 1, 2)
    result: Tensor = _aten.convolution(x, w, b, *how[:3], False, [0, 0], how[3])
    return result


def _is_rows(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.stride(1) == 1 and x.stride(3) == x.shape[1]


def _conv_backward(dy: Tensor, x: Tensor, w: Tensor, how: Any, wanted: tuple[bool, ...]) -> Any:
    rows = wanted[2] and _is_rows(dy)  # torch's sum for the bias is slow in this memory
    mask = [wanted[0], wanted[1], wanted[2] and not rows]
    found = _aten.convolution_backward(
        dy, x, w, [w.shape[0]], *how[:3], False, [0, 0], how[3], mask
    )
    return (*found[:2], _rows(dy).sum(0)) if rows else found


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Return what `torch.nn.functional.conv2d` returns; other arguments than arrays of images go
    to that.
    """
    if isinstance(padding, str) or input.ndim != 4:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    pairs = [
        list(v) if isinstance(v, tuple | list) else [v, v] for v in (stride, padding, dilation)
    ]
    kernel = list(weight.shape[2:])
    middle = [k // 2 for k in kernel]
    reach = [m * d for m, d in zip(middle, pairs[2], strict=True)]
    if (
        input.shape[2:] == (1, 1)
        and pairs[1] == reach
        and any(middle)
        and kernel[0] % 2
        and kernel[1] % 2
    ):
        # Of a map of one place a padded kernel sees its middle alone. torch 2.15 does not write all
        # zeros of that kernel's gradient where the stride is 2, in bfloat16 on a CPU: they are
        # whatever the memory held.
        weight = weight[:, :, middle[0] : middle[0] + 1, middle[1] : middle[1] + 1]
        pairs = [[1, 1], [0, 0], [1, 1]]
    if torch.is_autocast_enabled(input.device.type):
        return F.conv2d(input, weight, bias, pairs[0], pairs[1], pairs[2], groups)
    result: Tensor = _Conv.apply(input, weight, bias, *pairs, groups)
    return result


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return what `torch.nn.functional.batch_norm` returns; half-precision inputs are normalised in
    float32.

    So are then its two derivatives: in float16 the second one overflows however the loss is scaled.
    """
    rest = (running_mean, running_var, weight, bias, training, momentum, eps)
    if input.dtype not in (torch.float16, torch.bfloat16):
        return F.batch_norm(input, *rest)
    return F.batch_norm(input.float(), *rest).to(input.dtype)


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


def _rows(x: Tensor) -> Tensor:
    """Return [N, C, H, W] in channels-last memory as [N * H * W, C]."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


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
        y = torch.addcmul(b - mean * r, _rows(pooled), r).relu_()
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
    """(du, db) from the gradient g of y.

    With x = (u - mean) r, which is y - b where y > 0; q = g where y > 0, else 0, put back to the
    places k of the largest; n values per channel; S1 = sum q; S2 = sum q x:

        du_k = r (q_k - S1/n - x_k S2/n),  db = S1
    """

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, u: Tensor, y: Tensor, place: Tensor, mean: Tensor, r: Tensor, b: Tensor
    ) -> Any:
        rows = _rows(u)
        n = len(rows)
        q = _aten.threshold_backward(_rows(g), y, 0)
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
        """With H1 = sum h, H2 = sum h x, T = sum h_j q_j - S1 H1/n - S2 H2/n for cotangents h of du
        and e of db.

        dg = r (h_j - H1/n - x_j H2/n) + e where y > 0; and for u, by way of x and of r,
        du_k = -(r²/n) (H2 q_k + S2 h_k) + (r²/n²) (H2 S1 + S2 H1) + x_k ((2 r²/n²) H2 S2 - (r²/n)
        T).
        """
        g, u, q, y, place, mean, r, b, s1, s2 = ctx.saved_tensors
        if h is None:
            dg = None if e is None else _images(_aten.threshold_backward(e.expand_as(y), y, 0), g)
            return dg, *(None for _ in range(6))
        h = h.contiguous(memory_format=torch.channels_last)
        rows, cotangent = _rows(u), _rows(h)
        n = len(rows)
        _, h2, h1 = _aten.native_batch_norm_backward(
            h, u, torch.ones_like(mean), None, None, mean, r, True, 0.0, [False, True, True]
        )
        at = cotangent.view(-1).index_select(0, place).view_as(q)
        t = (at * q).sum(0) - (s1 * h1 + s2 * h2) / n
        level = r * (b * h2 - h1) / n
        dg = at.mul_(r).add_(level if e is None else level + e).addcmul_(y, r * h2 / -n)
        scale = r.square() / n
        slope = r * scale * (2 * h2 * s2 / n - t)
        du = torch.addcmul(scale * (h2 * s1 + s2 * h1) / n - slope * mean, rows, slope)
        du.addcmul_(cotangent, scale * -s2)
        du.view(-1).scatter_add_(0, place, (q * (scale * -h2)).view(-1))
        return (
            _images(_aten.threshold_backward(dg, y, 0), g),
            _images(du, u),
            *(None for _ in range(5)),
        )
