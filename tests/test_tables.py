"""Tables: columns to features, gaps to NaN, and one clear message for what cannot be used."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from trainkit_data.tabular.columns import read_table
from trainkit_data.tabular.targets import Target, split

from tests.reference.tiny import train
from trainkit.data.build import build_source
from trainkit.data.types import Data
from trainkit.errors import RecipeError, UserError
from trainkit.training.build import build, compose
from trainkit.training.device import Device

Write = Callable[..., Path]

PEOPLE = """\
age,city,income,sick
31,Bonn,2000,no
NA,Köln,3000,yes
45,,2500,no
52,Bonn,?,yes
38,Aachen,2100,no
29,Köln,2600,yes
61,Bonn,,no
44,Köln,3100,yes
"""


def load(write: Write, csv: str, options: str = "target: sick", name: str = "people.csv") -> Data:
    path = write(csv, name)
    recipe = compose(
        write(f"model: {{name: mlp}}\ndata: {{name: table, path: '{path}', {options}}}\n")
    ).recipe
    return build_source(recipe, Device(recipe))


def refusal(write: Write, csv: str, options: str = "target: sick", name: str = "people.csv") -> str:
    with pytest.raises(UserError) as caught:
        load(write, csv, options, name)
    folder = str(write("", "x").parent)
    return str(caught.value).replace(f"{folder}/", "")


def everything(data: Data) -> tuple[Tensor, Tensor]:
    """Return all inputs and targets, the training rows first, in their own order."""
    count = data.train.examples_per_step * data.train.steps_per_epoch
    rows = data.train._loader.dataset.__getitems__(
        [(0, i) for i in range(len(data.train._loader.dataset))]
    )  # type: ignore[attr-defined]
    assert len(rows.inputs) <= count
    batches = [rows, *data.val]
    return torch.cat([b.inputs for b in batches]), torch.cat([b.targets for b in batches])


def test_numbers_are_standardised_words_become_features_and_gaps_stay(write: Write) -> None:
    data = load(write, PEOPLE, "target: sick, val_fraction: 0.25, batch_size: 8")
    inputs, targets = everything(data)
    assert data.num_classes == 2
    assert data.targets == "classes"
    assert data.missing
    assert data.input_size == (5,)  # age, three cities, income
    assert sorted(targets.tolist()) == [0] * 4 + [1] * 4
    assert inputs.isnan().sum().item() == 1 + 3 + 2
    training = inputs[:6]
    assert training[:, [0, 4]].nanmean(dim=0).abs().max() < 1e-6
    known = training[:, 0][~training[:, 0].isnan()]
    assert known.std(unbiased=False).item() == pytest.approx(1, abs=1e-6)
    cities = inputs[:, 1:4]
    assert set(cities[~cities.isnan()].tolist()) == {0.0, 1.0}
    assert (cities.nansum(dim=1) == (~cities.isnan().any(dim=1)).float()).all()
    assert data.summary.endswith(
        "people.csv: 6 training and 2 validation rows, 5 features (15.0% missing), 2 classes"
    )


HELD_OUT = set(split(Target(np.arange(8) % 2, 2), 0.25)[1].tolist())
"""Of eight rows of two classes in turn, which are for validation if a quarter is."""


def test_a_word_that_no_training_row_has_is_a_gap(write: Write) -> None:
    assert len(HELD_OUT) == 2
    rows = "".join(f"{'b' if i in HELD_OUT else 'a'},{i},{i % 2}\n" for i in range(8))
    data = load(write, f"city,x,sick\n{rows}", "target: sick, val_fraction: 0.25, batch_size: 8")
    inputs, _ = everything(data)
    assert inputs[:6, 0].tolist() == [1.0] * 6
    assert inputs[6:, 0].isnan().all()


def test_numbers_can_be_named_as_words_and_columns_left_out(write: Write) -> None:
    csv = "zip,id,x,sick\n" + "".join(f"{10 + i % 2},{i},{i * i},{i % 2}\n" for i in range(8))
    assert load(write, csv, "target: sick, categorical: [zip], drop: [id]").input_size == (3,)
    assert load(write, csv).input_size == (3,)


def test_targets_are_classes_or_numbers(write: Write) -> None:
    rows = [f"{i},{i / 3:.4f},{i % 3},{'abc'[i % 3]}" for i in range(30)]
    csv = "\n".join(["x,number,whole,word", *rows]) + "\n"
    drop = {"number": "[whole, word]", "whole": "[number, word]", "word": "[number, whole]"}
    kinds = {t: load(write, csv, f"target: {t}, drop: {d}") for t, d in drop.items()}
    assert [(d.targets, d.num_classes) for d in kinds.values()] == [
        ("numbers", 1),
        ("classes", 3),
        ("classes", 3),
    ]
    forced = load(write, csv, "target: whole, drop: [number, word], task: regression")
    assert (forced.targets, forced.num_classes) == ("numbers", 1)
    _, targets = everything(forced)
    assert targets.shape == (30, 1)
    assert abs(targets[:24].mean().item()) < 1e-6


def test_classes_of_numbers_are_in_the_order_of_numbers(write: Write) -> None:
    csv = "x,y\n" + "".join(f"{i},{(2, 10, 9)[i % 3]}\n" for i in range(15))
    inputs, targets = everything(load(write, csv, "target: y"))
    place = {round(x, 4): i for i, x in enumerate(sorted(inputs[:, 0].tolist()))}
    found = {
        place[round(x, 4)] % 3: t
        for x, t in zip(inputs[:, 0].tolist(), targets.tolist(), strict=True)
    }
    assert found == {0: 0, 1: 2, 2: 1}


def test_separators_quotes_and_marks_at_the_start_are_understood(write: Write) -> None:
    for separator in ",;\t":
        rows = "".join(f'{i}{separator}"a{separator}{i % 2}"{separator}{i % 2}\n' for i in range(8))
        csv = f"\ufeffx{separator}word{separator}sick\n\n{rows}"
        assert load(write, csv).input_size == (3,)


def test_further_words_can_stand_for_a_gap(write: Write) -> None:
    csv = "x,sick\n" + "".join(f"{-999 if i == 3 else i},{i % 2}\n" for i in range(8))
    assert not load(write, csv).missing
    assert everything(load(write, csv, "target: sick, gaps: ['-999']"))[0].isnan().sum() == 1


def test_the_split_is_the_same_for_every_seed_and_stratified(write: Write) -> None:
    path = write("x,sick\n" + "".join(f"{i},{int(i % 4 == 0)}\n" for i in range(40)), "people.csv")
    text = (
        f"model: {{name: mlp}}\ndata: {{name: table, path: '{path}', target: sick, batch_size: "
        "40}\n"
    )
    found = []
    for seed in (0, 1):
        recipe = compose(write(text), [f"seed={seed}"]).recipe
        data = build_source(recipe, Device(recipe))
        found.append(torch.cat([batch.inputs for batch in data.val]))
        assert torch.cat([batch.targets for batch in data.val]).sum() == 2
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("breast_cancer", ("classes", 2, (30,))),
        ("diabetes", ("numbers", 1, (10,))),
        ("iris", ("classes", 3, (4,))),
        ("wine", ("classes", 3, (13,))),
    ],
)
def test_tables_of_scikit_learn_are_there(
    write: Write, name: str, facts: tuple[object, ...]
) -> None:
    recipe = compose(write(f"model: {{name: mlp}}\ndata: {{name: table, path: {name}}}\n")).recipe
    data = build_source(recipe, Device(recipe))
    assert (data.targets, data.num_classes, data.input_size) == facts
    assert not data.missing


def test_parquet_is_read_as_csv_is(write: Write) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {
        "age": [31, None, 45, 52, 38, 29, 61, 44],
        "city": ["Bonn", "Köln", None, "Bonn", "Aachen", "Köln", "Bonn", "Köln"],
        "income": [2000.0, 3000.0, 2500.0, float("nan"), 2100.0, 2600.0, None, 3100.0],
        "sick": ["no", "yes"] * 4,
    }
    path = write("", "people.parquet")
    parquet.write_table(arrow.table(columns), path)
    text = (
        f"model: {{name: mlp}}\ndata: {{name: table, path: '{path}', target: sick, val_fraction: "
        "0.25}\n"
    )
    recipe = compose(write(text)).recipe
    found = everything(build_source(recipe, Device(recipe)))
    wanted = everything(load(write, PEOPLE, "target: sick, val_fraction: 0.25"))
    torch.testing.assert_close(found[0], wanted[0], equal_nan=True)
    assert torch.equal(found[1], wanted[1])
    path.write_bytes(b"PAR1 and then something else")
    with pytest.raises(UserError, match=r"people.parquet: cannot be read as Parquet"):
        read_table(str(path))


def test_parquet_without_pyarrow_says_what_to_install(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        UserError, match=r"reading Parquet needs pyarrow: pip install 'trainkit\[parquet\]'"
    ):
        read_table(str(write("", "people.parquet")))


MANY_WORDS = "x,word,sick\n" + "".join(f"{i},w{i},{i % 2}\n" for i in range(80))
FEW = "x,sick\n" + "".join(f"{i},{i % 2}\n" for i in range(8))


@pytest.mark.parametrize(
    ("csv", "options", "message"),
    [
        (
            PEOPLE,
            "target: sik",
            (
                "recipe.yaml:2: data.target: people.csv has no column 'sik'; did you mean 'sick'? "
                "(it has: age, city, income, sick)"
            ),
        ),
        (PEOPLE, "batch_size: 2", "recipe.yaml:2: data.target: is required: the column to predict"),
        (
            PEOPLE,
            "target: sick, drop: [agee]",
            (
                "recipe.yaml:2: data.drop: people.csv has no column 'agee'; did you mean 'age'? "
                "(it has: age, city, income, sick)"
            ),
        ),
        (PEOPLE, "target: sick, drop: [sick]", "recipe.yaml:2: data.drop: 'sick' is the target"),
        (
            PEOPLE,
            "target: sick, drop: [age, city, income]",
            "recipe.yaml:2: data: no column is left beside the target 'sick'",
        ),
        (
            PEOPLE.replace("52,Bonn", "old,Bonn"),
            "target: sick",
            (
                "people.csv:5: column 'age' has 'old' where its other 6 values are numbers; mend "
                "it, or name it as words: data.categorical=[age]"
            ),
        ),
        (
            "age,sick\n1,no\n,\n2,yes\n" + "3,no\n4,yes\n",
            "target: sick",
            (
                "people.csv:3: 1 row(s) have no target ('sick'), this is the first; take them out "
                "of the table"
            ),
        ),
        (
            "age,gap,sick\n" + "".join(f"{i},NA,{i % 2}\n" for i in range(8)),
            "target: sick",
            "people.csv:2: column 'gap' has no value in any row; leave it out: data.drop=[gap]",
        ),
        (
            FEW.replace("3,1", "inf,1"),
            "target: sick",
            "people.csv:5: column 'x' has an infinite number; mend it, or leave the cell empty",
        ),
        ("", "target: sick", "people.csv: is empty; the first line names the columns"),
        ("\n\n", "target: sick", "people.csv: is empty; the first line names the columns"),
        ("age,sick\n", "target: sick", "people.csv: has column names and no row"),
        (
            "age,sick,age\n1,0,2\n",
            "target: sick",
            "people.csv:1: columns 1 and 3 are both called 'age'; rename one",
        ),
        ("age,,sick\n1,0,2\n", "target: sick", "people.csv:1: column 2 has no name"),
        ("age,sick\n1,0\n2\n", "target: sick", "people.csv:3: has 1 fields for 2 columns"),
        (
            "x,sick\n" + "".join(f"{i},yes\n" for i in range(8)),
            "target: sick",
            "people.csv:2: the target 'sick' is yes in every row: one class only",
        ),
        (
            "x,sick\n" + "".join(f"{i},1.5\n" for i in range(8)),
            "target: sick",
            "people.csv:2: the target 'sick' is 1.5 in every row: nothing to learn",
        ),
        (
            FEW + "9,2\n",
            "target: sick",
            (
                "people.csv:10: class '2' of 'sick' has this one row, and training and validation "
                "need one each; take the row out, or set data.task to regression if it is a "
                "quantity"
            ),
        ),
        (
            PEOPLE,
            "target: sick, task: regression",
            "people.csv:2: the target 'sick' holds words such as 'no', no numbers",
        ),
        (
            MANY_WORDS,
            "target: sick",
            (
                "people.csv:2: column 'word' has 64 different words, more than the 50 that are "
                "taken for categories; leave it out: data.drop=[word]"
            ),
        ),
        (
            "x,sick\n1,0\n2,1\n",
            "target: sick, task: regression, val_fraction: 0.9",
            (
                "recipe.yaml:2: data.val_fraction: 2 rows cannot be split so (with n_samples=2, "
                "test_size=0.9 and train_size=None, the resulting train set will be empty)"
            ),
        ),
        (
            PEOPLE,
            "target: sick, missing: {kind: depends, on: town}",
            "recipe.yaml:2: data.missing.on: no feature of numbers is called 'town'",
        ),
        (
            PEOPLE,
            "target: sick, missing: {kind: depends}",
            "recipe.yaml:2: data.missing.on: name the column whose value decides",
        ),
        (
            PEOPLE,
            "target: sick, missing: {kind: at_random, per: channel}",
            "recipe.yaml:2: data.missing.per: rows of features have no channels; leave it out",
        ),
    ],
)
def test_what_cannot_be_used_gets_one_clear_message(
    write: Write, csv: str, options: str, message: str
) -> None:
    assert refusal(write, csv, options) == message


def test_a_column_without_a_value_in_the_training_rows_is_refused(write: Write) -> None:
    csv = "x,rare,sick\n" + "".join(f"{i},{i if i in HELD_OUT else ''},{i % 2}\n" for i in range(8))
    message = (
        "people.csv:2: column 'rare' has no value in the training rows; leave it out: "
        "data.drop=[rare]"
    )
    assert refusal(write, csv, "target: sick, val_fraction: 0.25") == message


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "nowhere.csv",
            (
                "nowhere.csv: there is no such file; name a .csv or .parquet file, or one of "
                "breast_cancer, "
            ),
        ),
        ("{folder}", ": is a folder; name a .csv or .parquet file"),
        ("wines", "wines: there is no such file; .*diabetes, iris, wine"),
        ("{folder}/data.xls", "data.xls: .xls is no table that can be read; give .csv or .parquet"),
        ("{folder}/latin.csv", r"latin.csv:2: is no text in UTF-8 \(byte 0xf6\); save it as UTF-8"),
        ("{folder}/quote.csv", "quote.csv:2: a quote opens in this row and is never closed"),
    ],
)
def test_a_file_that_is_not_a_table_is_refused(write: Write, path: str, message: str) -> None:
    write("x", "data.xls")
    write("stadt,y\nK\xf6ln,1\n".encode("latin-1"), "latin.csv")
    folder = write('a,b\n1,"2\n', "quote.csv").parent
    with pytest.raises(UserError, match=message):
        read_table(path.format(folder=folder))


def test_a_table_with_numbers_to_predict_needs_its_own_loss_and_metric(write: Write) -> None:
    text = "model: {name: mlp}\ndata: {name: table, path: diabetes}\n"
    with pytest.raises(RecipeError) as caught:
        build(compose(write(text)))
    lines = str(caught.value).splitlines()
    assert [line.split("recipe.yaml:")[-1] for line in lines] == [
        (
            "1: train.loss.name: cross_entropy is for classes, the targets are numbers; set it to "
            "mse, and checkpoint to {metric: rmse, mode: min}"
        ),
        "1: checkpoint.metric: this run does not measure 'accuracy' (it measures: mae, rmse)",
    ]
    wrong = "model: {name: mlp}\ndata: {name: table, path: wine}\ntrain: {loss: {name: mse}}\n"
    with pytest.raises(
        RecipeError,
        match=r"recipe.yaml:3: train.loss.name: mse is for numbers, the targets are classes",
    ):
        build(compose(write(wrong)))


def test_a_table_with_gaps_is_refused_unless_a_plugin_takes_them(write: Write) -> None:
    path = write(PEOPLE, "people.csv")
    text = f"model: {{name: mlp}}\ndata: {{name: table, path: '{path}', target: sick}}\n"
    with pytest.raises(
        RecipeError, match=r"recipe.yaml:2: data: some inputs are missing, and no plugin says what"
    ):
        build(compose(write(text)))


def test_numbers_are_learned_and_measured(write: Write) -> None:
    text = (
        "model: {name: mlp, args: {hidden: [20]}}\ndata: {name: table, path: diabetes}\n"
        "train: {epochs: 10, device: cpu, loss: {name: mse}}\noptimizer: {lr: 1e-2}\n"
        "checkpoint: {metric: rmse, mode: min}\n"
    )
    run, checkpointer = train(compose(write(text)))
    with torch.no_grad():
        found = torch.cat([run.model(b.inputs) - b.targets for b in run.data.val])
    assert checkpointer.outcome.final["rmse"] == pytest.approx(
        found.square().mean().sqrt().item(), rel=1e-5
    )
    assert checkpointer.outcome.final["mae"] == pytest.approx(found.abs().mean().item(), rel=1e-5)
    assert checkpointer.outcome.final["rmse"] < 0.8  # 1 is the training mean
