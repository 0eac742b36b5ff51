"""The random transforms of training images, by timm's `create_transform`, tried before they are
trusted.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import timm.data
import torch
from PIL import Image

from trainkit.config.recipe import Recipe
from trainkit.data.policies import TIMMS_JITTER, leaves_jitter_out, policy_notes
from trainkit.data.preparation import AsMode
from trainkit.errors import UserError, first_line
from trainkit.seeds import isolated

_DRAWS = 20  # a policy picks other operations every time
_CHANCES = ("color_jitter_prob", "grayscale_prob", "gaussian_blur_prob", "re_prob")
"""Probabilities of what is tried every time, so that no run meets it first."""
_BLUR_NEEDS = 12
"""Pixels of a side that timm's blur can reflect 11 of at the border."""

if TYPE_CHECKING:
    from trainkit.data.images import AugmentSpec


def random_transform(
    spec: AugmentSpec,
    recipe: Recipe,
    shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> AsMode:
    """Return the transform, from an image to a tensor of `shape`: channels, height and width; with
    splits to one [splits, C, H, W].

    Raises:
        UserError: timm cannot make it, or not apply it.
    """
    if spec.gaussian_blur_prob and min(shape[1:]) < _BLUR_NEEDS:
        mark = recipe.raw.nearest("data", "augment", "gaussian_blur_prob")
        wrong = f"the blur needs images of at least {_BLUR_NEEDS} pixels; leave it out"
        raise UserError(f"{mark}: data.augment.gaussian_blur_prob: {wrong}")
    options = timm_options(spec) | {"mean": mean, "std": std}
    certain = {name: 1.0 for name in _CHANCES if options[name]}
    try:
        with isolated(0, torch.device("cpu")):
            image = Image.frombytes("L", (32, 32), random.randbytes(32 * 32))
            tried = AsMode(_made(spec, shape, options | certain), shape[0])
            for _ in range(_DRAWS):
                tried(image)
        made = _made(spec, shape, options)
    except Exception as error:  # what the policies of timm raise is of any kind
        keys = ("data", "augment", *(("auto_augment",) if spec.auto_augment else ()))
        wrong = f"timm cannot augment so: {first_line(error)}"
        raise UserError(f"{recipe.raw.nearest(*keys)}: {'.'.join(keys)}: {wrong}") from None
    return AsMode(made, shape[0])


def _made(spec: AugmentSpec, shape: tuple[int, int, int], options: dict[str, Any]) -> Any:
    if spec.splits == 1:
        return timm.data.create_transform(shape, **options)
    return SplitTransform(shape, spec.splits, spec.resplit, options)


class SplitTransform:
    """Show an image several times: first only cropped and flipped, then each time augmented as
    well.

    All share one crop and its flips, as in timm's `AugMixDataset`.

    Args:
        shape: channels, height and width of one tensor.
        splits: how often the image is shown.
        resplit: do not erase in the first.
        options: of timm's `create_transform`.
    """

    def __init__(
        self, shape: tuple[int, int, int], splits: int, resplit: bool, options: dict[str, Any]
    ) -> None:
        self._base, self._augment, self._finish = timm.data.create_transform(
            shape, separate=True, **options
        )
        self._finish_clean, self._augmented = self._finish, splits - 1
        if resplit:
            unerased = options | {"re_prob": 0.0}
            *_, self._finish_clean = timm.data.create_transform(shape, separate=True, **unerased)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Return the tensors of the splits [splits, C, H, W]."""
        base = self._base(image)
        shown = [self._finish_clean(base)]
        for _ in range(self._augmented):
            shown.append(self._finish(self._augment(base)))
        return torch.stack(shown)


def timm_options(spec: AugmentSpec) -> dict[str, Any]:
    """Return the settings as timm's `create_transform` takes them."""
    options = spec.model_dump(exclude={"repeats", "splits", "resplit"})
    options["train_crop_mode"] = options.pop("crop_mode")
    options["color_jitter"] = spec.color_jitter or None  # timm reads 0 as its default
    return options | {"is_training": True}


def augment_notes(spec: AugmentSpec | None, channels: int) -> tuple[str, ...]:
    """Return what of the settings does nothing, for images of so many channels."""
    if spec is None:
        return ()
    notes = policy_notes(spec.auto_augment, spec.color_jitter)
    for name, idle, why in _idle(spec, channels):
        if idle:
            notes.append(f"data.augment.{name}: does nothing, because {why}")
    return tuple(notes)


def _idle(spec: AugmentSpec, channels: int) -> Iterator[tuple[str, bool, str]]:
    """Yield each setting that waits for another, whether it waits in vain, and for what."""
    no_jitter = "color_jitter is 0"
    if spec.color_jitter:
        no_jitter = "timm leaves colour jitter out with auto_augment"
    jitters = bool(spec.color_jitter) and not leaves_jitter_out(spec.auto_augment)
    yield "color_jitter_prob", spec.color_jitter_prob is not None and not jitters, no_jitter
    never = spec.color_jitter_prob == 0 and jitters and spec.color_jitter != TIMMS_JITTER
    yield "color_jitter", never, "color_jitter_prob is 0"
    yield "grayscale_prob", bool(spec.grayscale_prob) and channels == 1, "the images are grey"
    for name, unset in (("re_mode", "const"), ("re_count", 1)):
        waits = getattr(spec, name) != unset and not spec.re_prob
        yield name, waits, "re_prob is 0: nothing is erased"
    yield "resplit", spec.resplit and not spec.re_prob, "re_prob is 0: nothing is erased"
    differs = (spec.auto_augment, spec.grayscale_prob, spec.gaussian_blur_prob, spec.re_prob)
    alike = spec.splits > 1 and not jitters and not any(differs)
    yield "splits", alike, "crop and flips are those of the first split, and all else is off"
