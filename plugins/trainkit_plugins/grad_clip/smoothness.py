"""Local smoothness along a step: how fast the gradient turns per unit of distance walked."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..common.precision import promoted
from .clipping import global_norm

Gradient = Callable[[], Sequence[Tensor]]


class Smoothness(NamedTuple):
    """One measurement; three scalar tensors on the parameters' device.

    Attributes:
        smoothness: largest ``||grad(x + gamma d) - grad(x)|| / ||gamma d||`` over the grid, in
            units of loss / parameter^2. Infinite or NaN where a gradient was.
        gradient_norm: ``||grad(x)||`` at the start of the step, in loss / parameter.
        step_norm: ``||d||``, in units of the parameters.
    """

    smoothness: Tensor
    gradient_norm: Tensor
    step_norm: Tensor


def local_smoothness(
    gradient: Gradient,
    params: Sequence[Tensor],
    start: Sequence[Tensor],
    *,
    grid: Sequence[float] = (0.5,),
    min_step: float = 1e-8,
) -> Smoothness | None:
    """Estimate the smoothness of a loss on the segment that an optimizer step has just walked.

    With x the parameters before the step (``start``), d the step (``params - start``) and gamma
    from ``grid``: ``max over gamma of ||grad(x + gamma d) - grad(x)|| / ||gamma d||`` (Zhang et al.
    2020, the quantity of their figures 1 to 3; the default grid is the one interior point of their
    released code). Costs one call of ``gradient`` and one more per grid point. The length of each
    displacement is that of the parameters as actually rounded, so low-precision parameters do not
    bias the quotient.

    The parameters are moved while measuring and get their bits back, also when ``gradient`` raises.

    Args:
        gradient: returns the gradient at the current values of ``params`` as new dense tensors, the
            same function of the parameters at every call (same data, same dropout masks);
            :func:`gradient_of` makes one.
        params: the tensors that the step moved, standing at its end.
        start: their values before the step, same shapes, dtypes and devices; :func:`snapshot` makes
            them.
        grid: fractions of the step, each in (0, 1]; :func:`interior_grid` spaces them evenly.
        min_step: steps no longer than this are not measured, because rounding would drown the
            quotient.

    Returns:
        The measurement, or None if the step was too short, or lost to rounding at every grid point.
        Deciding that waits for the device.

    Raises:
        ValueError: ``grid`` is empty or leaves (0, 1], or ``start`` does not fit ``params``.
    """
    _check(params, start, grid)
    x = [s.detach() for s in start]
    end = snapshot(params)
    step_norm = _distance(end, x)
    # Written so that a NaN step fails it too.
    if not step_norm > min_step:
        return None
    quotients: list[Tensor] = []
    try:
        _move(params, x)
        at_start = gradient()
        for gamma in grid:
            point = torch._foreach_lerp(x, end, gamma)
            displacement = _distance(point, x)
            if displacement > 0:
                _move(params, point)
                quotients.append(_distance(gradient(), at_start) / displacement)
    finally:
        _move(params, end)
    if not quotients:
        return None
    return Smoothness(torch.stack(quotients).max(), global_norm(at_start), step_norm)


def gradient_of(
    losses: Callable[[], Tensor] | Sequence[Callable[[], Tensor]],
    params: Sequence[Tensor],
    *,
    weights: Sequence[float] | None = None,
    scale: float = 1.0,
    held: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Gradient:
    """Make a function that returns the gradient of a loss, or of a sum of losses, at the current
    parameters.

    Uses :func:`torch.autograd.grad`: ``.grad`` is neither read nor written. Several losses (chunks
    of a batch, the micro-batches of an accumulation window) are evaluated one after another, in the
    memory of one.

    Args:
        losses: one or several functions without arguments that return a scalar loss.
        params: tensors that require grad; those that a loss does not reach count as zero.
        weights: what each loss counts in the sum; by default all the same, 1 together.
        scale: multiplies the losses before the backward pass, and the gradient is divided by it
            afterwards: what a gradient scaler uses, so that small gradients survive float16.
        held: makes a context manager that each evaluation runs in. ``partial(preserve, model)``
            gives every evaluation the same buffers and dropout masks.

    Raises:
        ValueError: no losses, not one weight for each, a parameter that does not require grad; when
            called, a loss that is not a scalar.
    """
    chunks = [losses] if callable(losses) else list(losses)
    shares = [1 / len(chunks)] * len(chunks) if weights is None and chunks else list(weights or ())
    if not chunks or len(shares) != len(chunks):
        raise ValueError(
            f"need at least one loss, and one weight for each; got {len(chunks)} and {weights}"
        )
    frozen = [i for i, p in enumerate(params) if not p.requires_grad]
    if frozen:
        raise ValueError(
            f"parameters {frozen} do not require grad; pass only those that the optimizer moves"
        )

    def gradient() -> Sequence[Tensor]:
        total: list[Tensor] = []
        with held(), torch.enable_grad():
            for loss, share in zip(chunks, shares, strict=True):
                part = _gradient(loss(), params, share, scale)
                # Not in place: autograd may hand out one tensor twice, or an expanded one.
                total = list(torch._foreach_add(total, part)) if total else part
        return total if scale == 1 else torch._foreach_div(total, scale)

    return gradient


def across_ranks(gradient: Gradient) -> Gradient:
    """Return the mean of ``gradient`` over all ranks of torch.distributed; every rank must call
    it.
    """

    def mean() -> Sequence[Tensor]:
        parts = [g.clone(memory_format=torch.contiguous_format) for g in gradient()]
        for part in parts:
            dist.all_reduce(part)
        torch._foreach_div_(parts, float(dist.get_world_size()))
        return parts

    return mean


def snapshot(params: Iterable[Tensor]) -> list[Tensor]:
    """Return detached copies of ``params``, each on its own device."""
    return [p.detach().clone() for p in params]


def interior_grid(points: int) -> tuple[float, ...]:
    """Return ``points`` fractions that cut a step into equal parts: 1 gives (1/2,), 3 gives (1/4,
    1/2, 3/4).

    Raises:
        ValueError: ``points`` is less than 1.
    """
    if points < 1:
        raise ValueError(f"points must be at least 1, got {points}")
    return tuple(i / (points + 1) for i in range(1, points + 1))


def _gradient(loss: Tensor, params: Sequence[Tensor], share: float, scale: float) -> list[Tensor]:
    if loss.numel() != 1:
        raise ValueError(
            f"the loss must be a scalar, got shape {tuple(loss.shape)}; take its mean or sum"
        )
    # Before the backward pass, as in training: in low precision, scaling the gradient afterwards
    # rounds differently.
    for factor in (share, scale):
        loss = loss if factor == 1 else loss * factor
    return list(torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True))


def _check(params: Sequence[Tensor], start: Sequence[Tensor], grid: Sequence[float]) -> None:
    if not grid or not all(0 < gamma <= 1 for gamma in grid):
        raise ValueError(f"grid must hold fractions of the step in (0, 1], got {tuple(grid)}")
    if len(params) != len(start):
        raise ValueError(
            f"start must hold one tensor per parameter, got {len(start)} for {len(params)}"
        )
    for i, (p, s) in enumerate(zip(params, start, strict=True)):
        if (p.shape, p.dtype, p.device) != (s.shape, s.dtype, s.device):
            raise ValueError(
                f"start[{i}] is {tuple(s.shape)} {s.dtype} on {s.device}, its parameter "
                f"{tuple(p.shape)} {p.dtype} on {p.device}; take it with snapshot() before the "
                "step"
            )


def _distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    # The difference of two close half-precision numbers is exact in float32.
    wide_a, wide_b = [promoted(t) for t in a], [promoted(t) for t in b]
    with torch.no_grad():
        return global_norm(torch._foreach_sub(wide_a, wide_b))


def _move(params: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        torch._foreach_copy_(list(params), list(values))
    # Under an outer autocast the half-precision copies of the old parameters would answer for the
    # new ones.
    torch.clear_autocast_cache()
