"""Half precision, computed with in float32."""

import torch
from torch import Tensor


def promoted_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float32 for narrower floating types, every other type as it is."""
    narrow = dtype.is_floating_point and dtype.itemsize < torch.float32.itemsize
    return torch.float32 if narrow else dtype


def promoted(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in float32 if it is narrower, or else itself."""
    return tensor.to(promoted_dtype(tensor.dtype))
