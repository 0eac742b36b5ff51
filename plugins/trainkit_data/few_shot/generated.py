"""Data that are drawn, not read: tasks, say, each a pure function of its number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from trainkit.data.types import Window

T = TypeVar("T")


class GeneratedStream(Generic[T]):
    """Training data of which item `number` of epoch `epoch` is `draw(epoch, number)`; a micro-batch
    is a list of them.

    Step p of an epoch has the items p * items_per_step to (p + 1) * items_per_step - 1, cut into
    `accumulate` micro-batches, each dealt to the ranks as evenly as it goes. So any number of ranks
    and micro-batches sees the same items at a step, and a run that goes on in the middle of an
    epoch sees those that it would have seen.

    Args:
        draw: makes an item; must depend on its two arguments alone.
        steps_per_epoch: optimizer steps in an epoch, which has no other meaning here.
        items_per_step: items of an optimizer step, on all ranks together.
        accumulate: micro-batches of a step.
        rank: which share of each micro-batch is drawn here.
        world: how many shares there are.
        noun: what an item is called in messages, in the plural.

    Raises:
        ValueError: there is not an item for each rank and micro-batch.
    """

    def __init__(
        self,
        draw: Callable[[int, int], T],
        *,
        steps_per_epoch: int,
        items_per_step: int,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        noun: str = "items",
    ) -> None:
        if items_per_step < accumulate * world:
            raise ValueError(
                f"{items_per_step} {noun} in a step cannot be shared among {world} rank(s) times "
                f"{accumulate} micro-batch(es)"
            )
        self._draw, self._noun = draw, noun
        self.steps_per_epoch, self.examples_per_step = steps_per_epoch, items_per_step
        self._world = world
        self._shares = []
        for part in range(accumulate):
            first = part * items_per_step // accumulate
            size = (part + 1) * items_per_step // accumulate - first
            self._shares.append(
                range(first + rank * size // world, first + (rank + 1) * size // world)
            )

    def window(self, epoch: int, position: int) -> Window:
        """Return the shape of a step; all are alike."""
        items = self.examples_per_step
        return Window(tuple(len(share) * self._world / items for share in self._shares), items)

    def batches(self, epoch: int, position: int) -> Iterator[list[T]]:
        """Yield this rank's micro-batches from the step at `position` on."""
        for step in range(position, self.steps_per_epoch):
            for share in self._shares:
                yield [
                    self._draw(epoch, step * self.examples_per_step + number) for number in share
                ]

    def describe(self, epoch: int, position: int) -> str:
        """Name the items of a step."""
        first = position * self.examples_per_step
        return f"{self._noun} {first} to {first + self.examples_per_step - 1} of epoch {epoch}"


class GeneratedEval(Generic[T]):
    """Items 0 … count - 1 to validate on, the same at every pass; rank r of w draws items r, r + w,
    r + 2w ….

    Args:
        draw: makes an item; must depend on its number alone.
        count: items on all ranks together.
        batch_size: items in a batch, which is a list of them.
        rank: which share is drawn here.
        world: how many shares there are.
        noun: what an item is called in messages, in the plural.

    Raises:
        ValueError: there is not an item for each rank.
    """

    def __init__(
        self,
        draw: Callable[[int], T],
        *,
        count: int,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        noun: str = "items",
    ) -> None:
        if count < world:
            raise ValueError(f"{count} {noun} cannot be shared among {world} ranks")
        self._draw = draw
        mine = range(rank, count, world)
        self._batches = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]

    def __iter__(self) -> Iterator[list[T]]:
        for numbers in self._batches:
            yield [self._draw(number) for number in numbers]

    def __len__(self) -> int:
        return len(self._batches)
