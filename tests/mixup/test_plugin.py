"""The `mixup` plugin: timm's mixing on streams of the plugin's own."""

from collections.abc import Generator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from timm.data.mixup import Mixup as TimmMixup
from torch import Tensor
from trainkit_plugins.mixup.plugin import Mixup

from trainkit import Batch, Hooks, Run, UserError
from trainkit.config.recipe import Recipe
from trainkit.data.types import Data
from trainkit.log.records import Log
from trainkit.training.device import Device

CLASSES = 4


def make_run(
    rank: int = 0, loss: dict[str, Any] | None = None, num_classes: int | None = None
) -> Run:
    recipe = Recipe.model_validate(
        {
            "model": {"name": "none", "num_classes": num_classes},
            "data": {"name": "digits"},
            "train": {"loss": loss or {}},
        }
    )
    run = Run(recipe, cast(Hooks, None), {}, Device(recipe), Log())
    run.device.rank = rank
    run.data = Data(cast(Any, ()), cast(Any, ()), CLASSES, (3, 8, 8), "made up")
    return run


def images(n: int) -> Batch:
    generator = torch.Generator().manual_seed(n)
    return Batch(torch.randn(n, 3, 8, 8, generator=generator), torch.arange(n) % CLASSES)


def mixup(**options: Any) -> Mixup:
    plugin = Mixup(**options)
    plugin.bind("mixup", 7)
    return plugin


def prepare(plugin: Mixup, run: Run, batch: Any) -> Any:
    """Send `batch` through the plugin's wrapper as pluggy does."""
    wrapper = cast(Generator[None, Any, Any], plugin.prepare_batch(run))
    next(wrapper)
    with pytest.raises(StopIteration) as stop:
        wrapper.send(batch)
    return stop.value.value


def built(plugin: Mixup, run: Run) -> Any:
    """Send the data of `run` through the plugin's wrapper as pluggy does."""
    wrapper = plugin.build_data(run)
    next(wrapper)
    with pytest.raises(StopIteration) as stop:
        wrapper.send(run.data)
    return stop.value.value


