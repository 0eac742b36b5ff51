"""Reading data in an order, and with augmentation, that are pure functions of the seed.

The order of an epoch depends on (seed, epoch) alone, and an image's random transform on (seed,
epoch, index), and where an epoch has several copies of it on which it is: not on the number of
worker processes, nor on where in the epoch a run was resumed, nor on what else draws random
numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from trainkit.data.order import EpochOrder, Key
from trainkit.data.types import Window
from trainkit.data.workers import Carrier, end, handed_over, read
from trainkit.hooks.run import Batch
from trainkit.seeds import derive_seed, isolated
from trainkit.system.signals import obey_parent_only


class Examples(Protocol):
    """A source of single examples: an image (PIL or array) and its class."""

    def __len__(self) -> int:
        """Return the number of examples."""

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return one example."""


class Keyed(Protocol):
    """A set of examples that is read in whole batches."""

    def __len__(self) -> int:
        """Return the number of examples."""

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """Return the batch of the examples with these keys; torch's loader asks for whole
        batches by this name.
        """


class Rows(Dataset[Batch]):
    """Examples that lie in memory as they are.

    Args:
        inputs: [N, ...].
        targets: [N] classes, or [N, K] numbers.
    """

    def __init__(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """Return the batch of the examples with these keys, whatever their epoch."""
        index = torch.tensor([index for _, index in keys])
        return Batch(self.inputs[index], self.targets[index])


class Images(Dataset[Batch]):
    """Examples turned into batches of tensors.

    Args:
        examples: where they come from.
        transform: from an image to a tensor [C, H, W].
        seed: seed of the random transforms; None says that the transform draws nothing.
        cache: keep all transformed images in memory (only where nothing is random).
        splits: how many tensors [splits, C, H, W] the transform makes of an image, where they are
            more than one. A batch has the first of all its images, then the second of all …
    """

    def __init__(
        self, examples: Examples, transform: Any, seed: int | None, cache: bool, splits: int = 1
    ) -> None:
        self.examples = examples
        self.splits = splits
        self.transform = transform
        self.seed = seed
        batch = (
            self._read([(0, i) for i in range(len(examples))]) if cache and seed is None else None
        )
        self.in_memory = None if batch is None else Rows(*batch)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """Return the batch of the examples with these keys; torch's loader asks for whole
        batches by this name.
        """
        return self._read(keys) if self.in_memory is None else self.in_memory.__getitems__(keys)

    def _read(self, keys: Sequence[Key]) -> Batch:
        images, targets = [], []
        for version, index in keys:
            seed = None if self.seed is None else derive_seed(self.seed, version, index)
            with nullcontext() if seed is None else isolated(seed, torch.device("cpu")):
                image, target = self.examples[index]
                images.append(self.transform(image))
            targets.append(int(target))
        inputs = torch.stack(images)
        if self.splits > 1:
            inputs, targets = inputs.transpose(0, 1).flatten(0, 1), targets * self.splits
        return Batch(inputs, torch.tensor(targets))


class _Keys(Sampler[list[Key]]):
    """The batches that the loader asks for next; set before each pass."""

    def __init__(self) -> None:
        self.batches: Sequence[list[Key]] = ()

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _loader(examples: Keyed, keys: _Keys, workers: int, pin: bool) -> DataLoader[Batch]:
    return DataLoader(
        Carrier(examples),
        batch_sampler=keys,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=handed_over,
        worker_init_fn=obey_parent_only,
        pin_memory=pin,
        # Without a generator of its own the loader would draw from torch's global stream at every
        # pass.
        generator=torch.Generator().manual_seed(0),
    )


def _unheard(text: str) -> None:
    """Take what a stream says until a run listens."""


class ShuffledStream:
    """Training data, shuffled anew each epoch and dealt to ranks and micro-batches.

    An epoch is cut into windows of `batch_size * accumulate * world` examples, a window into chunks
    of `batch_size * world`, a chunk evenly among the ranks: a run of it for each, or with repeats
    every so many-th example, so that copies are on different ranks. The last chunk may be short.
    One too short to give every rank two examples is left out (batch normalisation cannot train on
    one), as is any short one with `drop_last`.

    Args:
        images: the examples.
        seed: of the order.
        batch_size: examples per micro-batch and rank.
        accumulate: micro-batches per window.
        rank: which share of each chunk is read here.
        world: how many shares there are.
        drop_last: leave out a short last chunk.
        repeats: copies of each example, augmented differently, that follow one another.
        workers: processes that read.
        pin: put batches into pinned memory for a CUDA device.

    Attributes:
        note: is told what the user should know of how batches come.
    """

    def __init__(
        self,
        images: Keyed,
        *,
        seed: int,
        batch_size: int,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
        repeats: float = 1.0,
        workers: int = 0,
        pin: bool = False,
    ) -> None:
        self._order = EpochOrder(len(images), seed, repeats)
        self._rank, self._world = rank, world
        self._chunk = batch_size * world
        self.examples_per_step = self._chunk * accumulate
        full, short = divmod(self._order.length, self._chunk)
        self._used = full * self._chunk + (0 if drop_last or short < 2 * world else short)
        if self._used == 0:
            raise ValueError(
                f"{len(images)} training examples do not fill one batch of {batch_size} on each of "
                f"{world} rank(s)"
            )
        self.steps_per_epoch = -(-self._used // self.examples_per_step)
        self._keys = _Keys()
        self._loader = _loader(images, self._keys, workers, pin)
        self.note: Callable[[str], None] = _unheard

    def _shares(self, position: int) -> list[tuple[slice, int]]:
        """Return each micro-batch of a window as this rank's slice of the epoch's order, and its
        size.
        """
        start = position * self.examples_per_step
        end = min(start + self.examples_per_step, self._used)
        shares = []
        for chunk in range(start, end, self._chunk):
            size = min(self._chunk, end - chunk)
            if self._order.repeats > 1:
                taken = range(chunk + self._rank, chunk + size, self._world)
            else:
                first = chunk + self._rank * size // self._world
                taken = range(first, chunk + (self._rank + 1) * size // self._world)
            shares.append((slice(taken.start, taken.stop, taken.step), len(taken)))
        return shares

    def window(self, epoch: int, position: int) -> Window:
        """Return the shape of the window at `position`."""
        start = position * self.examples_per_step
        examples = min(self.examples_per_step, self._used - start)
        return Window(
            tuple(size * self._world / examples for _, size in self._shares(position)), examples
        )

    def batches(self, epoch: int, position: int) -> Iterator[Batch]:
        """Yield this rank's micro-batches from the window at `position` on."""
        keys = self._order.keys(epoch)
        self._keys.batches = [
            keys[share]
            for at in range(position, self.steps_per_epoch)
            for share, _ in self._shares(at)
        ]
        return read(self._loader, self.note)

    def close(self) -> None:
        """End the processes that read."""
        end(self._loader)

    def describe(self, epoch: int, position: int) -> str:
        """Name the examples of a window by their index in the training split."""
        order = self._order.indices(epoch)
        shown = [int(i) for share, _ in self._shares(position) for i in order[share]]
        shown = list(dict.fromkeys(shown))  # each once, however many copies there are
        return f"training examples {', '.join(map(str, shown[:8]))}{' …' if len(shown) > 8 else ''}"


class OrderedStream:
    """Validation data in its own order; rank r of w reads examples r, r + w, r + 2w …: each exactly
    once.

    Args:
        images: the examples.
        batch_size: examples per batch.
        rank: which share is read here.
        world: how many shares there are.
        workers: processes that read.
        pin: put batches into pinned memory for a CUDA device.

    Attributes:
        note: is told what the user should know of how batches come.
    """

    def __init__(
        self,
        images: Keyed,
        *,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        pin: bool = False,
    ) -> None:
        if len(images) < world:
            raise ValueError(
                f"{len(images)} validation example(s) cannot be shared among {world} ranks"
            )
        mine = [(0, index) for index in range(rank, len(images), world)]
        keys = _Keys()
        keys.batches = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
        self._loader = _loader(images, keys, workers, pin)
        self.note: Callable[[str], None] = _unheard

    def __iter__(self) -> Iterator[Batch]:
        return read(self._loader, self.note)

    def __len__(self) -> int:
        return len(self._loader)

    def close(self) -> None:
        """End the processes that read."""
        end(self._loader)
