"""Pull the norm of the parameters to a value of one's choice instead of to zero (Goldblum et al.
2020, section 3).

The letters: phi are the parameters that count, N = sum of phi_i^2 over all of them together, mu^2
the target of N, c the coefficient. The penalty that is minimised is

    absolute:  (c / 2) |N - mu^2|                    gradient  c sign(N - mu^2) phi
    squared:   (c / 4) (N - mu^2)^2 / mu^2           gradient  c (N / mu^2 - 1) phi

With the factor 1/2, c is the coefficient of torch's weight decay: mu^2 = 0 is weight decay. It is
also the coefficient of the authors' code, which adds ``c sign(N - mu^2) phi`` to the gradient;
their equation (2), taken by the letter, would give twice that, so lambda there is c / 2.

The squared form is divided by mu^2 because without it the factor before phi grows with the norm
itself: at N = 0, mu^2 = 2500 and lambda = 5e-3 the authors' (uncalled) code multiplies by -25 and
training explodes. Divided, the factor is -c at N = 0 and c at N = 2 mu^2 for every mu^2, and steps
of plain gradient descent contract toward the target if lr c < 1. Their lambda is c / (2 mu^2) here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..common.norm import grouped, joint_square, once
from ..common.precision import promoted

Form = Literal["absolute", "squared"]


class Push(NamedTuple):
    """What one push saw and did; scalar tensors on the parameters' device.

    Attributes:
        squared_norm: N before the step, in units of parameter^2.
        factor: what the parameters were multiplied by before they joined the gradient.
    """

    squared_norm: Tensor
    factor: Tensor


def norm_bias(
    parameters: Iterable[Tensor], mu_squared: float, *, coefficient: float, form: Form = "absolute"
) -> Tensor:
    """Return the penalty, differentiable, to be added to a loss.

    Equation (2) of Goldblum et al. 2020 with the factor 1/2 of this module. :func:`push_to_norm`
    does the same to gradients that exist already, in a fraction of the time.

    Args:
        parameters: tensors of any shape; all count in one sum.
        mu_squared: target of the sum of squares; 0 is weight decay (form absolute only).
        coefficient: c, in units of loss / parameter^2.
        form: see the module.

    Returns:
        A scalar. At N = mu^2 its gradient is 0.

    Raises:
        ValueError: ``mu_squared`` or ``coefficient`` is negative or not finite, or the form is
            squared and ``mu_squared`` is 0.
    """
    check_target(mu_squared, coefficient, form)
    squares = [promoted(p).square().sum() for p in parameters]
    n = torch.stack(squares).sum() if squares else torch.zeros(())
    if form == "absolute":
        return coefficient / 2 * (n - mu_squared).abs()
    return coefficient / 4 * (n - mu_squared).square() / mu_squared


@torch.no_grad()
def push_to_norm(
    pushed: Iterable[Tensor],
    mu_squared: float,
    *,
    coefficient: float,
    form: Form = "absolute",
    counted: Iterable[Tensor] | None = None,
) -> Push:
    """Add the gradient of the penalty to the gradients of ``pushed``, in place, without waiting for
    a device.

    Call it after the backward pass (once per step, on unscaled gradients) and before clipping and
    the optimizer: the push is part of the gradient, and momentum sees it. N is taken once, before
    anything moves. With ``mu_squared`` 0 the gradients are those of torch's SGD with
    ``weight_decay=coefficient``, bit for bit.

    Args:
        pushed: parameters whose ``.grad`` is changed; those without a gradient are left alone.
        mu_squared: target of N.
        coefficient: c; 0 changes nothing and only measures.
        form: see the module.
        counted: parameters whose squares make up N, with a gradient or not; default: ``pushed``.

    Raises:
        ValueError: as :func:`norm_bias`; or a gradient is sparse.
    """
    check_target(mu_squared, coefficient, form)
    moved = once(pushed)
    n = squared_norm(moved if counted is None else counted)
    factor = _factor(n, mu_squared, coefficient, form)
    if coefficient > 0:
        for (device, _), (params, grads) in _with_gradients(moved).items():
            _add(grads, params, coefficient if mu_squared == 0 else factor, device)
    return Push(n, factor)


def squared_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Return the sum of squares of all tensors together, without waiting for a device.

    Half precision is squared and summed in float32. A tensor listed twice counts once.

    Returns:
        A scalar, float32 (float64 if any tensor is), on the first accelerator found or else on the
        CPU; 0 for no tensors.
    """
    return joint_square(grouped(once(tensors)))


def check_target(mu_squared: float, coefficient: float, form: Form) -> None:
    """Refuse what has no meaning.

    Raises:
        ValueError: as :func:`norm_bias` has it.
    """
    for name, value in (("mu_squared", mu_squared), ("coefficient", coefficient)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be at least 0 and finite, got {value}")
    if form == "squared" and mu_squared == 0:
        raise ValueError(
            "the squared form is relative to mu_squared and has no meaning at 0; use form absolute "
            "there"
        )


def _factor(n: Tensor, mu_squared: float, coefficient: float, form: Form) -> Tensor:
    if form == "absolute":
        return coefficient * torch.sign(n - mu_squared)
    return coefficient * (n / mu_squared - 1)


def _add(
    grads: list[Tensor], params: list[Tensor], factor: Tensor | float, device: torch.device
) -> None:
    if isinstance(factor, float | int):
        torch._foreach_add_(grads, params, alpha=factor)
    elif device.type == "cpu":
        # Reading a CPU number costs nothing, and adding a multiple by one takes one pass and no
        # memory.
        if (alpha := factor.item()) != 0:
            torch._foreach_add_(grads, params, alpha=alpha)
    else:
        # Two fused passes, as torch's own foreach optimizers decay weights: the factor stays on the
        # device.
        torch._foreach_add_(
            grads, torch._foreach_mul(params, factor.to(device, params[0].dtype.to_real()))
        )


def _with_gradients(
    params: list[Tensor],
) -> dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]]:
    groups: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
    for p in params:
        if p.grad is None:
            continue
        if p.grad.layout != torch.strided:
            raise ValueError(
                f"cannot push a gradient with layout {p.grad.layout}; make its layer return dense "
                "ones, as nn.Embedding(sparse=False) does"
            )
        held, grads = groups.setdefault((p.device, p.dtype), ([], []))
        held.append(p)
        grads.append(p.grad)
    return groups
