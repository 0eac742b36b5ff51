"""Operations written for being differentiated twice on a CPU: fewer passes over memory, and no slow
kernels.

torch differentiates the backward pass of a convolution by convolutions with kernels as large as the
image. Here that backward pass is a function of its own, with its gradient derived by hand; `fused`
does the same for a norm that is followed by ReLU and pooling.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

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
    """(dx, dw, db) of a convolution, from dy, x and w.

    The convolution x * w is linear in x and in w, and the three are its adjoints: for any hx, hw
    and hb

        <hx, dx> = <hx * w, dy>,  <hw, dw> = <x * hw, dy>,  <hb, db> = <hb, dy>

    with hb the same at all places. The second backward pass gets hx, hw and hb as cotangents of dx,
    dw and db, and needs the gradient of the sum of the three. Each right side is linear in what it
    holds, so

        grad of dy = hx * w + x * hw + hb
        grad of x  = the dx of a convolution with hw in place of w  (from the second)
        grad of w  = the dw of a convolution of hx in place of x    (from the first)
    """

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
            forms = []
            if hx is not None:
                forms.append(_convolve(hx, w, None, how))
            if hw is not None:
                forms.append(_convolve(x, hw, hb, how))
            elif hb is not None:
                forms.append(hb.view(shape).expand_as(dy))
            if forms:
                grad_dy = sum(forms[1:], forms[0])
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
        kernels = w.view(-1, 9).t()
        if b is None:
            rows = windows @ kernels
        else:
            rows = torch.addmm(b, windows, kernels)
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
    if rows:
        return (*found[:2], rows_of(dy).sum(0))
    return found


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


def rows_of(x: Tensor) -> Tensor:
    """Return [N, C, H, W] in channels-last memory as [N * H * W, C]."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
