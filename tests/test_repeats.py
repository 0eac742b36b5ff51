"""Repeated augmentation: the order of timm's sampler, as a function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.data.distributed_sampler import RepeatAugSampler

from tests.reference.tiny import same, shake
from trainkit.commands.plan_data import augmentation_words
from trainkit.data.images import AugmentSpec
from trainkit.data.loader import Images, ShuffledStream
from trainkit.errors import UserError
from trainkit.training.build import build, compose


class Ones:
    """Examples whose image is 1 and whose class is their index."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.ones(()), index


def stream(count: int, repeats: float, **options: Any) -> ShuffledStream:
    images = Images(Ones(count), same, None, cache=True)
    return ShuffledStream(images, **{"seed": 2, "repeats": repeats, **options})


def places(data: ShuffledStream, count: int, epoch: int) -> list[list[int]]:
    """Return each micro-batch as places in the permutation of the epoch that has no repeats."""
    order = stream(count, 1, batch_size=1, seed=2)._order.indices(epoch).tolist()
    place = {index: at for at, index in enumerate(order)}
    return [[place[int(t)] for t in batch.targets] for batch in data.batches(epoch, 0)]


@pytest.mark.parametrize(
    ("count", "repeats", "world", "batch_size"),
    [(600, 3, 1, 32), (600, 3, 2, 16), (256, 4, 4, 16), (60, 3, 3, 5), (60, 2.5, 2, 6)],
)
def test_ranks_read_what_timms_sampler_gives_them(
    count: int, repeats: float, world: int, batch_size: int
) -> None:
    for rank in range(world):
        timms = RepeatAugSampler(
            range(count), num_replicas=world, rank=rank, shuffle=False, num_repeats=repeats
        )
        wanted = list(timms)
        wanted = wanted[: len(wanted) // batch_size * batch_size]  # timm's loader drops the rest
        data = stream(count, repeats, batch_size=batch_size, world=world, rank=rank, drop_last=True)
        assert list(chain(*places(data, count, 3))) == wanted


def test_copies_are_neighbours_on_one_rank_and_on_different_ones_on_three() -> None:
    (first, *_) = places(stream(40, 3, batch_size=7), 40, 0)
    assert first == [0, 0, 0, 1, 1, 1, 2]
    ranks = [stream(40, 3, batch_size=7, world=3, rank=rank) for rank in range(3)]
    assert [places(data, 40, 0)[0] for data in ranks] == [list(range(7))] * 3


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_weights_average_a_short_window_to_the_mean_over_its_examples(
    world: int, accumulate: int
) -> None:
    ranks = [
        stream(55, 3, batch_size=4, world=world, rank=rank, accumulate=accumulate)
        for rank in range(world)
    ]
    last = ranks[0].steps_per_epoch - 1
    mean, values = 0.0, []
    for data in ranks:
        batches = [batch.targets.double() for batch in data.batches(0, last)]
        weights = data.window(0, last).weights
        mean += sum(float(b.mean()) * weight for b, weight in zip(batches, weights, strict=True))
        values += [*torch.cat(batches).tolist()]
    assert len(values) == ranks[0].window(0, last).examples < ranks[0].examples_per_step
    assert mean / world == pytest.approx(sum(values) / len(values), rel=1e-12)


@pytest.mark.parametrize("repeats", [2.0, 2.5])
def test_versions_differ_and_do_not_depend_on_where_an_epoch_begins(repeats: float) -> None:
    def read(epoch: int, position: int, workers: int = 0) -> list[float]:
        images = Images(Ones(20), shake, 5, cache=False)
        data = ShuffledStream(images, seed=2, batch_size=4, repeats=repeats, workers=workers)
        try:
            return torch.cat([batch.inputs for batch in data.batches(epoch, position)]).tolist()
        finally:
            data.close()

    whole = read(0, 0) + read(1, 0)
    assert len(set(whole)) == len(whole) == 40
    assert read(1, 2) == whole[28:]
    assert read(1, 0, workers=2) == whole[20:]


def test_a_window_is_described_by_its_images() -> None:
    data = stream(20, 3, batch_size=6)
    first, second = (data._order.indices(0)[i] for i in (0, 3))
    assert data.describe(0, 0) == f"training examples {first}, {second}"


def test_a_recipe_asks_for_repeats(write: Callable[..., Path]) -> None:
    text = """\
model: {name: test_resnet, in_chans: 1}
data: {name: digits, image_size: 32, batch_size: 64, augment: {color_jitter: 0, repeats: 3}}
train: {device: cpu}
"""
    run = build(compose(write(text)))
    assert run.data.train.examples_per_step == 64
    assert run.data.train.steps_per_epoch == 1280 // 64  # 1,437 images, as timm rounds them
    assert len(set(next(run.data.train.batches(0, 0)).targets[:3].tolist())) == 1
    assert "3 versions of an image" in augmentation_words(AugmentSpec(repeats=3))
    with pytest.raises(UserError, match=r"data\.augment\.repeats: should be greater than or equal"):
        compose(write(text), ["data.augment.repeats=0"])
