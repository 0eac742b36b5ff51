"""The order in which data are seen: a pure function of (seed, epoch, position), for any ranks,
windows and workers.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.reference.tiny import Made, same, shake
from trainkit.data.loader import Images, OrderedStream, ShuffledStream
from trainkit.data.workers import number
from trainkit.seeds import seed_everything


class Numbers:
    """Examples whose image is their own index."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.tensor(float(index)), index


def numbers(count: int) -> Images:
    return Images(Numbers(count), same, None, cache=True)


def stream(count: int, **options: int) -> ShuffledStream:
    given: dict[str, Any] = {"seed": 0, "batch_size": 4, **options}
    return ShuffledStream(numbers(count), **given)


def epoch_of(data: ShuffledStream, epoch: int, position: int = 0) -> list[list[int]]:
    """Return the indices of each micro-batch from a window on."""
    return [batch.targets.tolist() for batch in data.batches(epoch, position)]


def flat(batches: list[list[int]]) -> list[int]:
    return [index for batch in batches for index in batch]


LAYOUTS = st.fixed_dictionaries(
    {
        "count": st.integers(1, 60),
        "batch_size": st.integers(1, 7),
        "accumulate": st.integers(1, 4),
        "world": st.integers(1, 4),
        "drop_last": st.booleans(),
    }
)


def ranks(layout: dict[str, int]) -> list[ShuffledStream]:
    """Return the streams of all ranks, or skip an epoch that has no batch."""
    options = dict(layout)
    count, world = options.pop("count"), options["world"]
    short = count % (options["batch_size"] * world)
    assume(
        count >= options["batch_size"] * world or (short >= 2 * world and not options["drop_last"])
    )
    return [stream(count, rank=rank, **options) for rank in range(world)]


@given(layout=LAYOUTS)
def test_ranks_share_an_epoch_without_gap_or_overlap(layout: dict[str, int]) -> None:
    streams = ranks(layout)
    seen = sorted(index for data in streams for batch in epoch_of(data, 0) for index in batch)
    count, chunk = layout["count"], layout["batch_size"] * layout["world"]
    short = count % chunk
    left_out = short if layout["drop_last"] or short < 2 * layout["world"] else 0
    assert len(seen) == len(set(seen)) == count - left_out
    assert len({data.steps_per_epoch for data in streams}) == 1
    assert streams[0].examples_per_step == chunk * layout["accumulate"]


@given(layout=LAYOUTS)
def test_weighted_micro_batches_average_to_the_mean_over_all_examples(
    layout: dict[str, int],
) -> None:
    streams = ranks(layout)
    passes = [data.batches(1, 0) for data in streams]
    for position in range(streams[0].steps_per_epoch):
        values: list[float] = []
        on_ranks = []
        for data, batches in zip(streams, passes, strict=True):
            window = data.window(1, position)
            losses = [next(batches).inputs.double() for _ in window.weights]
            on_ranks.append(
                sum(
                    float(x.mean()) * weight
                    for x, weight in zip(losses, window.weights, strict=True)
                )
            )
            values += [float(x) for loss in losses for x in loss]
            # A rank that gets none, or one for a batch norm to train on, would stop the others or
            # fail.
            assert all(len(loss) >= min(2, layout["batch_size"]) for loss in losses)
            assert window.examples <= data.examples_per_step
        assert window.examples == len(values)
        assert sum(on_ranks) / len(streams) == pytest.approx(
            sum(values) / len(values), rel=1e-12, abs=1e-12
        )
    assert all(next(batches, None) is None for batches in passes)


@given(layout=LAYOUTS, data=st.data())
def test_an_epoch_begun_in_its_middle_is_the_tail_of_the_whole(
    layout: dict[str, int], data: st.DataObject
) -> None:
    first = ranks(layout)[0]
    position = data.draw(st.integers(0, first.steps_per_epoch))
    whole = epoch_of(first, 2)
    skipped = sum(len(first.window(2, p).weights) for p in range(position))
    assert epoch_of(ranks(layout)[0], 2, position) == whole[skipped:]


