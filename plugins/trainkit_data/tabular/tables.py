"""Tables as data: which columns are features, how they become numbers, and what is to be predicted.

A column of numbers becomes one feature, with the mean of the training rows taken off and divided by
their deviation. A column of words becomes one feature for each word among the training rows: 1
where it is that word, else 0. A gap is NaN in each of them; so is a word that no training row has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from trainkit.config.recipe import Recipe
from trainkit.data.loader import Rows
from trainkit.data.missing import described, hide
from trainkit.data.streams import make_streams
from trainkit.data.types import Data
from trainkit.errors import UserError, suggest
from trainkit_data.tabular.columns import Cell, Floats, Table, numbers, read_table

if TYPE_CHECKING:
    from trainkit.training.device import Device
    from trainkit_data.tabular.sources import TableSource

MOST_WORDS = 50
"""More different words than this in a column are taken for names or remarks, not for categories."""

MOST_CLASSES = 20
"""More different whole numbers than this in a target are taken for a quantity, not for classes."""

Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Target:
    """What is to be predicted: classes [N] from 0, or numbers [N].

    Attributes:
        values: the classes or numbers.
        classes: how many classes there are; None for numbers.
        names: of the classes.
    """

    values: np.ndarray[Any, Any]
    classes: int | None
    names: tuple[str, ...] = ()

    @property
    def kind(self) -> Literal["classes", "numbers"]:
        """Which of the two."""
        return "numbers" if self.classes is None else "classes"


def build(spec: TableSource, recipe: Recipe, device: Device) -> Data:
    """Return the table that a recipe names, for this rank.

    Raises:
        UserError: the file cannot be used, or the recipe does not fit it.
    """
    table = read_table(spec.path, spec.gaps)
    name = _target_name(table, spec, recipe)
    _refuse_odd(table, [name], "it cannot be predicted")
    target = read_target(table, name, spec.task)
    try:
        train, val = split(target, spec.val_fraction)
    except ValueError as error:
        mark, count = (
            recipe.raw.nearest("data", "val_fraction"),
            f"{table.rows} rows cannot be split so",
        )
        reason = str(error).split(". ")[0]
        raise UserError(
            f"{mark}: data.val_fraction: {count} ({reason[:1].lower()}{reason[1:]})"
        ) from None
    features = [column for column in table.columns if column != name and column not in spec.drop]
    if not features:
        raise UserError(
            f"{recipe.raw.nearest('data')}: data: no column is left beside the target {name!r}"
        )
    _refuse_odd(table, features, "leave it out: data.drop=[{}]")
    encoded = {
        column: encode(table, column, train, column in spec.categorical) for column in features
    }
    inputs = torch.from_numpy(np.concatenate(list(encoded.values()), axis=1).astype(np.float32))
    y = _target_tensor(target, train)
    places = {
        column: int(sum(e.shape[1] for e in list(encoded.values())[:i]))
        for i, column in enumerate(features)
    }
    if spec.missing is not None and (on := spec.missing.on) is not None:
        numeric = [column for column in features if encoded[column].shape[1] == 1]
        if on not in numeric:
            mark = recipe.raw.nearest("data", "missing", "on")
            raise UserError(
                f"{mark}: data.missing.on: no feature of numbers is called "
                f"{on!r}{suggest(on, numeric)}"
            )
    rows = [
        hide(Rows(inputs[index], y[index]), recipe, split_name, places)
        for index, split_name in (
            (torch.from_numpy(train), "train"),
            (torch.from_numpy(val), "val"),
        )
    ]
    gaps = inputs.isnan()
    what = "1 number to predict" if target.classes is None else f"{target.classes} classes"
    summary = (
        f"{spec.path}: {len(train):,} training and {len(val):,} validation rows, {inputs.shape[1]} "
        "features"
    )
    if gaps.any():
        summary += f" ({gaps.float().mean():.1%} missing)"
    data = make_streams(
        rows[0],
        rows[1],
        recipe,
        device,
        outputs=target.classes or 1,
        input_size=(inputs.shape[1],),
        summary=f"{summary}, {what}{described(spec.missing)}",
        targets=target.kind,
        missing=bool(gaps.any()) or spec.missing is not None,
    )
    if target.classes is None:
        return data
    counts = [
        tuple(np.bincount(target.values[part], minlength=target.classes).tolist())
        for part in (train, val)
    ]
    return replace(
        data,
        class_names=target.names,
        train_counts=counts[0],
        val_counts=counts[1],
        notes=_alike(target.names, name),
    )


def _alike(names: Sequence[str], target: str) -> tuple[str, ...]:
    """Return the note that says which classes differ in nothing but capitals."""
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(name.casefold(), name)
        if other != name:
            return (
                (
                    f"classes {other!r} and {name!r} of {target!r} differ only in capitals; they "
                    "stay two classes"
                ),
            )
    return ()


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


def read_target(table: Table, name: str, task: str) -> Target:
    """Return what is to be predicted from.

    Raises:
        UserError: it has gaps, or is not of the kind that `task` says, or all rows are alike.
    """
    cells = table.columns[name]
    gaps = [row for row, cell in enumerate(cells) if cell is None]
    if gaps:
        count = (
            f"{len(gaps)} row(s) have no target"
            if len(gaps) < len(cells)
            else "no row has a target"
        )
        raise UserError(
            f"{table.where(gaps[0])}: {count} ({name!r}), this is the first; take them out of the "
            "table"
        )
    values = (
        None
        if task == "classification"
        else numbers(table, name, "set data.task to classification", codes=task == "auto")
    )
    if values is None and task == "regression":
        raise UserError(
            f"{table.where(0)}: the target {name!r} holds words such as {cells[0]!r}, no numbers"
        )
    whole = (
        values is not None
        and bool((values == np.rint(values)).all())
        and len(set(values)) <= MOST_CLASSES
    )
    if values is not None and (task == "regression" or not whole):
        if len(set(values)) == 1:
            raise UserError(
                f"{table.where(0)}: the target {name!r} is {values[0]:g} in every row: nothing to "
                "learn"
            )
        return Target(values, None)
    labels = sorted(
        set(cells if values is None else values), key=lambda cell: (isinstance(cell, str), cell)
    )
    if len(labels) == 1:
        raise UserError(
            f"{table.where(0)}: the target {name!r} is {cells[0]} in every row: one class only"
        )
    place = {label: i for i, label in enumerate(labels)}
    classes = np.array([place[label] for label in (cells if values is None else values)])
    rare = np.flatnonzero(np.bincount(classes) < 2)
    if len(rare):
        row = int(np.flatnonzero(classes == rare[0])[0])
        raise UserError(
            f"{table.where(row)}: class {cells[row]!r} of {name!r} has this one row, and training "
            "and validation need one each; take the row out, or set data.task to regression if it "
            "is a quantity"
        )
    names = tuple(label if isinstance(label, str) else f"{label:g}" for label in labels)
    return Target(classes, len(labels), names)


def split(target: Target, val_fraction: float) -> tuple[Indices, Indices]:
    """Return the rows for training and those for validation, the same for every recipe seed,
    stratified by class.

    Raises:
        ValueError: there are too few rows.
    """
    from sklearn.model_selection import train_test_split

    stratify = target.values if target.classes else None
    rows = np.arange(len(target.values))
    train, val = train_test_split(rows, test_size=val_fraction, stratify=stratify, random_state=0)
    return np.sort(train), np.sort(val)


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


def _target_tensor(target: Target, train: Indices) -> torch.Tensor:
    """Return classes [N], or numbers [N, 1] less the training rows' mean and over their
    deviation.
    """
    if target.classes is not None:
        return torch.from_numpy(target.values)
    mean, deviation = target.values[train].mean(), target.values[train].std() or 1.0
    return torch.from_numpy(((target.values - mean) / deviation).astype(np.float32))[:, None]
