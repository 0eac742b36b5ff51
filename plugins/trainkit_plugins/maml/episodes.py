"""Which images a few-shot task is made of: pure functions of a key and of how many images the
classes have.

N ways, K shots: N classes drawn without replacement, in random order, anew for every task; of each,
K images to learn from (support) and some others to be judged by (query). Any-shot, as in Lee et al.
2020 ("Learning to Balance"): a fair coin for each task says whether the classes' shots are drawn
independently, uniform in 1 … max_shot, or one number for all of them; a class with too few images
for it gets what its queries leave.

Together with the streams of `trainkit_data.few_shot`, in an adapter (the key of a test task has no
seed in it: all arms share the tasks):

    pool, sampler = class_pool(recipe, "train"), EpisodeSampler(ways=5, queries=15, shots=1)
    sampler.check(pool)  # ValueError, for the user to read
    train = GeneratedStream(
        lambda epoch, number: sampler.episode(pool, recipe.seed, "train", epoch, number),
        steps_per_epoch=…, items_per_step=…, accumulate=…, rank=…, world=…, noun="tasks",
    )  # micro-batches are lists of episodes
    test = GeneratedEval(
        lambda number: sampler.episode(test_pool, "test", number), count=1000, batch_size=…, …
    )
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch

E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)


class Episode(NamedTuple, Generic[E]):
    """One task: what is learned from, and what the result is judged by. Targets are 0 … ways - 1 in
    both.

    The sets of the tasks of a meta-batch may differ in size; nothing is padded.
    """

    support: E
    query: E


class Pool(Protocol[E_co]):
    """Images by class, such as the `ClassPool` of `trainkit_data.few_shot`."""

    @property
    def names(self) -> Sequence[str]:
        """The names of the classes."""

    @property
    def sizes(self) -> Sequence[int]:
        """How many images each class has."""

    def batch(self, classes: Sequence[int], images: Sequence[Sequence[int]]) -> E_co:
        """Return some images of each of some classes; targets count the classes in the order
        given.
        """


class Drawn(NamedTuple):
    """A task as numbers.

    Attributes:
        classes: which classes, in the order of the targets.
        support: for each of them, which of its images are learned from.
        query: for each of them, which others are judged by.
    """

    classes: tuple[int, ...]
    support: tuple[tuple[int, ...], ...]
    query: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class EpisodeSampler:
    """How tasks are drawn. Give `shots`, or `max_shot` for any-shot tasks.

    Attributes:
        ways: N, classes of a task.
        queries: images of each class that a task is judged by.
        shots: K, images of each class that a task is learned from.
        max_shot: any-shot tasks have up to so many.

    Raises:
        ValueError: both of `shots` and `max_shot` are given, or neither.
    """

    ways: int
    queries: int
    shots: int | None = None
    max_shot: int | None = None

    def __post_init__(self) -> None:
        if (self.shots is None) == (self.max_shot is None):
            raise ValueError("give either shots or max_shot")

    def check(self, pool: Pool[object]) -> None:
        """Refuse a pool that is too small.

        Raises:
            ValueError: there are fewer classes than ways, or a class (the message names it) has too
                few images.
        """
        if len(pool.sizes) < self.ways:
            raise ValueError(
                f"{self.ways} ways need as many classes, and there are {len(pool.sizes)}"
            )
        needed = self.queries + (1 if self.shots is None else self.shots)
        for name, size in zip(pool.names, pool.sizes, strict=True):
            if size < needed:
                shots = "one shot at least" if self.shots is None else f"{self.shots} shot(s)"
                raise ValueError(
                    f"class {name!r} has {size} image(s); {shots} and {self.queries} queries need "
                    f"{needed} of each"
                )

    def draw(self, sizes: Sequence[int], *key: int | str) -> Drawn:
        """Return the task that belongs to a key, such as (seed, "train", epoch, number).

        Args:
            sizes: how many images each class of the pool has; as `check` wants them.
            key: what the task is a function of, besides the sizes.
        """
        generator = torch.Generator().manual_seed(_seed(key))
        classes = torch.randperm(len(sizes), generator=generator)[: self.ways].tolist()
        support, query = [], []
        for cls, shots in zip(classes, self._shots(generator), strict=True):
            shots = min(shots, sizes[cls] - self.queries)
            order = torch.randperm(sizes[cls], generator=generator)[: shots + self.queries].tolist()
            support.append(tuple(order[:shots]))
            query.append(tuple(order[shots:]))
        return Drawn(tuple(classes), tuple(support), tuple(query))

    def _shots(self, generator: torch.Generator) -> list[int]:
        if self.shots is not None:
            return [self.shots] * self.ways
        assert self.max_shot is not None  # __post_init__ saw to it
        independent = bool(torch.randint(2, (), generator=generator))
        drawn: list[int] = torch.randint(
            1, self.max_shot + 1, (self.ways,), generator=generator
        ).tolist()
        return drawn if independent else drawn[:1] * self.ways

    def episode(self, pool: Pool[E], *key: int | str) -> Episode[E]:
        """Return the images of the task that belongs to a key; see `draw`."""
        drawn = self.draw(pool.sizes, *key)
        return Episode(
            pool.batch(drawn.classes, drawn.support), pool.batch(drawn.classes, drawn.query)
        )


def _seed(key: Sequence[int | str]) -> int:
    """Return a seed that is a fixed function of a key, on every machine and in every process."""
    return (
        int.from_bytes(hashlib.blake2b(repr(tuple(key)).encode(), digest_size=8).digest(), "big")
        >> 1
    )
