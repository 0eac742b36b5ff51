"""The joint L2 norm of tensors of any devices and dtypes, without waiting for an accelerator.

Half precision is squared and summed in float32.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from .precision import promoted_dtype

# torch sums a CPU tensor's squares in float32, and a long sum loses its small terms: one tensor of
# 25 M normal numbers comes out 0.14 % short, in pieces of this many elements 1e-5. Accelerators sum
# in blocks already.
_PIECE = 2**20
_TINY = 1e-15  # a norm below this may have entries whose squares are too small for float32

Groups = dict[tuple[torch.device, torch.dtype], list[Tensor]]


def once(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return each tensor once, however often it is listed: shared parameters are."""
    return list({id(tensor): tensor for tensor in tensors}.values())


def grouped(tensors: Iterable[Tensor]) -> Groups:
    """Return the tensors by device and dtype, of which the multi-tensor kernels take one each."""
    groups: Groups = defaultdict(list)
    for tensor in tensors:
        groups[tensor.device, tensor.dtype].append(tensor)
    return groups


def reported_dtype(groups: Groups) -> torch.dtype:
    """Return float64 if a tensor has it, or else float32."""
    double = {torch.float64, torch.complex128}
    return torch.float64 if any(dtype in double for _, dtype in groups) else torch.float32


@torch.no_grad()
def joint_norm(groups: Groups) -> Tensor:
    """Return the L2 norm of all tensors as one vector, also where their squares overflow.

    A scalar on the first accelerator found or else on the CPU, 0 for no tensors, and float64 where
    float32 may be too narrow. On Apple's GPUs, which know no float64, squares do overflow.
    """
    # An accelerator squares in float64 at once: to see that float32 was too narrow takes a wait.
    accelerated = any(device.type not in ("cpu", "mps") for device, _ in groups)
    norms = _norms(groups, torch.float64 if accelerated else reported_dtype(groups), accelerated)
    total: Tensor = torch.linalg.vector_norm(norms)
    if total.device.type == "cpu" and (total.item() < _TINY or total.item() == math.inf):
        return _rescaled(groups)
    return total


@torch.no_grad()
def joint_square(groups: Groups) -> Tensor:
    """Return the sum of squares of all tensors, a scalar in `reported_dtype`."""
    return _norms(groups, reported_dtype(groups), False).square().sum()


def _norms(groups: Groups, dtype: torch.dtype, double: bool) -> Tensor:
    norms: list[Tensor] = []
    for (device, given), group in groups.items():
        parts = _pieces(group) if device.type == "cpu" else group
        wider = None if promoted_dtype(given) == given else torch.float32
        if double and not given.is_complex:
            wider = torch.float64
        norms += torch._foreach_norm(parts, 2, dtype=wider)
    if not norms:
        return torch.zeros(1)
    # A CPU number reaches an accelerator without a wait; the other way round the host would wait.
    device = next((n.device for n in norms if n.device.type != "cpu"), norms[0].device)
    return torch.stack([n.to(device, dtype) for n in norms])


def _pieces(tensors: list[Tensor]) -> list[Tensor]:
    parts: list[Tensor] = []
    for tensor in tensors:
        if tensor.numel() > _PIECE:
            # Along the slowest dimension, so that a piece is one stretch of memory.
            dim = max(range(tensor.dim()), key=tensor.stride)
            parts += torch.split(tensor, max(1, _PIECE * tensor.shape[dim] // tensor.numel()), dim)
        else:
            parts.append(tensor)
    return parts


def _rescaled(groups: Groups) -> Tensor:
    """Return the norm in float64, divided by the largest entry before anything is squared."""
    tensors = [tensor for group in groups.values() for tensor in group if tensor.numel()]
    largest = max((tensor.abs().max().item() for tensor in tensors), default=0.0)
    if largest == 0 or not math.isfinite(largest):
        return torch.tensor(largest, dtype=torch.float64)
    wide = [t.to(torch.complex128 if t.is_complex() else torch.float64) for t in tensors]
    norms = torch.stack([torch.linalg.vector_norm(tensor / largest) for tensor in wide])
    total: Tensor = torch.linalg.vector_norm(norms) * largest
    return total
