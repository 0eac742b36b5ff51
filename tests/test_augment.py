"""Settings of augmentation: each acts, or one line says why not, before the first image is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainkit.data.policies import policy_notes, policy_problem
from trainkit.errors import UserError
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
    ("change", "message"),
    [
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