@given(layout=LAYOUTS)
def test_how_a_window_is_cut_does_not_change_what_is_in_it(layout: dict[str, int]) -> None:
    streams = ranks(layout)
    assume(not layout["drop_last"] and layout["count"] >= streams[0].examples_per_step)
    world, accumulate, batch_size = layout["world"], layout["accumulate"], layout["batch_size"]
    alone = stream(layout["count"], batch_size=batch_size * world * accumulate)
    # Both leave out an end that is too short, each by its own measure: compare the windows that
    # both have whole.
    for position in range(layout["count"] // alone.examples_per_step):
        shared = []
        for data in streams:
            batches = data.batches(0, position)
            shared += [
                i for _ in data.window(0, position).weights for i in next(batches).targets.tolist()
            ]
        assert sorted(shared) == sorted(epoch_of(alone, 0, position)[0])


def test_eight_twice_is_sixteen_once_in_order() -> None:
    twice, once = stream(70, batch_size=8, accumulate=2), stream(70, batch_size=16)
    assert twice.steps_per_epoch == once.steps_per_epoch == 5
    assert flat(epoch_of(twice, 0)) == flat(epoch_of(once, 0))
    assert twice.window(0, 4).weights == (1.0,)  # six examples are left, in one micro-batch
    assert twice.window(0, 0).weights == (0.5, 0.5)
    assert stream(76, batch_size=8, accumulate=2).window(0, 4).weights == (8 / 12, 4 / 12)


def test_order_depends_on_seed_and_epoch_and_on_nothing_before() -> None:
    first = [epoch_of(stream(20), epoch) for epoch in range(3)]
    assert len({str(order) for order in first}) == 3
    again = stream(20)
    assert [epoch_of(again, epoch) for epoch in (2, 0, 1)] == [first[2], first[0], first[1]]
    assert epoch_of(stream(20, seed=1), 0) != first[0]


def test_a_last_example_alone_is_left_out() -> None:
    assert [len(batch) for batch in epoch_of(stream(9), 0)] == [4, 4]
    assert [len(batch) for batch in epoch_of(stream(10), 0)] == [4, 4, 2]
    assert [len(batch) for batch in epoch_of(stream(10, drop_last=True), 0)] == [4, 4]
    assert [len(batch) for batch in epoch_of(stream(3, batch_size=1), 0)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("count", "options"), [(0, {}), (1, {}), (3, {"drop_last": True}), (3, {"world": 2})]
)
def test_too_few_examples_are_refused(count: int, options: dict[str, int]) -> None:
    with pytest.raises(
        ValueError, match=f"{count} training examples do not fill one batch of 4 on each of"
    ):
        (
            stream(count or 1, **options)
            if count
            else ShuffledStream(Images(Numbers(0), same, 0, False), seed=0, batch_size=4)
        )


def test_a_window_is_described_by_its_examples() -> None:
    data = stream(22, accumulate=3)
    indices = flat(epoch_of(data, 0)[:3])
    assert data.describe(0, 0) == f"training examples {', '.join(map(str, indices[:8]))} …"
    rest = flat(epoch_of(data, 0)[3:])
    assert data.describe(0, 1) == f"training examples {', '.join(map(str, rest[:8]))} …"


# Validation.


@given(count=st.integers(1, 40), batch_size=st.integers(1, 9), world=st.integers(1, 4))
def test_every_validation_example_is_on_one_rank_once(
    count: int, batch_size: int, world: int
) -> None:
    assume(count >= world)
    streams = [
        OrderedStream(numbers(count), batch_size=batch_size, rank=rank, world=world)
        for rank in range(world)
    ]
    batches = [[batch.targets.tolist() for batch in data] for data in streams]
    assert sorted(index for rank in batches for batch in rank for index in batch) == list(
        range(count)
    )
    assert [len(data) for data in streams] == [len(rank) for rank in batches]
    assert all(len(batch) <= batch_size for rank in batches for batch in rank)
    assert [[batch.targets.tolist() for batch in data] for data in streams] == batches


def test_more_ranks_than_validation_examples_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"2 validation example\(s\) cannot be shared among 3 ranks"
    ):
        OrderedStream(numbers(2), batch_size=1, rank=0, world=3)


