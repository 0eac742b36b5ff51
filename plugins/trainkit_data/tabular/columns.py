"""Tables as columns of cells: read from CSV, Parquet or scikit-learn, with gaps as None, and
made into numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainkit.errors import UserError, one_line
from trainkit.system.foreign import foreign, no_file
from trainkit_data.tabular.numerals import Unclear, are_codes, marked, reading
from trainkit_data.tabular.text_files import read_rows

Cell = str | float | None
"""What stands in a table: a word, a number, or nothing."""

Floats = np.ndarray[Any, np.dtype[np.float64]]

GAPS = frozenset(("", "na", "n/a", "nan", "null", "none", "?"))
"""Words, in lower case, that stand for nothing."""

BUNDLED = ("breast_cancer", "diabetes", "iris", "wine")
"""scikit-learn's tables, which come with it."""

_BUNDLED_TARGET = "target"
_ODD = (
    "list",
    "large_list",
    "fixed_size",
    "struct",
    "map",
    "binary",
    "large_binary",
    "dense_union",
    "sparse_union",
)
_EXACT = 2**53  # whole numbers up to this size stay apart as floats


@dataclass(frozen=True)
class Table:
    """Columns of equal length, by name, and where each row was read.

    Attributes:
        columns: cells by column.
        where: from the index of a row to the words that say where it is, such as `people.csv:17`.
        target: the column that is to be predicted unless a recipe says otherwise.
        odd: of columns that hold neither numbers nor words, what they hold instead; their cells are
            None.
    """

    columns: dict[str, list[Cell]]
    where: Callable[[int], str]
    target: str | None = None
    odd: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(next(iter(self.columns.values())))


def read_table(path: str, gaps: Sequence[str] = ()) -> Table:
    """Read a table.

    Args:
        path: of a .csv, .tsv, .txt or .parquet file, or the name of a table in `BUNDLED`.
        gaps: words for a gap beside those in `GAPS`.

    Raises:
        UserError: it is not there, or is no table with a row and distinct column names.
    """
    file = Path(path)
    state = no_file(file)
    if path in BUNDLED and state is not None:
        return _bundled(path)
    if state is not None:
        raise UserError(
            f"{path}: {state}; name a .csv or .parquet file, or one of {', '.join(BUNDLED)}"
        )
    words = GAPS | {gap.strip().lower() for gap in gaps}
    if file.suffix.lower() == ".parquet":
        table = _parquet(file, words)
    elif file.suffix.lower() in (".csv", ".tsv", ".txt"):
        table = _csv(file, words)
    else:
        raise UserError(
            f"{path}: {file.suffix or 'no ending'} is no table that can be read; give .csv or "
            ".parquet"
        )
    if not table.rows:
        raise UserError(f"{path}: has column names and no row")
    return table


def _bundled(name: str) -> Table:
    import sklearn.datasets

    load = getattr(sklearn.datasets, f"load_{name}")
    bunch = load(scaled=False) if name == "diabetes" else load()
    values = np.asarray(bunch.data, dtype=np.float64)
    columns: dict[str, list[Cell]] = {
        str(feature): values[:, i].tolist() for i, feature in enumerate(bunch.feature_names)
    }
    columns[_BUNDLED_TARGET] = np.asarray(bunch.target, dtype=np.float64).tolist()
    return Table(columns, lambda row: f"{name}, row {row + 1}", _BUNDLED_TARGET)


def _csv(file: Path, gaps: frozenset[str]) -> Table:
    found = read_rows(file)
    names = _names(file, *found.header)
    columns: dict[str, list[Cell]] = {name: [] for name in names}
    for i, cells in enumerate(columns.values()):
        cells += [None if (word := row[i].strip()).lower() in gaps else word for row in found.rows]
    return Table(columns, lambda row: f"{file}:{found.lines[row]}")


def _names(file: Path, header: Sequence[str], line: int) -> list[str]:
    names = [name.strip() for name in header]
    for i, name in enumerate(names):
        if not name:
            raise UserError(f"{file}:{line}: column {i + 1} has no name")
        if name in names[:i]:
            raise UserError(
                f"{file}:{line}: columns {names.index(name) + 1} and {i + 1} are both called "
                f"{name!r}; rename one"
            )
    return names


