"""Clip gradients in place: by their joint norm or by value, without waiting for the device."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..common.norm import Groups, grouped, joint_norm, once, reported_dtype


class Clipped(NamedTuple):
    """What one clipping did; all three are scalar tensors on the gradients' device.

    Attributes:
        before: joint L2 norm of the gradients that came in.
        after: joint L2 norm of the gradients that went out.
        coefficient: what every gradient was multiplied by; 1 where nothing was done. Clippings
            without a common factor report ``after / before`` (1 for zero and for non-finite norms).
    """

    before: Tensor
    after: Tensor
    coefficient: Tensor

    @property
    def clipped(self) -> Tensor:
        """Whether the gradients were made shorter (boolean scalar on the same device)."""
        return self.after < self.before


def global_norm(tensors: Iterable[Tensor | None]) -> Tensor:
    """Return the L2 norm of all tensors taken as one vector.

    Half-precision tensors are squared and summed in float32, so float16 gradients longer than 65504
    still have a finite norm. Devices and dtypes may be mixed; nothing waits for an accelerator.

    Args:
        tensors: dense tensors of any shape; ``None`` entries are skipped.

    Returns:
        A scalar, float32 (float64 if any tensor is), on the first accelerator found or else on the
        CPU; 0 for no tensors. Entries whose squares overflow have the norm that they have (on
        Apple's GPUs, which know no float64, it is ``inf``).

    Raises:
        ValueError: a tensor is sparse.
    """
    groups = grouped(_dense(tensors))
    return joint_norm(groups).to(reported_dtype(groups))


def clip_by_global_norm(parameters: Tensor | Iterable[Tensor], max_norm: float) -> Clipped:
    """Scale the gradients of ``parameters`` in place so that their joint L2 norm is at most
    ``max_norm``.

    ``g <- g * min(1, max_norm / ||g||)`` with one norm over all gradients (clipped gradient descent
    in Zhang et al. 2020: with learning rate eta the step is ``min(eta, max_norm * eta / ||g||) *
    g``). Nothing waits for an accelerator, unless some gradients are on the CPU and some are not.

    Gradients no longer than ``max_norm`` keep every bit, and so do gradients with an entry that is
    infinite or NaN: no factor could mend those, the norm is returned as it is, and the caller
    decides. ``max_norm=inf`` only measures. Gradients in bfloat16 or float16 are rounded after
    scaling, so their norm meets ``max_norm`` to that precision only.

    Differs from :func:`torch.nn.utils.clip_grad_norm_` in three ways. That divides by ``||g|| +
    1e-6``, which shortens gradients within 1e-6 below the threshold and all gradients too much when
    ``max_norm`` is itself near 1e-6. It multiplies by 0 when the norm is infinite and by NaN when
    it is NaN. It takes half-precision norms in half precision.

    Args:
        parameters: tensors whose ``.grad`` is clipped; those without a gradient are skipped.
        max_norm: positive threshold in the gradients' own units.

    Raises:
        ValueError: ``max_norm`` is not positive, or a gradient is sparse.
    """
    return clip_tensors_by_global_norm(_gradients(parameters), max_norm)


@torch.no_grad()
def clip_tensors_by_global_norm(tensors: Iterable[Tensor | None], max_norm: float) -> Clipped:
    """Scale ``tensors`` themselves in place to a joint L2 norm of at most ``max_norm``.

    The same as :func:`clip_by_global_norm` for gradients that are not in ``.grad``, such as those
    of :func:`torch.autograd.grad`. A separate function, so that frozen parameters can never be
    taken for gradients.
    """
    _refuse_threshold("max_norm", max_norm)
    groups = grouped(once(_dense(tensors)))
    before, wide = joint_norm(groups), reported_dtype(groups)
    if math.isinf(max_norm):
        return Clipped(before.to(wide), before.to(wide), torch.ones_like(before, dtype=wide))
    # NaN fails both comparisons.
    too_long = (before > max_norm) & (before < math.inf)
    coefficient = torch.where(too_long, max_norm / before, 1.0)
    _scale(groups, coefficient.to(wide))
    return Clipped(before.to(wide), (before * coefficient).to(wide), coefficient.to(wide))


@torch.no_grad()
def clip_by_value(parameters: Tensor | Iterable[Tensor], max_value: float) -> Clipped:
    """Clamp every gradient entry of ``parameters`` in place to ``[-max_value, max_value]``.

    This changes the gradient's direction. Infinite entries become ``max_value`` and NaN stays NaN,
    as :func:`torch.nn.utils.clip_grad_value_` has it; ``max_value=inf`` changes nothing.

    Args:
        parameters: tensors whose ``.grad`` is clamped; those without a gradient are skipped.
        max_value: positive bound on the size of one entry.

    Raises:
        ValueError: ``max_value`` is not positive, or a gradient is sparse or complex.
    """
    _refuse_threshold("max_value", max_value)
    dense = once(_dense(_gradients(parameters)))
    for tensor in dense:
        if tensor.is_complex():
            raise ValueError(
                f"a {tensor.dtype} gradient has no order to clamp by; clip by norm instead"
            )

    def clamp() -> None:
        if max_value == math.inf:
            return
        for group in grouped(dense).values():
            torch._foreach_clamp_min_(group, -max_value)
            torch._foreach_clamp_max_(group, max_value)

    return clip_tensors_with(dense, clamp)


@torch.no_grad()
def clip_tensors_with(tensors: Iterable[Tensor | None], clip: Callable[[], object]) -> Clipped:
    """Call ``clip``, which changes ``tensors`` in place as it sees fit, and report their joint norm
    before and after.

    For clippings without one common factor; takes two passes over the gradients more than ``clip``
    itself.
    """
    groups = grouped(once(_dense(tensors)))
    before = joint_norm(groups)
    clip()
    after = joint_norm(groups)
    shorter, wide = (after < before) & (before < math.inf), reported_dtype(groups)
    coefficient = torch.where(shorter, after / before, 1.0)
    return Clipped(before.to(wide), after.to(wide), coefficient.to(wide))


def _gradients(parameters: Tensor | Iterable[Tensor]) -> list[Tensor | None]:
    return [p.grad for p in ([parameters] if isinstance(parameters, Tensor) else parameters)]


def _dense(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    dense = [t for t in tensors if t is not None]
    for tensor in dense:
        if tensor.layout != torch.strided:
            raise ValueError(
                f"cannot clip a gradient with layout {tensor.layout}; "
                "make its layer return dense ones, as nn.Embedding(sparse=False) does"
            )
    return dense


def _scale(groups: Groups, coefficient: Tensor) -> None:
    for (device, dtype), group in groups.items():
        if device.type == "cpu":
            # Reading a CPU number costs nothing, and most steps need no multiplication at all.
            if coefficient.item() != 1.0:
                torch._foreach_mul_(group, coefficient.cpu())
        else:
            torch._foreach_mul_(group, coefficient.to(device, dtype.to_real()))


def _refuse_threshold(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}; use inf to clip nothing")