# Random transforms.


def shaken(workers: int, epoch: int, position: int = 0, seed: int = 5) -> list[torch.Tensor]:
    images = Images(Made(22, 4, (3, 4, 4)), shake, seed, cache=True)
    data = ShuffledStream(images, seed=0, batch_size=4, workers=workers)
    return [batch.inputs for batch in data.batches(epoch, position)]


def test_any_number_of_workers_gives_the_same_images() -> None:
    alone, two = shaken(0, 1), shaken(2, 1)
    assert len(alone) == 6
    assert all(torch.equal(a, b) for a, b in zip(alone, two, strict=True))
    late = shaken(2, 1, position=4)
    assert all(torch.equal(a, b) for a, b in zip(alone[4:], late, strict=True))


@pytest.mark.parametrize(
    ("asked", "cores", "ranks", "workers"),
    [
        (None, 2, 1, 2),
        (None, 16, 1, 8),
        (None, 16, 4, 4),
        (None, 2, 4, 1),
        (3, 16, 4, 3),
        (0, 16, 1, 0),
    ],
)
def test_workers_that_nobody_asks_for_are_what_the_machine_has(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, cores: int, ranks: int, workers: int
) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert number(asked) == workers


def test_workers_go_on_from_epoch_to_epoch() -> None:
    images = Images(Made(8, 4, (3, 4, 4)), shake, 5, cache=False)
    two = ShuffledStream(images, seed=0, batch_size=4, workers=2)
    alone = ShuffledStream(images, seed=0, batch_size=4)
    for epoch in range(3):
        pairs = zip(two.batches(epoch, 0), alone.batches(epoch, 0), strict=True)
        assert all(torch.equal(a.inputs, b.inputs) for a, b in pairs)


def test_an_image_is_transformed_as_seed_epoch_and_index_say() -> None:
    images = Images(Made(6, 4, (3, 4, 4)), shake, 5, cache=False)
    both = images.__getitems__([(0, 2), (0, 3)]).inputs
    assert torch.equal(images.__getitems__([(0, 3)]).inputs[0], both[1])
    assert not torch.equal(images.__getitems__([(1, 3)]).inputs[0], both[1])
    other = Images(Made(6, 4, (3, 4, 4)), shake, 6, cache=False)
    assert not torch.equal(other.__getitems__([(0, 3)]).inputs[0], both[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_draws_nothing_from_the_streams_of_others(workers: int) -> None:
    seed_everything(4)
    expected = [random.random(), float(np.random.rand()), torch.rand(()).item()]
    seed_everything(4)
    shaken(workers, 0)
    list(
        OrderedStream(Images(Made(6, 4, (3, 4, 4)), shake, 5, False), batch_size=2, workers=workers)
    )
    assert [random.random(), float(np.random.rand()), torch.rand(()).item()] == expected


def test_what_is_not_random_is_read_once_if_asked() -> None:
    reads = []

    class Counted(Numbers):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            reads.append(index)
            return super().__getitem__(index)

    kept = Images(Counted(4), same, None, cache=True)
    for _ in range(3):
        assert kept.__getitems__([(0, 2), (1, 0)]).targets.tolist() == [2, 0]
    assert reads == [0, 1, 2, 3]
    Images(Counted(4), same, None, cache=False).__getitems__([(0, 1), (0, 1)])
    assert reads == [0, 1, 2, 3, 1, 1]
