"""Checks that every source of data should pass, in one call."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from trainkit.config.data_source import DataSource
from trainkit.config.find_source import source_class
from trainkit.config.raw import merge
from trainkit.config.recipe import Recipe, read_recipe
from trainkit.data.build import build_source
from trainkit.data.types import Data
from trainkit.errors import RecipeError, TrainingError, UserError
from trainkit.hooks.run import Batch
from trainkit.testing.case import CheckError

_RECIPE: Mapping[str, Any] = {
    "seed": 3,
    "model": {"name": "test_vit"},
    "data": {"batch_size": 4, "eval_batch_size": 6},
    "train": {"device": "cpu"},
}


@dataclass(frozen=True)
class Examined:
    """A source under examination.

    Attributes:
        name: as a recipe names it.
        section: what a recipe's `data:` says of it, its name included.
        recipe: the other sections of the recipe.
    """

    name: str
    section: Mapping[str, Any]
    recipe: Mapping[str, Any]

    @property
    def cls(self) -> type[DataSource]:
        """The source's class."""
        return source_class(self.name, Path())

    def read(self, **options: Any) -> Recipe:
        """Return the recipe, with some options of the source replaced."""
        seed = options.pop("recipe_seed", None)
        given = merge(self.recipe, {"data": {**self.section, **options}})
        recipe, _, problems = read_recipe(given if seed is None else {**given, "seed": seed})
        if recipe is None or problems:
            raise RecipeError(problems)
        return recipe

    def build(self, rank: int = 0, world: int = 1, **options: Any) -> Data:
        """Build the data of one rank."""
        device = SimpleNamespace(
            rank=rank, world=world, is_main=rank == 0, torch=torch.device("cpu")
        )
        return build_source(self.read(**options), cast(Any, device))


Check = Callable[[Examined], None]


def check_source(
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    recipe: Mapping[str, Any] | None = None,
) -> None:
    """Run every check on a source of data.

    Args:
        name: as a recipe names it: an installed source, or `path/to/file.py:Class` (from the
            working directory).
        options: example options, as in a recipe; they should make a small set: it is read about
            twenty times.
        recipe: what the other sections of the recipe are to say, as nested mappings.

    Raises:
        CheckError: some checks failed; the message has all of them.
    """
    given = merge(_RECIPE, dict(recipe or {}))
    section = {**given["data"], **(options or {}), "name": name}
    examined = Examined(name, section, given)
    failed = []
    for check in SOURCE_CHECKS:
        try:
            check(examined)
        except (AssertionError, UserError, TrainingError) as error:
            failed.append(f"{check.__name__}: {error}")
            if check in (check_class, check_built):
                break  # the others have nothing to look at
    if failed:
        total = len(SOURCE_CHECKS)
        raise CheckError("\n".join([f"{len(failed)} of {total} checks failed", *failed]))


def check_class(examined: Examined) -> None:
    """It is found, says in a sentence what it is, and describes each option."""
    cls = examined.cls
    _demand(bool(cls.__doc__), "has no docstring")
    silent = [name for name, field in cls.model_fields.items() if not field.description]
    silent = [name for name in silent if name != "name"]
    _demand(not silent, f"options without a description: {', '.join(silent)}")
    wrong = {**examined.section, "no_such_option": 1}
    try:
        Examined(examined.name, wrong, examined.recipe).read()
    except RecipeError:
        return
    raise CheckError("takes an option that it does not have; keep `extra` forbidden")


def check_built(examined: Examined) -> None:
    """It builds data that say what they are, and leaves the global random streams alone."""
    before = _random_state()
    data = examined.build()
    _demand(before == _random_state(), "building draws from the global random streams")
    _demand(data.num_classes >= 1, f"num_classes is {data.num_classes}")
    _demand(bool(data.summary) and "\n" not in data.summary, "the summary is one line that says it")
    sizes = {len(data.class_names), len(data.train_counts), len(data.val_counts)} - {0}
    _demand(sizes <= {data.num_classes}, "class_names and counts do not have num_classes entries")
    data.close()


def check_examples(examined: Examined) -> None:
    """Inputs have the shape `input_size` and are finite or declared missing; targets are in
    range.
    """
    data = examined.build()
    for batch in [*data.train.batches(0, 0), *data.val]:
        _demand(isinstance(batch, Batch), f"a batch is a {type(batch).__name__}, no trainkit.Batch")
        inputs, targets = batch
        shape = (len(targets), *data.input_size)
        _demand(tuple(inputs.shape) == shape, f"inputs are {[*inputs.shape]}, not {[*shape]}")
        _demand(inputs.dtype == torch.float32, f"inputs are {inputs.dtype}, not float32")
        _demand(not inputs.isinf().any(), "an input is infinite")
        _demand(data.missing or not inputs.isnan().any(), "inputs have NaN, and missing=False")
        _check_targets(targets, data)


