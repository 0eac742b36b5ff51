"""The gradient of the training pass's gradient, derived by hand: two sums and two multiply-adds
more than the first.

In the letters of the other files, with v = (x - mu) inv, q = gamma dy, and means <.> over the m
values of a statistic:

    dx = inv (q - <q> - v <q v>),  dgamma = sum dy v,  dbeta = sum dy.

For cotangents h of dx, e of dgamma and f of dbeta, and t = <h q> - <h> <q> - <h v> <q v>:

    of dy     gamma inv (h - <h> - v <h v>) + e v + f
    of gamma  sum over blocks of inv (sum h dy - <h> sum dy - <h v> sum dy v)
    of x      inv (u - <u> - v <u v>) - inv^2 v t

where u = (e - inv gamma <h v>) dy - inv <q v> h is that of v.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .blocks import Settings, flat, over_groups, stretches, sum_over


class Cotangents(NamedTuple):
    """Of dx [N, C, ...], dgamma [C] and dbeta [C]; None for zero."""

    dx: Tensor | None
    dweight: Tensor | None
    dbias: Tensor | None


class Inputs(NamedTuple):
    """What the first gradient was made from: dy and x [N, C, ...], gamma [C] or None, mu and inv
    [B, C, 1].
    """

    dy: Tensor
    x: Tensor
    weight: Tensor | None
    mu: Tensor
    inv: Tensor


def second_gradient(
    given: Cotangents, inputs: Inputs, settings: Settings
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the cotangents of dy, x and gamma (None where there is none).

    While gradients are recorded, mu and inv are formed anew from x: then what is returned can be
    differentiated again, as often as one likes.
    """
    dy, x, weight, mu, inv = inputs
    h = torch.zeros_like(x) if given.dx is None else given.dx
    for_dy: list[Tensor] = []
    for_x: list[Tensor] = []
    for_weight: list[Tensor] = []
    for run in stretches(settings.sizes):
        X, dY, H = (run.view(flat(t), settings.consecutive) for t in (x, dy, h))
        at = slice(run.first, run.first + run.blocks)
        moments = _moments(X, settings) if torch.is_grad_enabled() else (mu[at], inv[at])
        found = _stretch(X, dY, H, *moments, weight, given, settings)
        for part, parts in zip(found[:2], (for_dy, for_x), strict=True):
            parts.append((part.transpose(0, 1) if settings.consecutive else part).flatten(0, 1))
        for_weight.append(found[2])
    whole_dy, whole_x = (torch.cat(t) if len(t) > 1 else t[0] for t in (for_dy, for_x))
    dweight = None if weight is None else torch.cat(for_weight).sum((0, 2))
    return whole_dy.reshape(x.shape), whole_x.reshape(x.shape), dweight


def _moments(X: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    share = 1 / (X.shape[0] * X.shape[3])
    mu = over_groups(sum_over(X) * share, settings.groups)
    var = over_groups(sum_over((X - mu).square()) * share, settings.groups)
    return mu, torch.rsqrt(var + settings.eps)


def _stretch(
    X: Tensor,
    dY: Tensor,
    H: Tensor,
    mu: Tensor,
    inv: Tensor,
    weight: Tensor | None,
    given: Cotangents,
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the cotangents of dy and x as X lies, and what each block adds to that of gamma [B,
    C, 1].
    """
    gamma: Tensor | float = 1.0 if weight is None else weight[:, None]
    e: Tensor | float = 0.0 if given.dweight is None else given.dweight[:, None]
    f: Tensor | float = 0.0 if given.dbias is None else given.dbias[:, None]
    share = 1 / (X.shape[0] * X.shape[3])

    def mean(sums: Tensor) -> Tensor:
        return over_groups(sums * share, settings.groups)

    V = (X - mu) * inv
    h_dy = sum_over(H * dY)
    dy, dy_v = sum_over(dY), sum_over(dY * V)
    h, h_v = mean(sum_over(H)), mean(sum_over(H * V))
    q, q_v = mean(gamma * dy), mean(gamma * dy_v)
    t = mean(gamma * h_dy) - h * q - h_v * q_v
    along = e - inv * gamma * h_v
    u = mean(e * dy) - inv * (h_v * q + q_v * h)
    u_v = mean(e * dy_v) - 2 * inv * h_v * q_v
    of_dy = torch.addcmul(f - gamma * inv * h, V, along).addcmul(H, gamma * inv)
    of_x = torch.addcmul(-inv * u, V, -inv * u_v - inv.square() * t)
    of_x = of_x.addcmul(dY, inv * along).addcmul(H, -inv.square() * q_v)
    return of_dy, of_x, inv * (h_dy - h * dy - h_v * dy_v)
