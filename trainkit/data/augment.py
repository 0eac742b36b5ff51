"""The random transforms of training images, by timm's `create_transform`, tried before they are
trusted.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import timm.data
import torch
from PIL import Image

from trainkit.config.recipe import Recipe
from trainkit.data.policies import policy_notes
from trainkit.data.preparation import AsMode
from trainkit.errors import UserError, first_line
from trainkit.seeds import isolated

_DRAWS = 20  # a policy picks other operations every time

if TYPE_CHECKING:
    from trainkit.data.images import AugmentSpec


def random_transform(
    spec: AugmentSpec,
    recipe: Recipe,
    shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> AsMode:
    """Return the transform, from an image to a tensor of `shape`: channels, height and width.

    Raises:
        UserError: timm cannot make it, or not apply it.
    """
    # color_jitter is a strength for timm, or None: it reads 0 as the default.
    options: dict[str, Any] = spec.model_dump() | {"color_jitter": spec.color_jitter or None}
    try:
        made = timm.data.create_transform(shape, is_training=True, mean=mean, std=std, **options)
        transform = AsMode(made, shape[0])
        with isolated(0, torch.device("cpu")):
            image = Image.frombytes("L", (32, 32), random.randbytes(32 * 32))
            for _ in range(_DRAWS):
                transform(image)
    except Exception as error:  # what the policies of timm raise is of any kind
        keys = ("data", "augment", *(("auto_augment",) if spec.auto_augment else ()))
        wrong = f"timm cannot augment so: {first_line(error)}"
        raise UserError(f"{recipe.raw.nearest(*keys)}: {'.'.join(keys)}: {wrong}") from None
    return transform


def augment_notes(spec: AugmentSpec | None) -> tuple[str, ...]:
    """Return what of the settings does nothing."""
    return () if spec is None else tuple(policy_notes(spec.auto_augment, spec.color_jitter))
