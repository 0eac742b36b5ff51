"""Ratings as data: one row per user, NaN where the user has not rated; some of each user's ratings
are held out.

Input of a user, in training and in validation, are the ratings that are not held out. Those are
also the targets in training (an autoencoder); the held-out ones are the targets in validation.
Targets have the mean of all training ratings taken off, so a model predicts by how much a rating
differs from it; errors are in the ratings' own unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trainkit.config.recipe import Recipe
from trainkit.data.order import Key
from trainkit.data.streams import make_streams
from trainkit.data.types import Data
from trainkit.errors import UserError
from trainkit.hooks.run import Batch
from trainkit.seeds import derive_seed
from trainkit.system.foreign import no_file
from trainkit.system.paths import is_file, is_folder
from trainkit_data.tabular.numerals import plain
from trainkit_data.tabular.text_files import read_text

if TYPE_CHECKING:
    from trainkit.training.device import Device
    from trainkit_data.tabular.sources import RatingsSource

Array = np.ndarray[Any, Any]

FILES = {"u.data": "\t", "ratings.dat": "::", "ratings.csv": ","}
"""The files of MovieLens that hold ratings, and what separates their fields: user, item, rating,
time.
"""


@dataclass(frozen=True)
class Ratings:
    """Ratings as a list: of user u[i] for item v[i], counted from 0.

    Attributes:
        u: users [n].
        v: items [n].
        r: ratings [n].
        users: how many users there are.
        items: how many items there are.
    """

    u: Array
    v: Array
    r: Array
    users: int
    items: int

    def of(self, chosen: Array) -> Ratings:
        """Return those of them that are `chosen`, a boolean for each, among the same users and
        items.
        """
        return Ratings(self.u[chosen], self.v[chosen], self.r[chosen], self.users, self.items)


class SparseRows:
    """Batches of full rows, made from lists of what is known in each.

    Args:
        inputs: known inputs.
        targets: known targets, of the same users and items.
        users: which users are examples, in order.
    """

    def __init__(self, inputs: Ratings, targets: Ratings, users: Array) -> None:
        self._users = torch.from_numpy(users)
        self._inputs, self._targets = _Lists(inputs), _Lists(targets)

    def __len__(self) -> int:
        return len(self._users)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """Return rows [N, items] of inputs and targets, NaN where nothing is known."""
        users = self._users[[index for _, index in keys]]
        return Batch(self._inputs.rows(users), self._targets.rows(users))


class _Lists:
    def __init__(self, ratings: Ratings) -> None:
        order = np.lexsort((ratings.v, ratings.u))
        self.items = ratings.items
        self.v = torch.from_numpy(ratings.v[order])
        self.r = torch.from_numpy(ratings.r[order].astype(np.float32))
        counts = np.bincount(ratings.u, minlength=ratings.users)
        self.ends = torch.from_numpy(np.cumsum(counts))
        self.counts = torch.from_numpy(counts)

    def rows(self, users: Tensor) -> Tensor:
        found = torch.full((len(users), self.items), math.nan)
        counts = self.counts[users]
        row = torch.repeat_interleave(torch.arange(len(users)), counts)
        # The place of each rating in the lists: counted from the end of its user's, row by row.
        place = torch.arange(len(row)) + torch.repeat_interleave(
            self.ends[users] - counts.cumsum(0), counts
        )
        found[row, self.v[place]] = self.r[place]
        return found


def build(spec: RatingsSource, recipe: Recipe, device: Device) -> Data:
    """Return the ratings that a recipe names, for this rank.

    Raises:
        UserError: the file cannot be used.
    """
    ratings = made_up(spec) if spec.path is None else read_ratings(Path(spec.path))
    held = held_out(ratings, spec.val_fraction)
    known, hidden = ratings.of(~held), ratings.of(held)
    if not len(hidden.r):
        mark = recipe.raw.nearest("data", "val_fraction")
        raise UserError(
            f"{mark}: data.val_fraction: {spec.val_fraction:g} of any user's ratings is none; "
            "raise it"
        )
    mean = known.r.mean()
    centred, goal = (
        Ratings(part.u, part.v, part.r - mean, part.users, part.items) for part in (known, hidden)
    )
    train = SparseRows(known, centred, np.unique(known.u))
    val = SparseRows(known, goal, np.unique(hidden.u))
    known_share = len(known.r) / (len(train) * ratings.items)
    summary = (
        f"{spec.path or 'made-up ratings'}: {len(train):,} users, {ratings.items:,} items, "
        f"{len(known.r):,} ratings to train on ({known_share:.1%} of all) and {len(hidden.r):,} of "
        f"{len(val):,} users held out, mean {mean:.4g}"
    )
    return make_streams(
        train,
        val,
        recipe,
        device,
        outputs=ratings.items,
        input_size=(ratings.items,),
        summary=summary,
        targets="numbers",
        missing=True,
    )


def held_out(ratings: Ratings, fraction: float) -> Array:
    """Return which ratings are for validation: of a user with n, floor(n * fraction) and never
    all; always the same.
    """
    draw = np.random.default_rng(derive_seed(0, "held-out ratings")).random(len(ratings.r))
    order = np.lexsort((draw, ratings.u))
    counts = np.bincount(ratings.u, minlength=ratings.users)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    wanted = np.minimum(np.floor(counts * fraction + 1e-9), counts - 1)
    chosen: Array = rank < wanted[ratings.u]
    return chosen


def made_up(spec: RatingsSource) -> Ratings:
    """Return ratings r = 3.5 + sum_k p_uk q_vk / sqrt(rank) + noise, p and q standard normal, each
    user's share known.

    The share is drawn log-uniformly from `spec.rate`, independently of the ratings: how many
    ratings a user has says nothing about them. Every user has two ratings at least.
    """
    draw = np.random.default_rng(derive_seed(spec.seed, "made-up ratings"))
    p, q = (
        draw.standard_normal((spec.users, spec.rank)),
        draw.standard_normal((spec.items, spec.rank)),
    )
    r = (
        3.5
        + p @ q.T / math.sqrt(spec.rank)
        + spec.noise * draw.standard_normal((spec.users, spec.items))
    )
    low, high = np.log(spec.rate)
    rate = np.exp(draw.uniform(low, high, spec.users))
    place = draw.random((spec.users, spec.items))
    known = place < rate[:, None]
    known[np.arange(spec.users)[:, None], np.argsort(place, axis=1)[:, :2]] = True
    u, v = np.nonzero(known)
    return Ratings(u, v, r[u, v], spec.users, spec.items)


def read_ratings(path: Path) -> Ratings:
    """Read a file of MovieLens, known by its name (see `FILES`), or the first of them in a folder.

    Raises:
        UserError: it is not there, or a line is not user, item, rating[, time], or a user rates an
            item twice.
    """
    file = (
        next((path / name for name in FILES if is_file(path / name)), path)
        if is_folder(path)
        else path
    )
    wrong = no_file(file)
    if wrong is not None or (separator := FILES.get(file.name)) is None:
        state = "is not a file of ratings" if wrong in (None, "is a folder") else wrong
        raise UserError(
            f"{path}: {state}; expected {', '.join(FILES)} of MovieLens, or a folder with one of "
            "them"
        )
    lines = list(enumerate(read_text(file).splitlines(), start=1))
    if separator == "," and lines and plain(lines[0][1].split(",")[-1].strip()) is None:
        del lines[0]  # the names of the columns
    found = _parse(file, lines, separator)
    if not found:
        raise UserError(f"{file}: holds no rating")
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    u = np.array([users.setdefault(user, len(users)) for user, _ in found])
    v = np.array([items.setdefault(item, len(items)) for _, item in found])
    return Ratings(u, v, np.array(list(found.values())), len(users), len(items))


def _parse(
    file: Path, lines: Iterable[tuple[int, str]], separator: str
) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = {}
    for number, line in lines:
        fields = [part.strip() for part in line.split(separator)]
        if fields == [""]:
            continue
        if len(fields) not in (3, 4) or not all(fields[:2]):
            shown = "tabs" if separator == "\t" else separator
            raise UserError(
                f"{file}:{number}: not user, item, rating, time between {shown}: {line.strip()!r}"
            )
        rating = plain(fields[2])
        if rating is None or not math.isfinite(rating):
            raise UserError(f"{file}:{number}: the rating {fields[2]!r} is no number")
        key = (fields[0], fields[1])
        if key in found:
            raise UserError(
                f"{file}:{number}: user {key[0]} has already rated item {key[1]}; keep one of "
                "the two"
            )
        found[key] = rating
    return found
