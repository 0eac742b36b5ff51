"""Data that are drawn: the same items for any number of ranks and micro-batches, and from the
middle of an epoch.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainkit_data.few_shot.generated import GeneratedEval, GeneratedStream

LAYOUTS = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 9))


def pair(epoch: int, number: int) -> tuple[int, int]:
    return epoch, number


def streams(layout: tuple[int, int, int], steps: int = 5) -> list[GeneratedStream[tuple[int, int]]]:
    """Return the streams of all ranks."""
    world, accumulate, more = layout
    options = {
        "steps_per_epoch": steps,
        "items_per_step": world * accumulate + more,
        "accumulate": accumulate,
    }
    return [GeneratedStream(pair, rank=rank, world=world, **options) for rank in range(world)]


@given(layout=LAYOUTS)
def test_ranks_and_micro_batches_share_the_items_of_each_step(layout: tuple[int, int, int]) -> None:
    ranks = streams(layout)
    world, accumulate, more = layout
    items = world * accumulate + more
    passes = [rank.batches(3, 0) for rank in ranks]
    for step in range(5):
        seen, means = [], 0.0
        for rank, batches in zip(ranks, passes, strict=True):
            window = rank.window(3, step)
            assert window.examples == rank.examples_per_step == items
            assert len(window.weights) == accumulate
            for weight in window.weights:
                batch = next(batches)
                seen += batch
                means += weight * sum(number for _, number in batch) / len(batch) / world
        assert sorted(seen) == [(3, step * items + i) for i in range(items)]
        assert means == pytest.approx(
            step * items + (items - 1) / 2
        )  # weighted, averaged: the mean over all items
    assert all(next(batches, None) is None for batches in passes)


def test_ranks_share_evenly() -> None:
    ranks = streams((2, 2, 4))
    assert [[len(batch) for batch in rank.batches(0, 4)] for rank in ranks] == [[2, 2], [2, 2]]
    assert ranks[0].window(0, 0).weights == (0.5, 0.5)


@given(layout=LAYOUTS, position=st.integers(0, 5))
def test_an_epoch_begun_in_its_middle_is_the_tail_of_the_whole(
    layout: tuple[int, int, int], position: int
) -> None:
    for rank in streams(layout):
        assert list(rank.batches(1, position)) == list(rank.batches(1, 0))[position * layout[1] :]


@given(count=st.integers(1, 20), world=st.integers(1, 4), batch_size=st.integers(1, 6))
def test_every_item_is_validated_on_one_rank_once(count: int, world: int, batch_size: int) -> None:
    count += world
    ranks = [
        GeneratedEval(int, count=count, batch_size=batch_size, rank=rank, world=world)
        for rank in range(world)
    ]
    batches = [list(rank) for rank in ranks]
    assert sorted(item for rank in batches for batch in rank for item in batch) == list(
        range(count)
    )
    assert [len(rank) for rank in ranks] == [len(rank) for rank in batches]
    assert all(1 <= len(batch) <= batch_size for rank in batches for batch in rank)
    assert [list(rank) for rank in ranks] == batches


def test_too_few_items_are_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"3 tasks in a step cannot be shared among 2 rank\(s\) times 2 micro-batch",
    ):
        GeneratedStream(
            pair, steps_per_epoch=1, items_per_step=3, accumulate=2, world=2, noun="tasks"
        )
    with pytest.raises(ValueError, match="1 tasks cannot be shared among 2 ranks"):
        GeneratedEval(int, count=1, batch_size=1, world=2, noun="tasks")


def test_a_step_is_described_by_its_items() -> None:
    stream = GeneratedStream(pair, steps_per_epoch=9, items_per_step=4, noun="tasks")
    assert stream.describe(2, 3) == "tasks 12 to 15 of epoch 2"
