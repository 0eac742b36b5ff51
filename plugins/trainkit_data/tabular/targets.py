"""What a table's target is: classes or numbers, and which rows are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from trainkit import UserError
from trainkit_data.tabular.columns import Table, numbers

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

    def counts(self, rows: Indices) -> tuple[int, ...]:
        """Return how many of some rows are of each class."""
        return tuple(np.bincount(self.values[rows], minlength=self.classes or 0).tolist())


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


def as_tensor(target: Target, train: Indices) -> torch.Tensor:
    """Return classes [N], or numbers [N, 1] less the training rows' mean and over their
    deviation.
    """
    if target.classes is not None:
        return torch.from_numpy(target.values)
    mean, deviation = target.values[train].mean(), target.values[train].std() or 1.0
    return torch.from_numpy(((target.values - mean) / deviation).astype(np.float32))[:, None]


def alike(names: Sequence[str], target: str) -> tuple[str, ...]:
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
