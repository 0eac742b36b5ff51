"""Hiding entries of inputs, as real data lack them: what is hidden becomes NaN, after
normalisation.

Which entries of an example are hidden is a function of (`missing.seed`, split, index). It is the
same in every epoch: what a data set lacks cannot be learned from later. The recipe's seed has no
part in it, so seeds are compared on the same data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle

import torch
from torch import Tensor

from trainkit.config.data_source import MissingSpec
from trainkit.config.recipe import Recipe
from trainkit.data.loader import Images, Keyed, Rows
from trainkit.data.order import Key
from trainkit.errors import UserError
from trainkit.hooks.run import Batch
from trainkit.seeds import derive_seed


def described(spec: MissingSpec | None) -> str:
    """Return the end of the sentence that says what the data are."""
    if spec is None:
        return ""
    low, high = spec.rate
    return f", {low:.0%} to {high:.0%} of each example hidden ({spec.kind.replace('_', ' ')})"


def hide(
    examples: Keyed, recipe: Recipe, split: str, places: Mapping[str, int] | None = None
) -> Keyed:
    """Return `examples` with what the recipe's `data.missing` hides; the same where it says
    nothing.

    Args:
        examples: what to hide from; examples in memory are hidden from once.
        recipe: the recipe.
        split: `train` or `val`.
        places: of rows of features: the place of each column among them.

    Raises:
        UserError: the recipe asks for what such examples do not have.
    """
    spec = recipe.data.missing
    if spec is None:
        return examples
    mark = recipe.raw.nearest("data", "missing")
    if places is None and spec.on is not None:
        raise UserError(
            f"{mark}: data.missing.on: names a column, and these data have none; the mean of each "
            "decides"
        )
    if places is not None and spec.per == "channel":
        raise UserError(
            f"{mark}: data.missing.per: rows of features have no channels; leave it out"
        )
    if places is not None and spec.kind == "depends" and spec.on is None:
        raise UserError(f"{mark}: data.missing.on: name the column whose value decides")
    driver = None if spec.on is None or places is None else places[spec.on]
    held = examples.in_memory if isinstance(examples, Images) else examples
    if isinstance(held, Rows):
        hidden = [mask(x, spec, (split, i), driver) for i, x in enumerate(held.inputs)]
        return Rows(held.inputs.masked_fill(torch.stack(hidden), math.nan), held.targets)
    return Hidden(examples, spec, split)


class Hidden:
    """Examples of which some entries are hidden as they are read.

    Args:
        examples: the examples.
        spec: what to hide.
        split: `train` or `val`.
    """

    def __init__(self, examples: Keyed, spec: MissingSpec, split: str) -> None:
        self.examples, self.spec, self.split = examples, spec, split

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """Return the batch of the examples with these keys."""
        inputs, targets = self.examples.__getitems__(keys)
        hidden = []
        for x, (_, i) in zip(inputs, cycle(keys), strict=False):  # once for each split of the batch
            hidden.append(mask(x, self.spec, (self.split, i)))
        return Batch(inputs.masked_fill(torch.stack(hidden), math.nan), targets)


def mask(x: Tensor, spec: MissingSpec, key: tuple[str, int], driver: int | None = None) -> Tensor:
    """Return which entries of one example to hide, of its shape.

    Args:
        x: an image [C, H, W] or a row [F], normalised; NaN where something is missing anyway.
        spec: what to hide.
        key: split and index of the example.
        driver: place of the feature that decides and stays visible; None: the mean of all entries
            decides.
    """
    generator = torch.Generator().manual_seed(derive_seed(spec.seed, "missing", *key))
    low, high = spec.rate
    if spec.kind == "depends":
        value = float((x if driver is None else x[driver]).nanmean())
        share = (
            0.5
            if math.isnan(value)
            else 1 / (1 + math.exp(-max(-500.0, min(500.0, spec.slope * value))))
        )
    else:
        share = float(torch.rand((), generator=generator))
    rate = low + (high - low) * share
    if spec.kind == "blocks":
        return _block(x, rate, spec.per, generator)
    unit = {
        "entry": x.shape,
        "pixel": x.shape[1:] if x.ndim > 1 else x.shape,
        "channel": x.shape[:1],
    }[spec.per]
    hidden = torch.rand(unit, generator=generator) < rate
    if spec.per == "channel":
        hidden = hidden.view(-1, *(1,) * (x.ndim - 1))
    hidden = hidden.expand(x.shape)
    if driver is not None:
        hidden = hidden.clone()
        hidden[driver] = False
    return hidden


def _block(x: Tensor, rate: float, per: str, generator: torch.Generator) -> Tensor:
    """Hide one rectangle of `rate` of the area, of the image's proportions; of a row, a run of
    features.

    Per channel, it is so many neighbouring channels.
    """
    hidden = torch.zeros(x.shape, dtype=torch.bool)
    sides = x.shape[1:] if x.ndim > 1 and per == "pixel" else x.shape[:1]
    place: list[slice] = []
    for side in sides:
        length = round(side * rate ** (1 / len(sides)))
        start = int(torch.randint(side - length + 1, (), generator=generator))
        place.append(slice(start, start + length))
    if len(place) == 2:
        hidden[:, place[0], place[1]] = True
    else:
        hidden[place[0]] = True
    return hidden
