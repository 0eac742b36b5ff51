"""Random streams: every use of randomness has a seed of its own, derived from the recipe's.

Nothing in trainkit draws from a stream that something else also draws from. So switching a plugin
on, evaluating more often or using more data workers never changes what another part of the run
sees.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import torch


def derive_seed(*parts: int | str) -> int:
    """Return a seed in [0, 2^63) that is a fixed function of `parts` (the recipe seed, then a
    purpose).
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators (torch's on every device)."""
    import torch

    _seed_host(seed)
    torch.manual_seed(seed)


def _seed_host(seed: int) -> None:
    import numpy as np

    random.seed(seed)
    np.random.seed(seed % 2**32)


def rng_state(device: torch.device) -> dict[str, Any]:
    """Return the state of every global generator this process uses, as plain containers and
    tensors.
    """
    import numpy as np
    import torch

    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    state: dict[str, Any] = {
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
        "numpy": [
            torch.from_numpy(keys.astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["device"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["device"] = torch.mps.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Put back what `rng_state` returned."""
    import numpy as np
    import torch

    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["device"], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(state["device"])


@contextmanager
def isolated(seed: int, device: torch.device) -> Iterator[None]:
    """Run a block on streams seeded with `seed`; the streams outside go on as if it had not run.

    For the CPU only those of the CPU are seeded: an image that is augmented must not begin the
    stream of dropout on the GPU anew.
    """
    import torch

    before = rng_state(device)
    if device.type == "cpu":
        _seed_host(seed)
        torch.default_generator.manual_seed(seed)
    else:
        seed_everything(seed)
    try:
        yield
    finally:
        set_rng_state(before, device)