def _check_targets(targets: Tensor, data: Data) -> None:
    if data.targets == "classes":
        _demand(targets.dtype == torch.int64, f"classes are {targets.dtype}, not int64")
        _demand(targets.ndim == 1, f"classes are {[*targets.shape]}, not [N]")
        within = bool(((targets >= 0) & (targets < data.num_classes)).all())
        _demand(within, f"a class is not in [0, {data.num_classes})")
        return
    shape = (len(targets), data.num_classes)
    _demand(tuple(targets.shape) == shape, f"numbers are {[*targets.shape]}, not {[*shape]}")
    _demand(targets.is_floating_point(), f"numbers are {targets.dtype}")
    _demand(not targets.isinf().any(), "a target is infinite")


def check_order(examined: Examined) -> None:
    """The order is a function of the seed, the epoch and the position, and of nothing else."""
    data, again = examined.build(), examined.build()
    last = data.train.steps_per_epoch - 1
    for epoch in (0, 1):
        whole = _rows(data.train.batches(epoch, 0))
        torch.rand(1)
        _demand(whole == _rows(again.train.batches(epoch, 0)), f"epoch {epoch} differs when anew")
        tail = _rows(data.train.batches(epoch, last))
        _demand(
            bool(tail) and whole[-len(tail) :] == tail,
            f"epoch {epoch} from step {last} on is not the end of the whole epoch",
        )
    other = examined.build(recipe_seed=4)
    _demand(
        _rows(data.train.batches(0, 0)) != _rows(other.train.batches(0, 0)),
        "another seed of the recipe gives the same training batches",
    )


def check_windows(examined: Examined) -> None:
    """An epoch has as many steps as it says, and the weights of a window add up to one."""
    data = examined.build()
    count = len(list(data.train.batches(0, 0)))
    windows = [data.train.window(0, step) for step in range(data.train.steps_per_epoch)]
    said = sum(len(window.weights) for window in windows)
    _demand(count == said, f"an epoch has {count} micro-batches, and its windows say {said}")
    for window in windows:
        total = sum(window.weights)
        _demand(math.isclose(total, 1, rel_tol=1e-6), f"the weights of a window add up to {total}")


def check_validation(examined: Examined) -> None:
    """Validation data are the same at every pass and for every seed of the recipe."""
    data, other = examined.build(), examined.build(recipe_seed=4)
    first = _rows(data.val)
    _demand(first == _rows(data.val), "a second pass over the validation data differs")
    _demand(first == _rows(other.val), "another seed gives other validation data")
    _demand(len(data.val) == len(list(data.val)), "len(val) is not the number of its batches")


def check_ranks(examined: Examined) -> None:
    """Two ranks together see every example once, in training and in validation.

    A last micro-batch that is too short for both ranks may be left out.
    """
    batch = examined.read().data.batch_size
    alone = examined.build(batch_size=2 * batch)
    ranks = [examined.build(rank, 2) for rank in (0, 1)]
    shared = Counter(row for data in ranks for row in _rows(data.val))
    same = shared == Counter(_rows(alone.val))
    _demand(same, "two ranks do not share the validation data")
    shared = Counter(row for data in ranks for row in _rows(data.train.batches(0, 0)))
    whole = Counter(_rows(alone.train.batches(0, 0)))
    left_out = (whole - shared).total()
    _demand(shared <= whole and left_out < 2 * batch, "two ranks do not share the training data")


def check_workers(examined: Examined) -> None:
    """Processes that read change nothing."""
    alone, helped = examined.build(workers=0), examined.build(workers=2)
    try:
        same = _rows(alone.train.batches(0, 0)) == _rows(helped.train.batches(0, 0))
        _demand(same, "with two workers the training batches differ")
        _demand(_rows(alone.val) == _rows(helped.val), "with two workers the validation differs")
    finally:
        helped.close()


SOURCE_CHECKS: Sequence[Check] = (
    check_class,
    check_built,
    check_examples,
    check_order,
    check_windows,
    check_validation,
    check_ranks,
    check_workers,
)
"""Every check of a source, in the order in which they are run."""


def _rows(batches: Any) -> list[bytes]:
    """Return the bytes of every example, in order."""
    return [row for batch in batches for row in _bytes(batch)]


def _bytes(batch: Batch) -> Iterator[bytes]:
    for one, target in zip(*batch, strict=True):
        yield one.numpy().tobytes() + target.numpy().tobytes()


def _random_state() -> tuple[object, bytes, bytes]:
    legacy = cast(Any, np.random.get_state())
    return random.getstate(), legacy[1].tobytes(), torch.get_rng_state().numpy().tobytes()


def _demand(holds: bool | Tensor, wrong: str) -> None:
    if not holds:
        raise CheckError(wrong)
