"""Batches that show their images several times: clean, then augmented, as timm's AugMixDataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.data import create_transform
from timm.data.dataset import AugMixDataset

from tests.test_augment import MEAN, STD, Noise, recipe
from trainkit.data.augment import augment_notes, random_transform
from trainkit.data.build import build_source
from trainkit.data.images import AugmentSpec
from trainkit.data.loader import Images
from trainkit.errors import UserError
from trainkit.seeds import derive_seed, isolated
from trainkit.training.build import build, compose
from trainkit.training.device import Device

TEXT = """\
model: {name: test_resnet, in_chans: 1}
data: {name: digits, image_size: 32, batch_size: 8, augment: {splits: 3, auto_augment: rand-m9}}
train: {device: cpu}
"""
KEYS = [(1, 4), (0, 2), (0, 5)]


class Transformed(Noise):
    """The noise as timm's dataset wants it: with a transform that it applies."""

    transform: Any = None

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, target = super().__getitem__(index)
        return self.transform(image), target


def batch_of(**options: Any) -> Any:
    spec = AugmentSpec(**options)
    transform = random_transform(spec, recipe(), (3, 24, 24), MEAN, STD)
    return Images(Noise(), transform, 5, cache=False, splits=spec.splits).__getitems__(KEYS)


@pytest.mark.parametrize("splits", [2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.6, "re_mode": "pixel"},
        {"auto_augment": "augmix-m3-w2", "gaussian_blur_prob": 0.3},
    ],
)
def test_splits_are_those_of_timms_dataset(splits: int, options: dict[str, Any]) -> None:
    batch = batch_of(splits=splits, **options)
    timms = {"scale": (0.08, 1.0), "ratio": (0.75, 4 / 3), "interpolation": "random"}
    made = create_transform(
        (3, 24, 24), is_training=True, separate=True, mean=MEAN, std=STD, **timms, **options
    )
    dataset = AugMixDataset(Transformed(), num_splits=splits)
    dataset.transform = made
    examples = []
    for epoch, index in KEYS:
        with isolated(derive_seed(5, epoch, index), torch.device("cpu")):
            examples.append(dataset[index])
    # As timm's fast_collate puts them: all images clean, then all of them augmented, and again.
    wanted = [shown[split] for split in range(splits) for shown, _ in examples]
    assert torch.equal(batch.inputs, torch.stack(wanted))
    assert batch.inputs.is_contiguous()
    assert batch.targets.tolist() == [4, 2, 5] * splits


def test_resplit_erases_in_augmented_splits_alone() -> None:
    options = {"splits": 3, "re_prob": 1.0, "color_jitter": 0, "ratio": (1.0, 1.0)}
    plain = batch_of(splits=3, color_jitter=0, ratio=(1.0, 1.0)).inputs
    everywhere, spared = batch_of(**options).inputs, batch_of(**options, resplit=True).inputs
    assert torch.equal(spared[:3], plain[:3])
    for erased in (*everywhere, *spared[3:]):
        assert (erased == 0).all(0).any()
    assert not (plain == 0).all(1).any()


def test_a_run_has_as_many_examples_as_without(write: Callable[..., Path]) -> None:
    run = build(compose(write(TEXT)))
    alone = build(compose(write(TEXT), ["data.augment.splits=1"]))
    assert run.data.train.examples_per_step == alone.data.train.examples_per_step == 8
    assert run.data.train.steps_per_epoch == alone.data.train.steps_per_epoch
    batch = next(run.data.train.batches(0, 0))
    assert batch.inputs.shape == (24, 1, 32, 32)
    assert (run.data.aug_splits, alone.data.aug_splits) == (3, 1)
    (note,) = (n for n in run.log.notes if n.startswith("data.augment.splits"))
    assert note.endswith("the mean over all 3 splits, because no plugin makes another of them")
    assert not alone.log.notes


def test_a_split_is_hidden_from_as_the_first_is(write: Callable[..., Path]) -> None:
    # A model without a plugin for gaps is refused, so the data are made alone.
    recipe = compose(write(TEXT), ["data.missing={kind: blocks, rate: [0.3, 0.6]}"]).recipe
    batch = next(build_source(recipe, Device(recipe)).train.batches(0, 0))
    gaps = batch.inputs.isnan()
    assert gaps[:8].any()
    assert torch.equal(gaps, gaps[:8].repeat(3, 1, 1, 1))


def test_splits_that_cannot_be_are_refused_and_idle_ones_noted(
    write: Callable[..., Path],
) -> None:
    with pytest.raises(UserError, match=r"data\.augment\.resplit: spares the first of several"):
        compose(write(TEXT), ["data.augment.splits=1", "data.augment.resplit=true"])
    (alike,) = augment_notes(AugmentSpec(splits=3, color_jitter=0), 3)
    assert alike.startswith("data.augment.splits: does nothing")
    (idle,) = augment_notes(AugmentSpec(splits=3, resplit=True), 3)
    assert idle.startswith("data.augment.resplit: does nothing, because re_prob is 0")
