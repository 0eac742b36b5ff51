"""The seed of a task, from what it learns from."""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import Tensor


def seed_of(moment: tuple[object, ...], inputs: Tensor) -> int:
    """Return a seed below 2**63 that is a function of `moment` and of the bits of `inputs` [N, …]
    alone.

    It waits for the device that holds them.
    """
    content = inputs.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    digest = blake2b(repr(moment).encode() + content, digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # torch takes seeds of 63 bits
