"""Ratings: made up or from MovieLens's files, held out by user, NaN where nobody rated."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from trainkit_data.tabular.ratings import Ratings, SparseRows, held_out, made_up, read_ratings
from trainkit_data.tabular.sources import RatingsSource

from trainkit.data.build import build_source
from trainkit.data.types import Data
from trainkit.errors import UserError
from trainkit.hooks.run import Batch
from trainkit.training.build import compose
from trainkit.training.device import Device

Write = Callable[..., Path]

LINES = [(1, 10, 4), (1, 30, 2), (2, 10, 5), (2, 20, 3), (2, 30, 1), (3, 20, 4)]


def load(write: Write, options: str) -> Data:
    recipe = compose(
        write(f"model: {{name: autoencoder}}\ndata: {{name: ratings{options}}}\n")
    ).recipe
    return build_source(recipe, Device(recipe))


def rows(data: Data) -> tuple[Batch, Batch]:
    """Return all training rows in their own order, and all validation rows."""
    train = data.train._loader.dataset  # type: ignore[attr-defined]
    batches = list(data.val)
    val = Batch(torch.cat([b.inputs for b in batches]), torch.cat([b.targets for b in batches]))
    return train.__getitems__([(0, i) for i in range(len(train))]), val


def text(name: str) -> str:
    separator = {"u.data": "\t", "ratings.dat": "::", "ratings.csv": ","}[name]
    head = "userId,movieId,rating,timestamp\n" if name == "ratings.csv" else ""
    return head + "".join(separator.join(map(str, (*line, 978300760))) + "\n" for line in LINES)


# Made-up ratings.


def test_made_up_ratings_have_the_statistics_that_they_should() -> None:
    found = made_up(RatingsSource(name="ratings", noise=0.0))
    full = made_up(RatingsSource(name="ratings", noise=0.0, rate=(1.0, 1.0)))
    assert (found.users, found.items) == (800, 200)
    assert len(full.r) == 160_000
    matrix = full.r.reshape(800, 200) - 3.5
    assert np.linalg.matrix_rank(matrix) == 4
    assert matrix.mean() == pytest.approx(0, abs=0.15)
    assert matrix.std() == pytest.approx(1, abs=0.1)
    counts = np.bincount(found.u)
    expected = 200 * (0.8 - 0.03) / math.log(0.8 / 0.03)  # the mean of a log-uniform rate
    assert counts.mean() == pytest.approx(expected, rel=0.1)
    assert counts.min() >= 2
    logs = np.log(counts / 200)
    assert np.quantile(logs, 0.5) == pytest.approx((math.log(0.03) + math.log(0.8)) / 2, abs=0.15)


def test_how_many_ratings_a_user_has_says_nothing_about_them() -> None:
    found = made_up(RatingsSource(name="ratings", users=3000))
    counts = np.bincount(found.u)
    means = np.bincount(found.u, found.r) / counts
    assert abs(np.corrcoef(np.log(counts), means)[0, 1]) < 2.5 / math.sqrt(3000)


def test_made_up_ratings_depend_on_their_own_seed_alone(write: Write) -> None:
    one, two = rows(load(write, ", seed: 1"))[0], rows(load(write, ", seed: 2"))[0]
    assert not torch.equal(one.inputs.isnan(), two.inputs.isnan())
    recipe = compose(
        write("seed: 9\nmodel: {name: autoencoder}\ndata: {name: ratings, seed: 1}\n")
    ).recipe
    again = rows(build_source(recipe, Device(recipe)))[0]
    assert torch.equal(again.inputs.nan_to_num(), one.inputs.nan_to_num())


# Rows and what is held out.


def test_held_out_ratings_are_targets_of_validation_and_inputs_of_nothing(write: Write) -> None:
    data = load(write, "")
    train, val = rows(data)
    assert data.targets == "numbers"
    assert data.missing
    assert data.num_classes == 200
    assert data.input_size == (200,)
    known = ~train.inputs.isnan()
    mean = train.inputs[known].mean()
    assert torch.equal(known, ~train.targets.isnan())
    torch.testing.assert_close(train.targets[known], train.inputs[known] - mean, atol=1e-5, rtol=0)
    assert (~val.inputs.isnan() & ~val.targets.isnan()).sum() == 0
    assert torch.equal(
        val.inputs.nan_to_num(), train.inputs[_users(train.inputs, val.inputs)].nan_to_num()
    )
    everything = made_up(RatingsSource(name="ratings"))
    assert known.sum() + (~val.targets.isnan()).sum() == len(everything.r)
    assert f"{known.sum():,} ratings to train on" in data.summary
    share = (~val.targets.isnan()).sum(dim=1) / (
        (~val.targets.isnan()).sum(dim=1) + (~val.inputs.isnan()).sum(dim=1)
    )
    assert share.max() <= 0.1 + 1e-6


def _users(train: Tensor, val: Tensor) -> Tensor:
    keys = {row.nan_to_num(-99).numpy().tobytes(): i for i, row in enumerate(train)}
    return torch.tensor([keys[row.nan_to_num(-99).numpy().tobytes()] for row in val])


def test_a_user_keeps_a_rating_and_the_rest_is_floored() -> None:
    u = np.array([0] + [1] * 2 + [2] * 10 + [3] * 19)
    ratings = Ratings(u, np.arange(len(u)), np.ones(len(u)), 4, len(u))
    assert np.bincount(u[held_out(ratings, 0.1)], minlength=4).tolist() == [0, 0, 1, 1]
    assert np.bincount(u[held_out(ratings, 0.99)], minlength=4).tolist() == [0, 1, 9, 18]
    assert np.array_equal(held_out(ratings, 0.5), held_out(ratings, 0.5))


def test_rows_are_the_ratings_in_any_order_of_keys() -> None:
    ratings = Ratings(
        np.array([2, 0, 2, 1]), np.array([1, 0, 0, 3]), np.array([5.0, 4.0, 3.0, 2.0]), 3, 4
    )
    nothing = ratings.of(np.zeros(4, dtype=bool))
    made = SparseRows(ratings, nothing, np.array([0, 1, 2]))
    inputs, targets = made.__getitems__([(0, 2), (5, 0), (0, 2)])
    nan = math.nan
    wanted = torch.tensor([[3, 5, nan, nan], [4, nan, nan, nan], [3, 5, nan, nan]])
    torch.testing.assert_close(inputs, wanted, equal_nan=True)
    assert targets.isnan().all()
    assert len(made) == 3


# MovieLens files.


@pytest.mark.parametrize("name", ["u.data", "ratings.dat", "ratings.csv"])
def test_files_of_movielens_are_read(write: Write, name: str) -> None:
    path = write(text(name), name)
    for given in (path, path.parent):
        found = read_ratings(given)
        assert (found.users, found.items) == (3, 3)
        assert list(zip(found.u, found.v, found.r, strict=True)) == [
            (0, 0, 4), (0, 1, 2), (1, 0, 5), (1, 2, 3), (1, 1, 1), (2, 2, 4),
        ]  # fmt: skip


def test_a_file_of_ratings_becomes_data(write: Write) -> None:
    path = write(text("u.data"), "u.data")
    data = load(write, f", path: '{path}', val_fraction: 0.5")
    train, val = rows(data)
    assert train.inputs.shape == (3, 3)
    assert val.inputs.shape == (2, 3)
    mean = f"{train.inputs.nanmean().item():.4g}"
    counts = "3 users, 3 items, 4 ratings to train on (44.4% of all) and 2 of 2 users held out"
    assert data.summary == f"{path}: {counts}, mean {mean}"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("u.data", "1\t2\n", "u.data:1: not user, item, rating, time between tabs: '1\\t2'"),
        (
            "ratings.dat",
            "1::2::3::4\n1:2:3\n",
            "ratings.dat:2: not user, item, rating, time between ::: '1:2:3'",
        ),
        ("ratings.csv", "u,i,r\n1,2,good\n", "ratings.csv:2: the rating 'good' is no number"),
        ("u.data", "1\t2\tinf\t4\n", "u.data:1: the rating 'inf' is no number"),
        (
            "u.data",
            "1\t2\t3\t4\n\n1\t2\t5\t4\n",
            "u.data:3: user 1 has already rated item 2; keep one of the two",
        ),
        ("u.data", "", "u.data: holds no rating"),
        ("ratings.csv", "userId,movieId,rating,timestamp\n", "ratings.csv: holds no rating"),
        (
            "u.data",
            b"1\t2\t\xff\t4\n",
            "u.data:1: is no text in UTF-8 (byte 0xff); save it as UTF-8",
        ),
        (
            "ratings.txt",
            "1,2,3\n",
            "ratings.txt: is not a file of ratings; expected u.data, ratings.dat, ratings.csv",
        ),
    ],
)
def test_a_file_that_is_not_ratings_is_refused(
    write: Write, name: str, content: str, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        read_ratings(write(content, name))
    assert str(caught.value).split("/files/")[-1].startswith(message)


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: there is no such file; expected u.data"):
        read_ratings(tmp_path / "nowhere")
    with pytest.raises(
        UserError, match=r"is not a file of ratings; expected u.data, ratings.dat, ratings.csv"
    ):
        read_ratings(tmp_path)


def test_nothing_to_hold_out_is_refused(write: Write) -> None:
    path = write(text("u.data"), "u.data")
    with pytest.raises(
        UserError,
        match=r"recipe.yaml:2: data.val_fraction: 0.1 of any user's ratings is none; raise it",
    ):
        load(write, f", path: '{path}'")


@pytest.mark.parametrize("rate", ["[0, 0.5]", "[0.5, 0.4]", "[0.5, 1.1]"])
def test_shares_of_rated_items_are_checked(write: Write, rate: str) -> None:
    with pytest.raises(UserError, match="rate is two numbers with 0 < low <= high <= 1"):
        load(write, f", rate: {rate}")


def test_more_of_the_known_ratings_can_be_hidden(write: Write) -> None:
    plain, hidden = (
        rows(load(write, over)) for over in ("", ", missing: {kind: at_random, rate: [0.5, 0.5]}")
    )
    kept = ~hidden[0].inputs.isnan()
    assert kept.sum() / (~plain[0].inputs.isnan()).sum() == pytest.approx(0.5, abs=0.02)
    assert torch.equal(hidden[0].inputs[kept], plain[0].inputs[kept])
    assert torch.equal(hidden[0].targets.nan_to_num(), plain[0].targets.nan_to_num())
