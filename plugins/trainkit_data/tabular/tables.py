"""Tables as data: which columns are features, how they become numbers, and what is to be predicted.

A column of numbers becomes one feature, with the mean of the training rows taken off and divided by
their deviation. A column of words becomes one feature for each word among the training rows: 1
where it is that word, else 0. A gap is NaN in each of them; so is a word that no training row has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch

from trainkit.config.recipe import Recipe
from trainkit.data.loader import Rows
from trainkit.data.streams import make_streams
from trainkit.data.types import Data
from trainkit.errors import UserError, suggest
from trainkit_data.tabular.columns import Cell, Floats, Table, numbers, read_table
from trainkit_data.tabular.targets import (
    Indices,
    Target,
    alike,
    as_tensor,
    read_target,
    split,
)

if TYPE_CHECKING:
    from trainkit.training.device import Device
    from trainkit_data.tabular.sources import TableSource

MOST_WORDS = 50
"""More different words than this in a column are taken for names or remarks, not for categories."""


def build(spec: TableSource, recipe: Recipe, device: Device) -> Data:
    """Return the table that a recipe names, for this rank.

    Raises:
        UserError: the file cannot be used, or the recipe does not fit it.
    """
    table = read_table(spec.path, spec.gaps)
    name = _target_name(table, spec, recipe)
    _refuse_odd(table, [name], "it cannot be predicted")
    target = read_target(table, name, spec.task)
    train, val = _split(target, table, spec, recipe)
    features = [column for column in table.columns if column != name and column not in spec.drop]
    if not features:
        raise UserError(
            f"{recipe.raw.nearest('data')}: data: no column is left beside the target {name!r}"
        )
    _refuse_odd(table, features, "leave it out: data.drop=[{}]")
    encoded = [encode(table, column, train, column in spec.categorical) for column in features]
    inputs = torch.from_numpy(np.concatenate(encoded, axis=1).astype(np.float32))
    widths = [part.shape[1] for part in encoded]
    _check_driver(spec, features, widths, recipe)
    y = as_tensor(target, train)
    gaps = inputs.isnan()
    summary = (
        f"{spec.path}: {len(train):,} training and {len(val):,} validation rows, {inputs.shape[1]} "
        "features"
    )
    if gaps.any():
        summary += f" ({gaps.float().mean():.1%} missing)"
    what = "1 number to predict" if target.classes is None else f"{target.classes} classes"
    data = make_streams(
        Rows(inputs[train], y[train]),
        Rows(inputs[val], y[val]),
        recipe,
        device,
        outputs=target.classes or 1,
        input_size=(inputs.shape[1],),
        summary=f"{summary}, {what}",
        targets=target.kind,
        missing=bool(gaps.any()),
        columns=dict(zip(features, accumulate([0, *widths]), strict=False)),
    )
    if target.classes is None:
        return data
    return replace(
        data,
        class_names=target.names,
        train_counts=target.counts(train),
        val_counts=target.counts(val),
        notes=alike(target.names, name),
    )


def _split(
    target: Target, table: Table, spec: TableSource, recipe: Recipe
) -> tuple[Indices, Indices]:
    try:
        return split(target, spec.val_fraction)
    except ValueError as error:
        mark = recipe.raw.nearest("data", "val_fraction")
        reason = str(error).split(". ")[0]
        raise UserError(
            f"{mark}: data.val_fraction: {table.rows} rows cannot be split so "
            f"({reason[:1].lower()}{reason[1:]})"
        ) from None


def _check_driver(
    spec: TableSource, features: Sequence[str], widths: Sequence[int], recipe: Recipe
) -> None:
    """Refuse a name in `missing.on` that is no column of numbers."""
    on = None if spec.missing is None else spec.missing.on
    numeric = [column for column, width in zip(features, widths, strict=True) if width == 1]
    if on is not None and on not in numeric:
        mark = recipe.raw.nearest("data", "missing", "on")
        raise UserError(
            f"{mark}: data.missing.on: no feature of numbers is called {on!r}{suggest(on, numeric)}"
        )


def _refuse_odd(table: Table, names: Sequence[str], fix: str) -> None:
    for name in names:
        if name in table.odd:
            what = f"column {name!r} holds neither numbers nor words but {table.odd[name]}"
            raise UserError(f"{table.where(0)}: {what}; {fix.format(name)}")


def _target_name(table: Table, spec: TableSource, recipe: Recipe) -> str:
    """Return the target's column, having looked at every name of a column in the recipe."""
    known = list(table.columns)
    for option, names in (
        ("target", [spec.target]),
        ("drop", spec.drop),
        ("categorical", spec.categorical),
    ):
        for name in names:
            if name is not None and name not in known:
                shown = ", ".join(known[:12]) + (" …" if len(known) > 12 else "")
                mark = recipe.raw.nearest("data", option)
                near = suggest(name, known)
                if len(known) == 1:
                    near = (
                        "; it has only one, as columns are separated by commas, semicolons, tabs or"
                        " bars"
                    )
                raise UserError(
                    f"{mark}: data.{option}: {spec.path} has no column {name!r}{near} (it has: "
                    f"{shown})"
                )
    target = spec.target or table.target
    if target is None:
        raise UserError(
            f"{recipe.raw.nearest('data')}: data.target: is required: the column to predict"
        )
    if target in spec.drop:
        raise UserError(
            f"{recipe.raw.nearest('data', 'drop')}: data.drop: {target!r} is the target"
        )
    return target


def encode(table: Table, name: str, train: Indices, categorical: bool) -> Floats:
    """Return a column as features [N, features].

    Raises:
        UserError: it holds nothing in the training rows, or words among numbers, or too many words.
    """
    cells = table.columns[name]
    if all(cells[row] is None for row in train):
        where = "in any row" if all(cell is None for cell in cells) else "in the training rows"
        raise UserError(
            f"{table.where(0)}: column {name!r} has no value {where}; leave it out: "
            f"data.drop=[{name}]"
        )
    values = (
        None
        if categorical
        else numbers(table, name, f"name it as words: data.categorical=[{name}]")
    )
    if values is None:
        return _one_of(table, name, cells, train)
    known = values[train][~np.isnan(values[train])]
    deviation = float(known.std()) or 1.0
    standardised: Floats = ((values - known.mean()) / deviation)[:, None]
    return standardised


def _one_of(table: Table, name: str, cells: Sequence[Cell], train: Indices) -> Floats:
    seen = {str(cell) for row in train if (cell := cells[row]) is not None}
    if len(seen) > MOST_WORDS:
        raise UserError(
            f"{table.where(0)}: column {name!r} has {len(seen)} different words, more than the "
            f"{MOST_WORDS} that are taken for categories; leave it out: data.drop=[{name}]"
        )
    words = {word: i for i, word in enumerate(sorted(seen))}
    features = np.zeros((len(cells), len(words)))
    for row, cell in enumerate(cells):
        if cell is None or str(cell) not in words:
            features[row] = np.nan
        else:
            features[row, words[str(cell)]] = 1
    return features
