"""Thinning a series while it comes in: an even selection of it, and its extremes; both in a
bounded share of memory.
"""

from __future__ import annotations

import math
from typing import Generic, TypeVar

T = TypeVar("T")

MOST_NUMBERS = 2**19
"""Numbers in the items of a `Spread`, which may hold vectors."""
MOST_STRETCHES = 2048


class Spread(Generic[T]):
    """Some of the items that are added: every one at first, then every second, every fourth …,
    and the last.
    """

    def __init__(self, most: int) -> None:
        self.every = 1
        self._most = most
        self._kept: list[T] = []
        self._sizes: list[int] = []
        self._seen = self._numbers = 0
        self._last: T | None = None

    def add(self, item: T, size: int = 1) -> None:
        """Add the next item, which holds so many numbers."""
        self._last = item
        if self._seen % self.every == 0:
            self._kept.append(item)
            self._sizes.append(size)
            self._numbers += size
            while len(self._kept) > self._most or (
                self._numbers > MOST_NUMBERS and len(self._kept) > 1
            ):
                self._kept, self._sizes, self.every = (
                    self._kept[::2],
                    self._sizes[::2],
                    2 * self.every,
                )
                self._numbers = sum(self._sizes)
        self._seen += 1

    def items(self) -> list[T]:
        """Return what is kept, in order."""
        if self._last is None or self._last is self._kept[-1]:
            return self._kept
        return [*self._kept, self._last]


class Extremes:
    """The lowest and highest of each stretch of a series, with their steps, and how many were
    not finite.
    """

    __slots__ = ("_count", "_high", "_low", "_size", "_stretches", "broken", "not_finite")

    def __init__(self) -> None:
        self._size, self._count = 1, 0
        self._low = self._high = (0, math.nan)
        self._stretches: list[tuple[tuple[int, float], tuple[int, float]]] = []
        self.not_finite = 0
        self.broken: Spread[int] | None = None

    def add(self, step: int, value: float) -> None:
        """Count the next value."""
        if not math.isfinite(value):
            self.not_finite += 1
            self.broken = self.broken or Spread(400)
            self.broken.add(step)
            return
        if self._count == 0:
            self._low = self._high = (step, value)
        elif value < self._low[1]:
            self._low = (step, value)
        elif value > self._high[1]:
            self._high = (step, value)
        self._count += 1
        if self._count == self._size:
            self._close()

    def _close(self) -> None:
        self._stretches.append((self._low, self._high))
        self._count = 0
        if len(self._stretches) >= 2 * MOST_STRETCHES:
            old = self._stretches
            self._stretches = [
                (min(a[0], b[0], key=_value), max(a[1], b[1], key=_value))
                for a, b in zip(old[::2], old[1::2], strict=True)
            ]
            self._size *= 2

    def points(self) -> list[tuple[int, float]]:
        """Return the steps and values, in order."""
        open_one = []
        if self._count:
            open_one = [(self._low, self._high)]
        return [point for pair in (*self._stretches, *open_one) for point in sorted(set(pair))]


def _value(point: tuple[int, float]) -> float:
    return point[1]
