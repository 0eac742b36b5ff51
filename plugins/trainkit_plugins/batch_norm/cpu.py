"""The training pass on a CPU, outside of tracers: the same maths in fewer sweeps over memory.

torch's own kernel sums a channel of a contiguous (NCHW) tensor five times slower than a plain `sum`
does, and in channels_last its sums are fast but its last sweep is not. So each layout takes what is
fastest there:

* all of a small contiguous tensor with strided blocks by torch's kernel, which sees blocks as more
  channels;
* else the two moments by plain sums, or where examples lie channels_last and blocks are long by
  torch's kernel;
* the output by one multiply-add of per-block coefficients;
* the backward pass by torch's kernel where strided blocks can be seen as channels, else by sums and
  two multiply-adds; its own backward pass is in twice.py.

Every tensor is seen as [n, B, C, S]: n examples in each of B blocks, C channels, S positions. mu,
inv and var are [B, C, 1]. The sums are those of centred values, so nothing cancels.
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .blocks import (
    Settings,
    Stretch,
    are_channels,
    flat,
    is_whole,
    over_groups,
    stretches,
    sum_over,
)
from .twice import Cotangents, Inputs, second_gradient

_aten = torch.ops.aten
# Blocks are worked on in turn, so many at a time that a tensor's part stays in a core's cache.
_CACHED = 2**21
# From so many numbers in a block for each thread on, one call of torch's kernel per block pays.
_LONG = 2**16
# Up to so many numbers for each thread but the first, torch's kernel in NCHW is faster than plain
# sums, whose many calls share little work among threads. Alone, it is so for vectors only.
_SMALL = 2**19


class _Saved(NamedTuple):
    # One backward pass. dot and total are filled with the sums of dy (x - mu) inv and of dy, [B, C,
    # 1].
    dy: Tensor
    x: Tensor
    weight: Tensor | None
    mu: Tensor
    inv: Tensor
    dot: Tensor
    total: Tensor
    settings: Settings


class BlockNorm(torch.autograd.Function):
    """Normalize [N, C, ...], float32 or float64, contiguous or channels_last."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, settings: Settings
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (y, mean, var): the last two [B, C], each block's biased moments, without
        gradient.
        """
        if _one_call(x, settings):
            y, mean, inv = _forward_by_torch(x, weight, bias, settings)
            var = inv.pow(-2).sub_(settings.eps).clamp_(min=0)
            return _keep(ctx, (x, weight, mean, inv), settings, (y, mean, var))
        y = torch.empty_like(x)
        x3, y3 = flat(x), flat(y)
        shape = (len(settings.sizes), x.shape[1], 1)
        mean, var, inv = x.new_empty(shape), x.new_empty(shape), x.new_empty(shape)
        mu = mean if settings.groups == x.shape[1] else x.new_empty(shape)
        for run in stretches(settings.sizes):
            X, Y = run.view(x3, settings.consecutive), run.view(y3, settings.consecutive)
            for part, at in _parts(X, run.first):
                Xp, Yp = X[:, part], Y[:, part]
                _moments(Xp, Yp, mean[at], var[at], mu[at], inv[at], settings)
                a = inv[at] if weight is None else inv[at] * weight[:, None]
                c = (
                    (mu[at] * a).neg_()
                    if bias is None
                    else torch.addcmul(bias[:, None], mu[at], a, value=-1)
                )
                torch.addcmul(_spread_like(c, Xp), Xp, _spread_like(a, Xp), out=Yp)
        return _keep(ctx, (x, weight, mu, inv), settings, (y, mean, var))

    @staticmethod
    def backward(
        ctx: Any, dy: Tensor | None, *_: None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """Return the gradients of x, weight and bias."""
        if dy is None:
            return None, None, None, None
        dx, dweight, dbias = _Gradient.apply(dy, *ctx.saved_tensors, ctx.settings)
        return dx, dweight, dbias if ctx.needs_input_grad[2] else None, None


class _Gradient(torch.autograd.Function):
    """(dx, dweight, dbias) from dy, x and weight; a function of its own, so that it is
    differentiated by itself.
    """

    @staticmethod
    def forward(
        ctx: Any,
        dy: Tensor,
        x: Tensor,
        weight: Tensor | None,
        mu: Tensor,
        inv: Tensor,
        settings: Settings,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        ctx.save_for_backward(dy, x, weight, mu, inv)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        if dy.stride() != x.stride():
            dy = torch.empty_like(x).copy_(dy)
        saved = _Saved(dy, x, weight, mu, inv, torch.empty_like(mu), torch.empty_like(mu), settings)
        if x.is_contiguous() and not settings.consecutive and settings.groups == x.shape[1]:
            found = [_backward_by_torch(saved, run) for run in stretches(settings.sizes)]
            dx = found[0].view(x.shape) if len(found) == 1 else torch.cat(found).view(x.shape)
        else:
            dx = torch.empty_like(x)
            for run in stretches(settings.sizes):
                _backward_by_sums(saved, run, dx)
        return dx, None if weight is None else saved.dot.sum((0, 2)), saved.total.sum((0, 2))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        dy, x, weight, mu, inv = ctx.saved_tensors
        if all(t is None for t in cotangents):
            return (None,) * 6
        inputs = Inputs(dy, x, weight, mu, inv)
        return *second_gradient(Cotangents(*cotangents), inputs, ctx.settings), None, None, None


def _keep(
    ctx: Any,
    saved: tuple[Tensor | None, ...],
    settings: Settings,
    made: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    y, mean, var = made
    ctx.save_for_backward(*saved)
    ctx.settings = settings
    mean, var = mean[:, :, 0], var[:, :, 0]
    ctx.mark_non_differentiable(mean, var)
    ctx.set_materialize_grads(False)
    return y, mean, var


def _one_call(x: Tensor, settings: Settings) -> bool:
    few = x.dim() == 2 or x.numel() <= _SMALL * (torch.get_num_threads() - 1)
    return few and are_channels(x, settings)


def _forward_by_torch(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor, Tensor]:
    n, blocks = settings.sizes[0], len(settings.sizes)
    gamma, beta = (None if t is None else t.repeat(blocks) for t in (weight, bias))
    shape = (n, blocks * x.shape[1], -1)
    y, mean, inv = torch.empty_like(x), x.new_empty(shape[1]), x.new_empty(shape[1])
    # Written into y: a view would not let an activation in place follow.
    seen, out = x.view(shape), y.view(shape)
    _aten.native_batch_norm.out(
        seen,
        gamma,
        beta,
        None,
        None,
        True,
        0.0,
        settings.eps,
        out=out,
        save_mean=mean,
        save_invstd=inv,
    )
    return y, mean.view(blocks, -1, 1), inv.view(blocks, -1, 1)


def _parts(X: Tensor, first: int) -> list[tuple[slice, slice]]:
    blocks = X.shape[1]
    step = max(1, _CACHED * blocks // X.numel())
    return [
        (slice(k, k + step), slice(first + k, first + min(k + step, blocks)))
        for k in range(0, blocks, step)
    ]


def _spread_like(coefficient: Tensor, X: Tensor) -> Tensor:
    # A vectorized multiply-add needs operands that lie as X does; one example per block is little.
    if X.shape[3] == 1 or X.stride(3) != 1:
        return coefficient
    return coefficient.expand(-1, -1, X.shape[3]).contiguous()


def _long_rows(X: Tensor, settings: Settings) -> bool:
    _, blocks, channels, space = X.shape
    if settings.groups != channels or space == 1 or X.stride(3) == 1 or not is_whole(X):
        return False
    return X.numel() > blocks * _LONG * torch.get_num_threads()


def _rows(X: Tensor, block: int) -> Tensor:
    # [n S, C] of one block of a channels_last tensor.
    return X[:, block].transpose(1, 2).flatten(0, 1)


def _moments(
    X: Tensor, spare: Tensor, mean: Tensor, var: Tensor, mu: Tensor, inv: Tensor, settings: Settings
) -> None:
    if _long_rows(X, settings):
        found = [
            torch.batch_norm_update_stats(_rows(X, k), None, None, 0.0) for k in range(X.shape[1])
        ]
        torch.stack([m for m, _ in found], out=mean[:, :, 0])
        torch.stack([v for _, v in found], out=var[:, :, 0])
    else:
        share = 1 / (X.shape[0] * X.shape[3])
        torch.mul(sum_over(X), share, out=mean)
        if settings.groups != X.shape[2]:
            mu.copy_(over_groups(mean, settings.groups))
        _aten.mse_loss.out(X, _spread_like(mu, X), 0, out=spare)
        torch.mul(sum_over(spare), share, out=var)
    torch.add(over_groups(var, settings.groups), settings.eps, out=inv).rsqrt_()
    if settings.groups != X.shape[2]:
        # The second moment was taken around the group's mean.
        var.sub_((mean - mu).square_()).clamp_(min=0)


def _backward_by_torch(saved: _Saved, run: Stretch) -> Tensor:
    # Strided blocks of a contiguous tensor are more channels of fewer examples.
    X, dY = run.view(flat(saved.x), False), run.view(flat(saved.dy), False)
    n, blocks, channels, space = X.shape
    shape = (n, blocks * channels, space)
    at = slice(run.first, run.first + blocks)
    gamma = None if saved.weight is None else saved.weight.repeat(blocks)
    moments = saved.mu[at].flatten(), saved.inv[at].flatten()
    dx, dot, total = _aten.native_batch_norm_backward(
        dY.view(shape), X.view(shape), gamma, None, None, *moments, True, 0.0, (True, True, True)
    )
    saved.dot[at], saved.total[at] = dot.view(blocks, channels, 1), total.view(blocks, channels, 1)
    return cast(Tensor, dx.view(n * blocks, channels, space))


def _backward_by_sums(saved: _Saved, run: Stretch, dx: Tensor) -> None:
    # dx = a (dy - mean(a dy) / a - x_hat mean(a dy x_hat) / a), a = gamma inv, as a dy + b x + c.
    settings = saved.settings
    X, dY, dX = (run.view(flat(t), settings.consecutive) for t in (saved.x, saved.dy, dx))
    share = -1 / (X.shape[0] * X.shape[3])
    gamma = None if saved.weight is None else saved.weight[:, None]
    for part, at in _parts(X, run.first):
        Xp, dYp, dXp, mu, inv = X[:, part], dY[:, part], dX[:, part], saved.mu[at], saved.inv[at]
        dot, total = saved.dot[at], saved.total[at]
        _sums(Xp, dYp, dXp, mu, inv, dot, total, settings)
        a = inv if gamma is None else inv * gamma
        along = over_groups(dot if gamma is None else dot * gamma, settings.groups)
        level = over_groups(total if gamma is None else total * gamma, settings.groups)
        b = (inv * inv).mul_(along).mul_(share)
        c = (inv * level).mul_(share).addcmul_(b, mu, value=-1)
        torch.addcmul(_spread_like(c, Xp), Xp, _spread_like(b, Xp), out=dXp)
        dXp.addcmul_(dYp, _spread_like(a, Xp))


def _sums(
    X: Tensor,
    dY: Tensor,
    spare: Tensor,
    mu: Tensor,
    inv: Tensor,
    dot: Tensor,
    total: Tensor,
    settings: Settings,
) -> None:
    if _long_rows(X, settings):
        for k in range(X.shape[1]):
            moments = mu[k].flatten(), inv[k].flatten()
            _, found, sums = _aten.native_batch_norm_backward(
                _rows(dY, k),
                _rows(X, k),
                None,
                None,
                None,
                *moments,
                True,
                0.0,
                (False, True, True),
            )
            dot[k], total[k] = found[:, None], sums[:, None]
        return
    total.copy_(sum_over(dY))
    # Twice dy (x - mu) in one sweep.
    _aten.mse_loss_backward.grad_input(dY, X, _spread_like(mu, X), 0, grad_input=spare)
    torch.mul(sum_over(spare), inv, out=dot).mul_(0.5)
