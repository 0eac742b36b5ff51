"""Tables that are not what they seem: encodings, separators, quotes, and numbers as people write
them.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from trainkit_data.tabular.columns import Table, numbers, read_table
from trainkit_data.tabular.numerals import Unclear, reading, with_comma, with_point
from trainkit_data.tabular.ratings import read_ratings
from trainkit_data.tabular.targets import read_target

from tests.test_tables import everything, load, refusal
from trainkit.errors import UserError

Write = Callable[..., Path]


def column(*cells: str | float | None) -> Table:
    return Table({"x": list(cells)}, lambda row: f"t.csv:{row + 2}")


def values(*cells: str | float | None) -> list[float]:
    found = numbers(column(*cells), "x", "ADVICE")
    assert found is not None
    return found.tolist()  # type: ignore[no-any-return]


def wrong(*cells: str | float | None) -> str:
    with pytest.raises(UserError) as caught:
        numbers(column(*cells), "x", "ADVICE")
    return str(caught.value)


# Numbers.


@pytest.mark.parametrize(
    ("text", "point", "comma"),
    [
        ("12", 12, 12),
        ("-2.50", -2.5, None),
        ("1e-3", 1e-3, None),
        ("1,234.5", 1234.5, None),
        ("1,234,567", 1234567, None),
        ("3,14", None, 3.14),
        ("1.234,5", None, 1234.5),
        ("1,234", 1234, 1.234),
        ("1.234", 1.234, 1234),
        ("1 234", 1234, 1234),
        ("1\u202f234,5", None, 1234.5),
        ("1'234'567.25", 1234567.25, None),
        ("−5", -5, -5),
        ("1_000", None, None),
        ("12,34,56", None, None),
        ("1 234,567", None, 1234.567),
        ("0x10", None, None),
        ("1,", None, None),
        ("x", None, None),
    ],
)
def test_a_number_is_read_with_a_point_or_a_comma(
    text: str, point: float | None, comma: float | None
) -> None:
    assert with_point(text) == point
    assert with_comma(text) == comma


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["3,14", "2", "10,5"], [3.14, 2, 10.5]),
        (["1.234,5", "900", "12.000"], [1234.5, 900, 12000]),
        (["1,234.5", "900", "2.5"], [1234.5, 900, 2.5]),
        (["1,234,567", "12,000", "5"], [1234567, 12000, 5]),
        (["1,234", "2.5", "900"], [1234, 2.5, 900]),
        (["1 234", "2.5", "900"], [1234, 2.5, 900]),
    ],
)
def test_a_column_says_by_its_other_cells_what_a_comma_means(
    texts: list[str], expected: list[float]
) -> None:
    assert values(*texts) == expected


def test_commas_that_cannot_be_told_are_asked_about() -> None:
    assert (
        wrong("900", "1,234", "12,500")
        == "t.csv:3: column 'x' has '1,234', which may be 1234 (thousands) or 1.234 (decimal"
        " comma); write numbers without commas; or ADVICE"
    )
    assert (
        wrong("2.5", "3,14")
        == "t.csv:3: column 'x' has '3,14', where another row has '2.5'; write both with a point"
        " for fractions; or ADVICE"
    )


def test_words_with_commas_are_words() -> None:
    assert reading(["Smith, J", "Doe, A", "1,234"]) is with_point
    assert numbers(column("Smith, J", "Doe, A", "3"), "x", "") is None
    with pytest.raises(Unclear):
        reading(["Smith, J", "1,234", "2,345"])


@pytest.mark.parametrize("texts", [["12%", "5 %", "100"], ["$1,200", "$ 30"], ["3 €", "4,5€"]])
def test_numbers_with_signs_are_no_categories(texts: list[str]) -> None:
    assert (
        wrong(*texts)
        == f"t.csv:2: column 'x' has {texts[0]!r}, a number with a sign beside it; write the number"
        " alone, or ADVICE"
    )
    assert numbers(column("1st", "2nd", "3rd", "18-25", "5kg"), "x", "") is None


def test_a_word_that_stands_for_a_gap_is_named_as_one() -> None:
    advice = "ADVICE, or as a gap: data.gaps=['-']"
    for cells in (["1", "2", "-", "3", "4", "-", "5"], ["-", "-", "-", "-", "1", "2", "3"]):
        row, count, others = (
            cells.index("-") + 2,
            cells.count("-"),
            sum(cell != "-" for cell in cells),
        )
        assert (
            wrong(*cells)
            == f"t.csv:{row}: column 'x' has '-' (and {count - 1} more like it) where its other"
            f" {others} values are numbers; mend it, or {advice}"
        )


def test_python_s_own_ways_of_writing_numbers_are_words() -> None:
    assert "has '1_000' where its other 2 values are numbers" in wrong("1", "2", "1_000")
    assert "an infinite number" in wrong("1", "2", "-Infinity")


# Labels.


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["01", "1", "01", "1"], ("01", "1")),
        (["1", "001", "2", "1", "001", "2"], ("001", "1", "2")),
        (["01", "02", "01", "02"], ("1", "2")),
        (["1", "1.0", "2", "2.0"], ("1", "2")),
        (["10", "9", "10", "9"], ("9", "10")),
        (["0.0", "1.0", "0.0", "1.0"], ("0", "1")),
        (["yes ", "no", "yes ", "no"], ("no", "yes ")),
    ],
)
def test_labels_are_merged_only_where_they_are_one_number(
    cells: Sequence[Any], names: tuple[str, ...]
) -> None:
    target = read_target(column(*cells), "x", "auto")
    assert target.names == names
    assert target.classes == len(names)


def test_codes_are_words_as_features_and_numbers_for_regression() -> None:
    assert numbers(column("01", "1", "2"), "x", "") is None
    assert values("01", "02", "3") == [1, 2, 3]
    assert read_target(column("01", "1", "2"), "x", "regression").values.tolist() == [1, 1, 2]


def test_classes_are_named_and_counted(write: Write) -> None:
    rows = [("a", "Yes"), ("b", "yes"), ("c", "no")] * 5
    data = load(write, "x,sick\n" + "".join(f"{i},{label} \n" for i, (_, label) in enumerate(rows)))
    assert data.class_names == ("Yes", "no", "yes")
    assert (data.train_counts, data.val_counts) == ((4, 4, 4), (1, 1, 1))
    assert data.notes == (
        "classes 'Yes' and 'yes' of 'sick' differ only in capitals; they stay two classes",
    )


# Text.

ROWS = "größe;sick\n" + "".join(f"{i},5;{i % 2}\n" for i in range(8))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_every_encoding_that_says_what_it_is_is_read(write: Write, encoding: str) -> None:
    data = load(write, ROWS.encode(encoding))  # type: ignore[arg-type]
    assert everything(data)[0].shape == (8, 1)
    assert data.input_size == (1,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            ROWS.replace("0,5", "ö").encode("latin-1"),
            "people.csv:1: is no text in UTF-8 (byte 0xf6); save it as UTF-8",
        ),
        (
            "x,sick\n1,0\nö,1\n".encode("latin-1"),
            "people.csv:3: is no text in UTF-8 (byte 0xf6); save it as UTF-8",
        ),
        (
            ROWS.encode("utf-16-le").replace(b"\xf6\x00\xdf\x00", b"o\x00s\x00"),
            "people.csv:1: holds a NUL character (UTF-16 without its mark?); save it as UTF-8",
        ),
        (
            ROWS.encode("utf-16")[:-1],
            "people.csv:9: is no text in UTF-16 (byte 0x0a); save it as UTF-8",
        ),
        (
            gzip.compress(ROWS.encode(), mtime=0),
            "people.csv: is no table: it is compressed with gzip; unpack it",
        ),
        (
            b"PK\x03\x04xl/workbook",
            "people.csv: is no table: it is a zip archive (an Excel workbook is one, too)",
        ),
        (
            b"<!DOCTYPE html><html>",
            "people.csv: is no table: it is a web page, not the file that it should be",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1",
            "people.csv: is no table: it is only the pointer to a file in",
        ),
    ],
)
def test_what_is_no_text_is_named_with_its_line(write: Write, content: bytes, message: str) -> None:
    assert refusal(write, content).startswith(message)  # type: ignore[arg-type]


@pytest.mark.parametrize("head", ["", "sep={}\n", '"sep={}"\r\n', "\n\n"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found_whatever_stands_before(
    write: Write, separator: str, head: str
) -> None:
    rows = "".join(f'{i}{separator}"a, b; c"{separator}{i % 2}\n' for i in range(8))
    csv = f'{head.format(separator)}x{separator}"w,o;r,d;s"{separator}sick\n{rows}'
    assert load(write, csv).input_size == (2,)


@pytest.mark.parametrize(
    ("csv", "message"),
    [
        ('x,sick\n1,0\n"2,1\n3,0\n', "people.csv:3: a quote opens in this row and is never closed"),
        (
            'x,sick\n1,0\n"2,1\n3,0\n4",0,1\n',
            (
                "people.csv:3: has 3 fields for 2 columns, as a quote makes lines 3 to 5 one row; "
                "is it closed where it should be?"
            ),
        ),
        (
            'x,sick\n1,0\n"2"z,1\n',
            (
                "people.csv:3: text follows a closing quote; a quote inside a quoted cell is "
                "written twice"
            ),
        ),
        (
            "x,sick\n1,0\n3,14,1\n",
            (
                "people.csv:3: has 3 fields for 2 columns, separated by commas; put cells that hold"
                " one into quotes"
            ),
        ),
        (
            'x,sick\n1,0\n"' + "9\n" * 70000,
            (
                "people.csv:3: a cell in this row has more than 131,072 characters; is a quote "
                "never closed?"
            ),
        ),
        ("\n\nx,,sick\n1,2,0\n", "people.csv:3: column 2 has no name"),
        ("\n\nx,x,sick\n1,2,0\n", "people.csv:3: columns 1 and 2 are both called 'x'; rename one"),
    ],
)
def test_spoiled_rows_are_named_with_the_line_where_they_begin(
    write: Write, csv: str, message: str
) -> None:
    assert refusal(write, csv) == message


def test_columns_that_nothing_known_separates_are_one(write: Write) -> None:
    assert (
        refusal(write, "x sick\n1 0\n2 1\n")
        == "recipe.yaml:2: data.target: people.csv has no column 'sick'; it has only one, as"
        " columns are separated by commas, semicolons, tabs or bars (it has: x sick)"
    )


def test_a_row_over_several_lines_is_named_by_its_first(write: Write) -> None:
    csv = 'x,note,sick\n1,"a\nb",0\n2,c,1\nold,c,1\n' + "".join(
        f"{i},c,{i % 2}\n" for i in range(6)
    )
    assert refusal(write, csv).startswith("people.csv:5: column 'x' has 'old' where its other")


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null"])
def test_devices_are_not_read(path: str) -> None:
    with pytest.raises(
        UserError, match=f"{path}: is no file but a device, a pipe or a socket; name a .csv"
    ):
        read_table(path)


# Parquet.


def parquet(write: Write, columns: dict[str, Any], name: str = "people.parquet") -> Path:
    arrow, files = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = write("", name)
    files.write_table(arrow.table(columns), path)
    return path


def test_columns_of_other_kinds_in_parquet_are_named_where_they_are_used(write: Write) -> None:
    columns = {"x": list(range(8)), "many": [[1, 2]] * 8, "raw": [b"ab"] * 8, "sick": [0, 1] * 4}
    table = read_table(str(parquet(write, columns)))
    assert table.odd == {"many": "list<item: int64>", "raw": "binary"} or set(table.odd) == {
        "many",
        "raw",
    }
    path = parquet(write, columns)
    for options, name in (
        ("target: sick, drop: [many]", "raw"),
        ("target: sick, drop: [raw]", "many"),
    ):
        message = refusal_of(write, path, options)
        assert message.startswith(
            f"people.parquet, row 1: column '{name}' holds neither numbers nor words but "
        )
        assert message.endswith(f"; leave it out: data.drop=[{name}]")
    assert refusal_of(write, path, "target: raw, drop: [many]").endswith(
        "but binary; it cannot be predicted"
    )


def refusal_of(write: Write, path: Path, options: str) -> str:
    from trainkit.data.build import build_source
    from trainkit.training.build import compose
    from trainkit.training.device import Device

    recipe = compose(
        write(f"model: {{name: mlp}}\ndata: {{name: table, path: '{path}', {options}}}\n")
    ).recipe
    with pytest.raises(UserError) as caught:
        build_source(recipe, Device(recipe))
    return str(caught.value).replace(f"{path.parent}/", "")


def test_labels_in_parquet_stay_apart(write: Write) -> None:
    big = [2**53, 2**53 + 1] * 4
    table = read_table(str(parquet(write, {"x": range(8), "code": ["01", "1"] * 4, "id": big})))
    assert read_target(table, "code", "auto").names == ("01", "1")
    assert read_target(table, "id", "classification").classes == 2


@pytest.mark.parametrize("share", [0.9, 0.5, 0.1])
def test_parquet_that_is_cut_off_is_named(write: Write, share: float) -> None:
    path = parquet(write, {"x": list(range(1000))})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(
        UserError, match=r"people\.parquet: cannot be read as Parquet: \S"
    ) as caught:
        read_table(str(path))
    assert "\n" not in str(caught.value)
    path.write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"cannot be read as Parquet: it is a web page"):
        read_table(str(path))


# Ratings.


def test_ratings_may_lack_the_line_of_names(write: Write) -> None:
    for head in ("", "userId,movieId,rating,timestamp\n", "\ufeffuserId,movieId,rating\n"):
        found = read_ratings(write(head + "1,2,3.5,9\n01,2,4,9\r\n", "ratings.csv"))
        assert (found.users, found.items, found.r.tolist()) == (2, 1, [3.5, 4])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1,2,3\n,2,4\n", "ratings.csv:2: not user, item, rating, time between ,: ',2,4'"),
        ("1,2,3\n1,3,1_0\n", "ratings.csv:2: the rating '1_0' is no number"),
        ("<html>", "ratings.csv: is no table: it is a web page"),
        ("1,2,3\n1,3,nan\n", "ratings.csv:2: the rating 'nan' is no number"),
    ],
)
def test_spoiled_ratings_are_named(write: Write, content: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_ratings(write(content, "ratings.csv"))
    assert str(caught.value).split("/files/")[-1].startswith(message)


def test_inputs_of_a_decimal_comma_are_right(write: Write) -> None:
    rows = "".join(f"{i},5;{i % 2}\n" for i in range(8))
    one = everything(load(write, f"x;sick\n{rows}"))[0]
    two = everything(load(write, f"x;sick\n{rows.replace(',', '.')}"))[0]
    assert torch.equal(one, two)
