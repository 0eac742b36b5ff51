"""Hidden entries: a function of (seed, split, index), of the wanted share and shape; NaN after
normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from trainkit.config.data_source import MissingSpec
from trainkit.data.build import build_source
from trainkit.data.loader import Rows
from trainkit.data.missing import Hidden, mask
from trainkit.data.types import Data
from trainkit.errors import RecipeError, UserError
from trainkit.training.build import compose
from trainkit.training.device import Device

Write = Callable[..., Path]


def spec(**options: Any) -> MissingSpec:
    return MissingSpec(**{"kind": "at_random", **options})


def load(write: Write, data: str, *overrides: str) -> Data:
    recipe = compose(
        write(f"model: {{name: test_vit, in_chans: 1}}\ndata: {data}\n"), overrides
    ).recipe
    return build_source(recipe, Device(recipe))


def first(data: Data, epoch: int = 0) -> Tensor:
    return next(data.train.batches(epoch, 0)).inputs


# One example.


def test_the_share_of_an_example_is_drawn_evenly_and_differs_from_others() -> None:
    shares = [
        mask(torch.zeros(400), spec(rate=(0.2, 0.8)), ("train", i)).float().mean().item()
        for i in range(600)
    ]
    assert min(shares) > 0.1
    assert max(shares) < 0.9
    assert sum(shares) / 600 == pytest.approx(0.5, abs=0.03)
    assert sum(share < 0.5 for share in shares) / 600 == pytest.approx(0.5, abs=0.07)


@given(
    st.sampled_from(["at_random", "blocks", "depends"]),
    st.sampled_from(["pixel", "channel"]),
    st.integers(0, 50),
    st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted).map(tuple),
)
def test_a_mask_is_a_function_of_seed_split_and_index(
    kind: Any, per: Any, index: int, rate: Any
) -> None:
    x = torch.linspace(-1, 1, 48).view(3, 4, 4)
    chosen = spec(kind=kind, per=per, rate=rate)
    one = mask(x, chosen, ("train", index))
    torch.rand(7)
    assert torch.equal(one, mask(x, chosen, ("train", index)))
    assert one.shape == x.shape
    assert one.dtype == torch.bool
    if per == "pixel":
        assert torch.equal(one[0], one[2])
    else:
        assert torch.equal(one, one[:, :1, :1].expand_as(one))


def test_other_seeds_splits_and_indices_hide_other_entries() -> None:
    x = torch.zeros(1, 20, 20)
    masks = [
        mask(x, spec(seed=seed), (split, index))
        for seed in (0, 1)
        for split in ("train", "val")
        for index in (0, 1)
    ]
    assert len({tuple(m.flatten().tolist()) for m in masks}) == 8


@pytest.mark.parametrize(("rate", "hidden"), [((0.0, 0.0), 0), ((1.0, 1.0), 48)])
@pytest.mark.parametrize("kind", ["at_random", "blocks"])
def test_nothing_and_everything_can_be_hidden(
    kind: str, rate: tuple[float, float], hidden: int
) -> None:
    assert mask(torch.zeros(3, 4, 4), spec(kind=kind, rate=rate), ("train", 0)).sum() == hidden


def test_entries_are_hidden_each_by_itself_or_in_all_channels() -> None:
    x = torch.zeros(2, 30, 30)
    by_entry = mask(x, spec(per="entry", rate=(0.5, 0.5)), ("train", 0))
    assert (by_entry[0] & by_entry[1]).float().mean() == pytest.approx(0.25, abs=0.04)
    by_channel = [
        mask(x, spec(per="channel", rate=(0.5, 0.5)), ("train", i))[:, 0, 0].tolist()
        for i in range(40)
    ]
    assert {tuple(m) for m in by_channel} == {(a, b) for a in (False, True) for b in (False, True)}


def test_a_block_is_one_rectangle_of_the_wanted_area() -> None:
    x = torch.zeros(2, 40, 40)
    corners = set()
    for i in range(30):
        hidden = mask(x, spec(kind="blocks", rate=(0.25, 0.25)), ("train", i))[0]
        rows, columns = hidden.any(dim=1).nonzero().flatten(), hidden.any(dim=0).nonzero().flatten()
        assert hidden.sum() == 400 == len(rows) * len(columns)
        assert (rows.max() - rows.min(), columns.max() - columns.min()) == (19, 19)
        corners.add((int(rows.min()), int(columns.min())))
    assert len(corners) > 20


def test_a_block_of_a_row_is_a_run_of_features() -> None:
    hidden = (
        mask(torch.zeros(20), spec(kind="blocks", rate=(0.3, 0.3)), ("train", 3))
        .nonzero()
        .flatten()
    )
    assert hidden.tolist() == list(range(int(hidden[0]), int(hidden[0]) + 6))


def test_more_is_hidden_where_the_deciding_feature_is_high_and_it_stays_visible() -> None:
    chosen = spec(kind="depends", rate=(0.1, 0.9), slope=3.0, on="x")
    for value, share in ((-2.0, 0.1), (0.0, 0.5), (2.0, 0.9)):
        x = torch.full((1001,), value)
        hidden = mask(x, chosen, ("train", 0), driver=7)
        assert not hidden[7]
        expected = 0.1 + 0.8 / (1 + math.exp(-3 * value))
        assert hidden.float().mean() == pytest.approx(expected, abs=0.05)
        assert expected == pytest.approx(share, abs=0.01)


def test_the_mean_of_an_image_decides_and_an_unknown_value_is_in_the_middle() -> None:
    chosen = spec(kind="depends", rate=(0.0, 1.0), slope=1.0)
    bright = mask(torch.full((1, 40, 40), 1.0), chosen, ("train", 0)).float().mean()
    assert bright == pytest.approx(1 / (1 + math.exp(-1)), abs=0.04)
    unknown = mask(torch.full((1, 40, 40), math.nan), chosen, ("train", 0)).float().mean()
    assert unknown == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "kind: at_random, rate: [0.5, 0.2]",
            "rate is two numbers with 0 <= low <= high <= 1; got [0.5, 0.2]",
        ),
        (
            "kind: at_random, rate: [0, 1.5]",
            "rate is two numbers with 0 <= low <= high <= 1; got [0, 1.5]",
        ),
        (
            "kind: blocks, per: entry",
            "a block hides pixels or whole channels; set per to one of these",
        ),
        ("kind: blocs", "data.missing.kind: should be 'at_random', 'blocks' or 'depends'"),
        ("rate: [0, 1]", "data.missing.kind: is required and not given"),
        (
            "kind: at_random, rte: [0, 1]",
            "data.missing.rte: there is no such option; did you mean 'rate'?",
        ),
    ],
)
def test_wrong_options_are_refused(write: Write, options: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(write, f"{{name: digits, missing: {{{options}}}}}")
    assert message in str(caught.value)
    assert "recipe.yaml:2: data.missing" in str(caught.value)


def test_a_column_cannot_decide_where_there_are_none(write: Write) -> None:
    with pytest.raises(
        UserError, match=r"recipe.yaml:2: data.missing.on: names a column, and these data have none"
    ):
        load(write, "{name: digits, image_size: 8, missing: {kind: depends, on: x}}")


# Data.

DIGITS = "{name: digits, image_size: 8, batch_size: 32, missing: {kind: at_random}}"


def test_visible_pixels_are_those_of_the_plain_data_normalised(write: Write) -> None:
    hidden, plain = (
        load(write, DIGITS),
        load(write, "{name: digits, image_size: 8, batch_size: 32}"),
    )
    assert hidden.missing
    assert not plain.missing
    for one, two in zip(
        [first(hidden), next(iter(hidden.val)).inputs],
        [first(plain), next(iter(plain.val)).inputs],
        strict=True,
    ):
        seen = ~one.isnan()
        assert torch.equal(one[seen], two[seen])
        assert 0.3 < seen.float().mean() < 0.7
    assert (
        hidden.summary
        == "digits: 1,437 training and 360 validation images, 10 classes, 5% to 95% of each example"
        " hidden (at random)"
    )


def test_the_same_is_hidden_in_every_epoch_and_for_every_recipe_seed(write: Write) -> None:
    def by_image(data: Data, epoch: int) -> Tensor:
        images = data.train._loader.dataset  # type: ignore[attr-defined]
        inputs: Tensor = images.__getitems__([(epoch, i) for i in range(100)]).inputs
        return inputs.isnan()

    data, other = load(write, DIGITS), load(write, DIGITS, "seed=5")
    assert torch.equal(by_image(data, 0), by_image(data, 3))
    assert torch.equal(by_image(data, 0), by_image(other, 0))
    reseeded = load(write, DIGITS, "data.missing.seed=1")
    assert not torch.equal(by_image(data, 0), by_image(reseeded, 0))


def test_augmented_images_are_hidden_from_after_their_transform(write: Write) -> None:
    text = DIGITS.replace("batch_size", "augment: {color_jitter: 0, scale: [0.5, 1]}, batch_size")
    data = load(write, text)
    plain = load(write, text, "~data.missing")
    one, two = first(data, 2), first(plain, 2)
    seen = ~one.isnan()
    assert torch.equal(one[seen], two[seen])
    assert not seen.all()


@pytest.mark.slow  # starts processes
def test_what_is_hidden_does_not_depend_on_workers(write: Write) -> None:
    text = DIGITS.replace("batch_size", "augment: {color_jitter: 0}, batch_size")
    alone, two = (load(write, text, f"data.workers={n}") for n in (0, 2))
    assert torch.equal(first(alone).nan_to_num(9), first(two).nan_to_num(9))


def test_read_now_or_held_in_memory_the_same_is_hidden() -> None:
    x = torch.randn(6, 2, 5, 5)
    rows = Rows(x, torch.arange(6))
    lazy = Hidden(rows, spec(), "val").__getitems__([(0, i) for i in (4, 1)]).inputs
    assert torch.equal(lazy.isnan(), torch.stack([mask(x[i], spec(), ("val", i)) for i in (4, 1)]))


def test_what_is_missing_anyway_stays_so(write: Write) -> None:
    csv = "x,y,sick\n" + "".join(f"{i},{'' if i % 3 else i},{i % 2}\n" for i in range(40))
    path = write(csv, "people.csv")
    text = (
        f"{{name: table, path: '{path}', target: sick, batch_size: 40, missing: {{kind: depends, "
        "on: x}}"
    )
    hidden, plain = load(write, text), load(write, text, "~data.missing")
    sets: list[Any] = [data.train for data in (hidden, plain)]
    one, two = (train._loader.dataset.examples.inputs for train in sets)
    assert one[two.isnan()].isnan().all()
    assert torch.equal(one[:, 0], two[:, 0])
    assert one.isnan().sum() > two.isnan().sum()