def soft(targets: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(targets, CLASSES).float()


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize(
    "how",
    [
        {"mixup_alpha": 0.8},
        {"mixup_alpha": 0.0, "cutmix_alpha": 1.0},
        {"mixup_alpha": 0.8, "cutmix_alpha": 1.0},
        {"mixup_alpha": 0.0, "cutmix_minmax": (0.2, 0.8)},
        {"mixup_alpha": 0.8, "cutmix_minmax": (0.2, 0.8)},
    ],
)
def test_it_is_timms_mixup_drawn_from_the_plugins_own_stream(
    mode: Any, how: dict[str, Any]
) -> None:
    options: dict[str, Any] = how | {"mode": mode, "prob": 0.7}
    plugin, twin = mixup(**options, label_smoothing=0.1), mixup()
    timms = TimmMixup(**options, label_smoothing=0.1, num_classes=CLASSES)
    for n in (6, 8, 8, 4):
        np.random.seed(int(torch.randint(2**32, (), generator=twin.generator())))
        x, y = timms(images(n).inputs, images(n).targets)
        mixed = prepare(plugin, make_run(), images(n))
        assert torch.equal(mixed.inputs, x)
        assert torch.equal(mixed.targets, y)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixing_ends_as_in_timms_script_and_smoothing_goes_on(mode: Any) -> None:
    plugin = mixup(mixup_alpha=1.0, mode=mode, off_epoch=2, label_smoothing=0.1)
    timms = TimmMixup(mixup_alpha=1.0, mode=mode, label_smoothing=0.1, num_classes=CLASSES)
    run, batch = make_run(), images(6)
    for epoch in range(4):
        run.epoch = epoch
        timms.mixup_enabled = epoch < 2  # "epoch >= mixup_off_epoch", counted from 0
        mixed = prepare(plugin, run, batch)
        assert torch.equal(mixed.inputs, batch.inputs) == (epoch >= 2)
        if epoch >= 2:
            assert torch.equal(mixed.targets, timms(batch.inputs.clone(), batch.targets)[1])
            assert torch.equal(prepare(plugin, run, images(5)).inputs, images(5).inputs)


def test_mixed_images_are_convex_combinations_of_opposite_ones() -> None:
    batch = images(6)
    mixed = prepare(mixup(mixup_alpha=1.0), make_run(), batch)
    lam = float(mixed.targets[0, 0])  # image 0 is of class 0, its partner is not
    assert 0 < lam < 1
    torch.testing.assert_close(mixed.inputs, lam * batch.inputs + (1 - lam) * batch.inputs.flip(0))
    torch.testing.assert_close(
        mixed.targets, lam * soft(batch.targets) + (1 - lam) * soft(batch.targets).flip(0)
    )


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("n", [7, 3, 1])
def test_the_last_image_of_an_odd_batch_stays_as_it_is(mode: Any, n: int) -> None:
    batch = images(n)
    mixed = prepare(mixup(mixup_alpha=1.0, mode=mode), make_run(), batch)
    assert torch.equal(mixed.inputs[-1], batch.inputs[-1])
    assert torch.equal(mixed.targets[-1], soft(batch.targets)[-1])
    even = prepare(
        mixup(mixup_alpha=1.0, mode=mode), make_run(), Batch(batch.inputs[:-1], batch.targets[:-1])
    )
    if n > 1:
        assert torch.equal(mixed.inputs[:-1], even.inputs)
        assert torch.equal(mixed.targets[:-1], even.targets)
        assert not torch.equal(mixed.inputs[:-1], batch.inputs[:-1])


def test_no_other_stream_and_no_data_are_touched() -> None:
    batch, run = images(8), make_run()
    kept = batch.inputs.clone()
    np.random.seed(3)
    before = np.random.get_state()
    stream = torch.get_rng_state()
    prepare(mixup(cutmix_alpha=1.0), run, batch)
    after = np.random.get_state()
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(torch.get_rng_state(), stream)
    assert torch.equal(batch.inputs, kept)


def test_numpys_stream_comes_back_also_when_timm_fails() -> None:
    before = np.random.get_state()
    flat = Batch(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(IndexError):
        prepare(mixup(mixup_alpha=0.0, cutmix_alpha=1.0), make_run(), flat)
    assert all(np.array_equal(a, b) for a, b in zip(before, np.random.get_state(), strict=True))


def test_going_on_from_a_saved_generator_is_exact() -> None:
    plugin, run = mixup(mixup_alpha=1.0), make_run()
    prepare(plugin, run, images(6))
    resumed = mixup(mixup_alpha=1.0)
    resumed.load_generator_states(plugin.generator_states())
    for _ in range(3):
        a, b = prepare(plugin, run, images(6)), prepare(resumed, run, images(6))
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.targets, b.targets)


def test_ranks_mix_differently() -> None:
    first, second = (prepare(mixup(mixup_alpha=1.0), make_run(rank), images(6)) for rank in (0, 1))
    assert not torch.equal(first.targets, second.targets)


def test_neutral_options_pass_the_batch_on_untouched() -> None:
    batch = images(6)
    assert prepare(mixup(**Mixup.neutral), make_run(), batch) is batch


def test_smoothing_alone_is_torchs_label_smoothing() -> None:
    batch = images(5)
    smooth = prepare(mixup(prob=0.0, label_smoothing=0.2), make_run(), batch)
    logits = torch.randn(5, CLASSES, generator=torch.Generator().manual_seed(0))
    assert torch.equal(smooth.inputs, batch.inputs)
    torch.testing.assert_close(
        torch.nn.functional.cross_entropy(logits, smooth.targets),
        torch.nn.functional.cross_entropy(logits, batch.targets, label_smoothing=0.2),
    )


def test_targets_have_as_many_classes_as_the_model() -> None:
    assert prepare(mixup(), make_run(num_classes=9), images(4)).targets.shape == (4, 9)


@pytest.mark.parametrize(
    "batch", [images(4).inputs, Batch(images(4).inputs, soft(images(4).targets))]
)
def test_what_cannot_be_mixed_is_refused(batch: Any) -> None:
    with pytest.raises(UserError, match="needs batches of images with one class each"):
        prepare(mixup(), make_run(), batch)


@pytest.mark.parametrize(
    ("options", "loss", "message"),
    [
        ({}, {"name": "asymmetric"}, "takes one class per image"),
        ({}, {"name": "bce", "smoothing": 0.1}, "ignores its own smoothing"),
        ({"label_smoothing": 0.1}, {"smoothing": 0.1}, "smooths them again"),
        ({}, {"smoothing": 0.1}, None),
        ({"prob": 0.0}, {"name": "asymmetric"}, None),
    ],
)
def test_losses_that_misread_mixed_labels_are_refused(
    options: dict[str, Any], loss: dict[str, Any], message: str | None
) -> None:
    if message is None:
        built(mixup(**options), make_run(loss=loss))
    else:
        with pytest.raises(UserError, match=message):
            built(mixup(**options), make_run(loss=loss))


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({}, {"aug_splits": 3}, r"data\.augment\.splits: shows each image 3 times in a batch"),
        ({"prob": 0.0}, {"aug_splits": 3}, None),
        (
            {"cutmix_minmax": (0.2, 0.22)},
            {},
            r"plugins\.mixup\.cutmix_minmax: its shares leave no choice on images of 8 pixels",
        ),
        ({"cutmix_minmax": (0.2, 0.5)}, {"input_size": (3, 12, 8)}, None),
    ],
)
def test_data_that_cannot_be_mixed_are_refused(
    options: dict[str, Any], data: dict[str, Any], message: str | None
) -> None:
    run = make_run()
    run.data = replace(run.data, **data)
    if message is None:
        assert built(mixup(**options), run) is run.data
    else:
        with pytest.raises(UserError, match=message):
            built(mixup(**options), run)


def test_an_end_of_mixing_that_never_comes_is_said() -> None:
    run = make_run()  # of 10 epochs
    assert not mixup(off_epoch=9).idle(run)
    assert mixup(off_epoch=10).idle(run) == {
        "off_epoch": "is 10, and this run has 10 epochs, all mixed"
    }
    assert mixup(off_epoch=3, prob=0.0).idle(run) == {
        "off_epoch": "does nothing, because prob is 0"
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixup_alpha": 0.0}, "nothing would be mixed"),
        ({"mixup_alpha": -1.0}, "mixup_alpha"),
        ({"prob": 1.5}, "prob"),
        ({"mode": "half"}, "mode"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"cutmix_alpha": 1.0, "cutmix_minmax": (0.2, 0.8)}, "timm would ignore the first"),
        ({"cutmix_minmax": (0.8, 0.2)}, "is two shares with 0 <= low < high <= 1; got"),
        ({"off_epoch": -1}, "off_epoch"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Mixup(**options)


def test_plan_says_what_is_mixed() -> None:
    (line,) = mixup(
        mixup_alpha=0.4, cutmix_alpha=1.0, prob=0.8, switch_prob=0.25, mode="pair"
    ).explain(make_run())
    assert line.startswith(
        "mixes 60% of pairs of images by mixup (alpha 0.4) and 20% by CutMix (alpha 1)"
    )
    (line,) = mixup(cutmix_minmax=(0.2, 0.8), off_epoch=3).explain(make_run())
    assert "50% by CutMix (sides of 20% to 80%) up to the end of epoch 3, and none" in line