def _parquet(file: Path, gaps: frozenset[str]) -> Table:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(
            f"{file}: reading Parquet needs pyarrow: pip install 'trainkit[parquet]'"
        ) from None
    if (what := foreign(file)) not in (None, "is a Parquet file"):
        raise UserError(f"{file}: cannot be read as Parquet: it {what}")
    try:
        table = parquet.read_table(file)
        names = _names(file, table.column_names, 1)
        kinds = [str(column.type) for column in table.columns]
        odd = {name: kind for name, kind in zip(names, kinds, strict=True) if kind.startswith(_ODD)}
        values = {
            name: table.column(i).to_pylist() for i, name in enumerate(names) if name not in odd
        }
    except (OSError, ArrowException, ValueError, OverflowError) as error:
        reason = one_line(str(error), 160) or type(error).__name__
        raise UserError(f"{file}: cannot be read as Parquet: {reason}") from None

    def cell(value: Any) -> Cell:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value) if isinstance(value, float) or abs(value) <= _EXACT else str(value)
        word = str(value).strip()
        return None if word.lower() in gaps else word

    columns: dict[str, list[Cell]] = {
        name: [None] * table.num_rows if name in odd else list(map(cell, values[name]))
        for name in names
    }
    if not columns:
        raise UserError(f"{file}: has no columns")
    return Table(columns, lambda row: f"{file}, row {row + 1}", odd=odd)


def numbers(table: Table, name: str, advice: str, *, codes: bool = True) -> Floats | None:
    """Return a column as numbers [N], NaN where there is a gap; None if it holds words.

    Args:
        table: the table.
        name: of the column.
        advice: what to do if words are meant, for the message.
        codes: whether numbers that differ only in zeros before them, 1 and 01, are words.

    Raises:
        UserError: most cells are numbers, and some word, or an infinite number, is among them; or
            it cannot be told what the commas in them mean.
    """
    cells = table.columns[name]
    texts = [cell for cell in cells if isinstance(cell, str)]
    if codes and are_codes(texts):
        return None
    try:
        read = reading(texts)
    except Unclear as error:
        where = table.where(cells.index(error.text))
        raise UserError(
            f"{where}: column {name!r} has {error.text!r}, {error.why}; or {advice}"
        ) from None
    found = [
        math.nan if cell is None else read(cell) if isinstance(cell, str) else cell
        for cell in cells
    ]
    words = [i for i, value in enumerate(found) if value is None]
    known = sum(cell is not None for cell in cells)
    others = known - len(words)
    # One word again and again stands for a gap, or for something as special.
    single = (
        len({cells[i] for i in words}) == 1
        and len({value for value in found if value is not None}) > 2
    )
    if 2 * len(words) >= known > 0 and not single:
        _refuse_marked(table, name, texts, advice)
        return None
    if words:
        more = f" (and {len(words) - 1} more like it)" if len(words) > 1 else ""
        if single and not any(c.isdigit() for c in str(cells[words[0]])) and len(words) > 1:
            advice += f", or as a gap: data.gaps=['{cells[words[0]]}']"
        raise UserError(
            f"{table.where(words[0])}: column {name!r} has {cells[words[0]]!r}{more} where its "
            f"other {others:,} values are numbers; mend it, or {advice}"
        )
    values: Floats = np.array(found, dtype=np.float64)
    if np.isinf(values).any():
        row = int(np.flatnonzero(np.isinf(values))[0])
        raise UserError(
            f"{table.where(row)}: column {name!r} has an infinite number; mend it, or leave the "
            "cell empty"
        )
    return values


def _refuse_marked(table: Table, name: str, texts: Sequence[str], advice: str) -> None:
    """Refuse a column all of whose words are numbers with a sign: as categories they would mean
    nothing.
    """
    if (text := marked(texts)) is not None:
        where = table.where(table.columns[name].index(text))
        what = f"column {name!r} has {text!r}, a number with a sign beside it"
        raise UserError(f"{where}: {what}; write the number alone, or {advice}")
