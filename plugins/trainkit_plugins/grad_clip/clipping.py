"""Clip gradients in place: by their joint norm or by value, without waiting for the device."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

# torch sums a CPU tensor's squares in float32, and a long sum loses its small terms: one tensor of
# 25 M normal numbers comes out 0.14 % short, in pieces of this many elements 1e-5. Accelerators sum
# in blocks already.
_PIECE = 2**20

# Squares of entries of a joint norm below this may be too small for float32.
_TINY = 1e-15

# The multi-tensor kernels take tensors of one device and dtype at a time.
Groups = dict[tuple[torch.device, torch.dtype], list[Tensor]]


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
    with torch.no_grad():
        groups = _groups(_dense(tensors))
        return _norm(groups).to(_wide(groups))


def clip_by_global_norm(parameters: Tensor | Iterable[Tensor], max_norm: float) -> Clipped:
    """Scale the gradients of ``parameters`` in place so that their joint L2 norm is at most
    ``max_norm``.

    ``g <- g * min(1, max_norm / ||g||)`` with one norm over all gradients (clipped gradient descent
    in Zhang et al. 2020: with learning rate eta the step is ``min(eta, max_norm * eta / ||g||) *
    g``). Nothing waits for an accelerator, unless some gradients are on the CPU and some are not.

    Gradients no longer than ``max_norm`` keep every bit, and so do gradients with an entry that is
    infinite or
    NaN: no factor could mend those, the norm is returned as it is, and the caller decides.
        ``max_norm=inf`` only
    measures. Gradients in bfloat16 or float16 are rounded after scaling, so their norm meets
    ``max_norm`` to that precision only.

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
    groups = _groups(_once(_dense(tensors)))
    before, wide = _norm(groups), _wide(groups)
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
    dense = _once(_dense(_gradients(parameters)))
    for tensor in dense:
        if tensor.is_complex():
            raise ValueError(
                f"a {tensor.dtype} gradient has no order to clamp by; clip by norm instead"
            )

    def clamp() -> None:
        for group in _groups(dense).values() if max_value < math.inf else ():
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
    groups = _groups(_once(_dense(tensors)))
    before = _norm(groups)
    clip()
    after = _norm(groups)
    shorter, wide = (after < before) & (before < math.inf), _wide(groups)
    return Clipped(
        before.to(wide), after.to(wide), torch.where(shorter, after / before, 1.0).to(wide)
    )


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


def _once(tensors: list[Tensor]) -> list[Tensor]:
    # A shared parameter may be listed twice, and its gradient must not be scaled twice.
    return list({id(t): t for t in tensors}.values())


def _groups(tensors: list[Tensor]) -> Groups:
    groups: Groups = defaultdict(list)
    for tensor in tensors:
        groups[tensor.device, tensor.dtype].append(tensor)
    return groups


def _norm(groups: Groups) -> Tensor:
    """Return the joint norm, in float64 where float32 may be too narrow for it."""
    # An accelerator squares in float64 at once: the host would have to wait to see that float32 was
    # too narrow.
    accelerated = any(device.type not in ("cpu", "mps") for device, _ in groups)
    norms: list[Tensor] = []
    for (device, dtype), group in groups.items():
        parts = _pieces(group) if device.type == "cpu" else group
        half = dtype in (torch.float16, torch.bfloat16)
        wider = (
            torch.float64
            if accelerated and not dtype.is_complex
            else torch.float32
            if half
            else None
        )
        norms += torch._foreach_norm(parts, 2, dtype=wider)
    if not norms:
        return torch.zeros(())
    # A CPU number reaches an accelerator without a wait; the other way round the host would have to
    # wait.
    device = next((n.device for n in norms if n.device.type != "cpu"), norms[0].device)
    wide = torch.float64 if accelerated else _wide(groups)
    total: Tensor = torch.linalg.vector_norm(torch.stack([n.to(device, wide) for n in norms]))
    if device.type == "cpu" and (
        total.item() < _TINY or total.item() == math.inf
    ):  # squares vanish or overflow
        return _rescaled(groups)
    return total


def _rescaled(groups: Groups) -> Tensor:
    """Return the joint norm of tensors on a CPU, in float64, divided by the largest entry before
    they are squared.
    """
    largest = max(
        (t.abs().max().item() for group in groups.values() for t in group if t.numel()), default=0.0
    )
    if largest == 0 or not math.isfinite(largest):
        return torch.tensor(largest, dtype=torch.float64)
    norms = []
    for tensor in (t for group in groups.values() for t in group):
        wide = tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
        norms.append(torch.linalg.vector_norm(wide / largest))
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms)) * largest
    return total


def _wide(groups: Groups) -> torch.dtype:
    """Return the dtype in which norms are reported."""
    return (
        torch.float64
        if any(dtype in (torch.float64, torch.complex128) for _, dtype in groups)
        else torch.float32
    )


def _pieces(tensors: list[Tensor]) -> list[Tensor]:
    parts: list[Tensor] = []
    for tensor in tensors:
        if tensor.numel() > _PIECE and tensor.dim() > 0:
            parts += torch.split(tensor, max(1, _PIECE * tensor.shape[0] // tensor.numel()))
        else:
            parts.append(tensor)
    return parts


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
