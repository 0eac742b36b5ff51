"""Sparsity normalization as functions of an input and its mask.

Letters: x is a batch of inputs [N, F] or [N, C, H, W]; m its mask, true where an entry is observed;
||m||_1 the number of observed entries of a row (of one input); K a constant, usually the mean of
||m||_1 over the training rows.

    x_SN = K * (x * m) / ||m||_1

Yi, Lee, Kim, Hwang and Yang, "Why not to use zero imputation? Correcting sparsity bias in training
neural networks", ICLR 2020 (arXiv 1906.00150).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def observed(x: Tensor, m: Tensor | None = None, *, whole_pixels: bool = False) -> Tensor:
    """Return which entries of `x` are observed, a boolean for each.

    A zero is a value like any other: what is missing is said by NaN or by `m`, never by 0.

    Args:
        x: inputs [N, F] or [N, C, H, W].
        m: mask of a shape that expands to that of `x`, such as [N, 1, H, W]; not 0 is observed.
            Without one, what is NaN is missing.
        whole_pixels: of images, a pixel with a missing channel is missing in all of them.

    Raises:
        ValueError: the mask has another shape, or there are no pixels.
    """
    if m is None:
        m = ~x.isnan()
    else:
        try:
            m = m.bool().expand(x.shape)
        except RuntimeError:
            raise ValueError(
                f"a mask {tuple(m.shape)} does not fit inputs {tuple(x.shape)}"
            ) from None
    if not whole_pixels:
        return m
    if x.ndim < 3:
        raise ValueError(
            f"inputs {tuple(x.shape)} have no pixels; masks by pixel are for images [N, C, H, W]"
        )
    return m.all(dim=1, keepdim=True).expand(x.shape)


def without_gaps(x: Tensor) -> Tensor:
    """Return `x` with 0 for NaN: `torch.where` on a mask in no order is many times slower on a
    CPU.
    """
    return torch.nan_to_num(x, nan=0.0, posinf=math.inf, neginf=-math.inf)


def factor(
    m: Tensor, k: Tensor | float, dtype: torch.dtype, *, per_channel: bool = False
) -> Tensor:
    """Return K / ||m||_1 of each row [N, 1, …] or channel [N, C, 1, …], K where nothing is
    observed.

    Args:
        m: which entries are observed, a boolean for each.
        k: K, as in `normalize`.
        dtype: of the inputs and of the result.
        per_channel: as in `normalize`.
    """
    dims = tuple(range(2 if per_channel else 1, m.ndim))
    # Half precision counts only to 2048 exactly.
    wide = torch.promote_types(dtype, torch.float32)
    count = m.sum(dims, keepdim=True, dtype=torch.int32).clamp(min=1).to(wide)
    return (torch.as_tensor(k, dtype=wide, device=m.device) / count).to(dtype)


def normalize(x: Tensor, m: Tensor, k: Tensor | float, *, per_channel: bool = False) -> Tensor:
    """Return K * (x * m) / ||m||_1, zeros where nothing of a row is observed.

    Entries that are not observed may hold anything, NaN included; no gradient flows into them.

    Args:
        x: inputs [N, F] or [N, C, H, W].
        m: which entries are observed, a boolean for each.
        k: K, a number; [C, 1, 1] or a number with `per_channel`.
        per_channel: ||m||_1 counts each channel of an image by itself instead of the row as a
            whole.
    """
    return torch.where(m, x, 0) * factor(m, k, x.dtype, per_channel=per_channel)
