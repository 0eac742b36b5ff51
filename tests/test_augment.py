"""Settings of augmentation: each acts, or one line says why not, before the first image is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

from trainkit.config.recipe import Recipe
from trainkit.data.augment import augment_notes, random_transform
from trainkit.data.images import AugmentSpec
from trainkit.data.loader import Images
from trainkit.data.policies import policy_notes, policy_problem
from trainkit.errors import UserError
from trainkit.seeds import derive_seed, isolated
from trainkit.training.build import build, compose

TEXT = """\
model: {name: test_resnet, in_chans: 1}
data:
  name: digits
  image_size: 8
  augment:
    color_jitter: 0
train: {device: cpu}
"""
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


class Noise:
    """Six colour images of noise of 40 x 30 pixels."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        pixels = np.random.default_rng(index).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        return Image.fromarray(pixels), index


def recipe() -> Recipe:
    return Recipe.model_validate({"model": {"name": "test_resnet"}, "data": {"name": "digits"}})


@pytest.mark.parametrize(
    ("options", "timms"),
    [
        ({}, {}),
        ({"re_prob": 1.0, "re_mode": "pixel"}, {"re_prob": 1.0, "re_mode": "pixel"}),
        (
            {"re_prob": 0.7, "re_mode": "rand", "re_count": 3},
            {"re_prob": 0.7, "re_mode": "rand", "re_count": 3},
        ),
        ({"crop_mode": "rkrc"}, {"train_crop_mode": "rkrc"}),
        (
            {"crop_mode": "rkrr", "scale": (0.7, 1.0), "ratio": (0.9, 1.1), "vflip": 0.5},
            {"train_crop_mode": "rkrr", "scale": (0.7, 1.0), "ratio": (0.9, 1.1), "vflip": 0.5},
        ),
        (
            {"color_jitter": 0.8, "color_jitter_prob": 0.5, "grayscale_prob": 0.5},
            {"color_jitter": 0.8, "color_jitter_prob": 0.5, "grayscale_prob": 0.5},
        ),
        (
            {"color_jitter": 0, "gaussian_blur_prob": 0.6, "interpolation": "bicubic"},
            {"color_jitter": None, "gaussian_blur_prob": 0.6, "interpolation": "bicubic"},
        ),
        (
            {"auto_augment": "augmix-m5-w4-d2", "re_prob": 0.5, "re_mode": "pixel"},
            {"auto_augment": "augmix-m5-w4-d2", "re_prob": 0.5, "re_mode": "pixel"},
        ),
    ],
)
def test_images_are_timms_to_the_last_bit(options: dict[str, Any], timms: dict[str, Any]) -> None:
    timms = {"scale": (0.08, 1.0), "ratio": (0.75, 4 / 3), "interpolation": "random"} | timms
    plain = timm.data.create_transform((3, 24, 24), is_training=True, mean=MEAN, std=STD, **timms)
    ours = random_transform(AugmentSpec(**options), recipe(), (3, 24, 24), MEAN, STD)
    keys = [(epoch, index) for epoch in (0, 3) for index in range(6)]
    torch.manual_seed(len(options))  # the streams outside do not matter, and go on untouched
    batch = Images(Noise(), ours, 5, cache=False).__getitems__(keys)
    outside = torch.rand(())
    for (epoch, index), tensor in zip(keys, batch.inputs, strict=True):
        with isolated(derive_seed(5, epoch, index), torch.device("cpu")):
            assert torch.equal(tensor, plain(Noise()[index][0]))
    torch.manual_seed(len(options))
    assert torch.equal(outside, torch.rand(()))


@pytest.mark.parametrize(
    ("policy", "wrong"),
    [
        ("rand-m9-mstd0.5", ""),
        ("rand-m9-n3-p0.3-mmax12-inc1-tweights", ""),
        ("augmix-m5-w4-d2-b1", ""),
        ("original-mstd0.5", ""),
        ("3a", ""),
        ("rnd-m9", "timm has no policy 'rnd'"),
        ("", "timm has no policy ''"),
        ("rand-x9", "rand takes m, n, p, mstd, mmax, inc, tweights, t3a, t3aw, and not 'x9'"),
        ("rand-mstd", "'' is no number that mstd of rand can take"),
        (
            "rand-weights",
            "rand takes m, n, p, mstd, mmax, inc, tweights, t3a, t3aw, and not 'weights'",
        ),
        ("rand-m9-n1000000000000", "'1000000000000' is no number that n of rand can take"),
        ("rand-m9\n", "'9\\n' is no number that m of rand can take"),
        ("rand-p1.5x", "'1.5x' is no number that p of rand can take"),
        ("augmix-w1000000000000", "'1000000000000' is no number that w of augmix can take"),
        ("v0-m9", "v0 takes mstd, and not 'm9'"),
    ],
)
def test_a_policy_is_read_to_its_last_word(policy: str, wrong: str) -> None:
    found = policy_problem(policy)
    assert found.startswith(wrong)
    assert bool(found) == bool(wrong)


