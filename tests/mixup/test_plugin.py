"""The `mixup` plugin: timm's mixing on streams of the plugin's own."""

from collections.abc import Generator
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


def soft(targets: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(targets, CLASSES).float()


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_it_is_timms_mixup_drawn_from_the_plugins_own_stream(
    mode: Any, alphas: tuple[float, float]
) -> None:
    options: dict[str, Any] = {
        "mixup_alpha": alphas[0],
        "cutmix_alpha": alphas[1],
        "mode": mode,
        "prob": 0.7,
    }
    plugin, twin = mixup(**options, label_smoothing=0.1), mixup()
    timms = TimmMixup(**options, label_smoothing=0.1, num_classes=CLASSES)
    for n in (6, 8, 8, 4):
        np.random.seed(int(torch.randint(2**32, (), generator=twin.generator())))
        x, y = timms(images(n).inputs, images(n).targets)
        mixed = prepare(plugin, make_run(), images(n))
        assert torch.equal(mixed.inputs, x)
        assert torch.equal(mixed.targets, y)


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
        mixup(**options).on_fit_start(make_run(loss=loss))
    else:
        with pytest.raises(UserError, match=message):
            mixup(**options).on_fit_start(make_run(loss=loss))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixup_alpha": 0.0}, "nothing would be mixed"),
        ({"mixup_alpha": -1.0}, "mixup_alpha"),
        ({"prob": 1.5}, "prob"),
        ({"mode": "half"}, "mode"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
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
