"""The order in which an epoch has its examples: a function of (seed, epoch) alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainkit.seeds import derive_seed

Key = tuple[int, int]
"""Version and index: what one example, augmented, is a function of. The version is the epoch; where
an epoch has several copies of an example, it counts those of all epochs.
"""

_ROUND = 256  # timm's `selected_round`


class EpochOrder:
    """A permutation of all examples; with repeats each comes so many times in a row.

    Repeated augmentation (Hoffer et al., Augment Your Batch, CVPR 2020) as in timm's
    `RepeatAugSampler`: an epoch is as long as one without repeats, up to a multiple of 256 where
    there are so many examples, and so has a part of the images only.

    Args:
        count: how many examples there are.
        seed: of the order.
        repeats: copies of an example, at least 1; 2.5 are 3 and 2 in turn.
    """

    def __init__(self, count: int, seed: int, repeats: float = 1.0) -> None:
        self._count, self._seed, self.repeats = count, seed, repeats
        self.length = count
        if repeats > 1 and count >= _ROUND:
            self.length = count // _ROUND * _ROUND
        self._held: tuple[int, Tensor] | None = None

    def indices(self, epoch: int) -> Tensor:
        """Return the index of each example of an epoch [length]."""
        if self._held is None or self._held[0] != epoch:
            generator = torch.Generator().manual_seed(derive_seed(self._seed, "order", epoch))
            drawn = torch.randperm(self._count, generator=generator)
            self._held = epoch, drawn if self.repeats == 1 else drawn[self._images()]
        return self._held[1]

    def keys(self, epoch: int) -> list[Key]:
        """Return the key of each example of an epoch."""
        indices = self.indices(epoch).tolist()
        if self.repeats == 1:
            return [(epoch, index) for index in indices]
        images = self._images()
        copies = torch.arange(self.length) - torch.searchsorted(images, images)
        versions = copies + epoch * math.ceil(self.repeats)
        return list(zip(versions.tolist(), indices, strict=True))

    def _images(self) -> Tensor:
        """Return which place in the permutation each example of an epoch comes from."""
        places = torch.arange(self.length, dtype=torch.float64)
        return torch.div(places, self.repeats, rounding_mode="floor").long()