def test_what_timm_leaves_out_or_clips_is_noted() -> None:
    assert policy_notes(None, 0.9) == []
    assert policy_notes("rand-m9-mstd0.5", 0.4) == []
    assert policy_notes("3a", 0.9) == policy_notes("rand-m9", 0) == []
    assert policy_notes("rand-m15-mmax20", 0.4) == []
    (jitter,) = policy_notes("rand-m9", 0.9)
    assert jitter.startswith("data.augment.color_jitter: does nothing")
    (clipped,) = policy_notes("rand-m15", 0.4)
    assert (
        clipped
        == "data.augment.auto_augment: timm takes a magnitude of 15 as 10; say mmax15 as well if"
        " more is meant"
    )


@pytest.mark.parametrize(
    ("options", "idle"),
    [
        ({}, []),
        ({"re_mode": "pixel", "re_count": 3}, ["re_mode", "re_count"]),
        ({"re_mode": "pixel", "re_count": 3, "re_prob": 0.1}, []),
        ({"color_jitter": 0, "color_jitter_prob": 0.5}, ["color_jitter_prob"]),
        ({"auto_augment": "v0", "color_jitter_prob": 0.5}, ["color_jitter_prob"]),
        ({"auto_augment": "3a", "color_jitter_prob": 0.5}, []),
        ({"color_jitter": 0.9, "color_jitter_prob": 0}, ["color_jitter"]),
        ({"crop_mode": "rkrc", "scale": (0.5, 1), "gaussian_blur_prob": 0.5}, []),
    ],
)
def test_what_waits_for_another_setting_is_noted(options: dict[str, Any], idle: list[str]) -> None:
    notes = augment_notes(AugmentSpec(**options), 3)
    assert [note.partition(": does nothing, because ")[0] for note in notes] == [
        f"data.augment.{name}" for name in idle
    ]
    assert not augment_notes(AugmentSpec(grayscale_prob=0.1), 3)
    assert len(augment_notes(AugmentSpec(grayscale_prob=0.1), 1)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "gaussian_blur_prob=0.001",
            "data.augment.gaussian_blur_prob: the blur needs images of at least 12 pixels",
        ),
        ("re_mode=noise", "data.augment.re_mode: should be 'const', 'rand' or 'pixel'"),
        ("auto_augment=rand-x9", "data.augment.auto_augment: rand takes m, n, p"),
        ("auto_augment=rand-m9-n50-t3aw", "data.augment.auto_augment: timm cannot augment so: "),
        (
            "scale=[0.9, 0.1]",
            "data.augment.scale: is two numbers with 0 < low <= high <= 1; got [0.9, 0.1]",
        ),
        ("scale=[0, 1]", "data.augment.scale: is two numbers"),
        ("ratio=[-1, 1]", "data.augment.ratio: is two numbers with 0 < low <= high; got [-1, 1]"),
        (
            "interpolation=cubic",
            "data.augment.interpolation: should be 'random', 'nearest', 'bilinear'",
        ),
        ("color_jitter=1e300", "data.augment: timm cannot augment so: "),
        ("re_prob=2", "data.augment.re_prob: should be less than or equal to 1; got 2"),
    ],
)
def test_what_timm_refuses_is_one_line(
    write: Callable[..., Path], change: str, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        build(compose(write(TEXT), [f"data.augment.{change}"]))
    found = str(caught.value)
    assert message in found
    assert "\n" not in found
    assert ".yaml:" in found or found.startswith("command line `")


def test_trying_a_transform_changes_no_stream_and_no_image(write: Callable[..., Path]) -> None:
    batches = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        run = build(
            compose(
                write(TEXT),
                ["data.augment.auto_augment=rand-m9-mstd0.5", "data.augment.re_prob=0.5"],
            )
        )
        batches.append(next(run.data.train.batches(0, 0)).inputs)
    assert torch.equal(*batches)
    noted = build(compose(write(TEXT), ["data.augment.auto_augment=rand-m12"])).log.notes
    assert [note.partition(":")[0] for note in noted] == ["data.augment.auto_augment"]
