"""Tables as columns of cells: read from CSV, Parquet or scikit-learn, with gaps as None, and made into numbers."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainkit.errors import UserError

Cell = str | float | None
"""What stands in a table: a word, a number, or nothing."""

Floats = np.ndarray[Any, np.dtype[np.float64]]

GAPS = frozenset(("", "na", "n/a", "nan", "null", "none", "?"))
"""Words, in lower case, that stand for nothing."""

BUNDLED = ("breast_cancer", "diabetes", "iris", "wine")
"""scikit-learn's tables, which come with it."""

_BUNDLED_TARGET = "target"
_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Table:
    """Columns of equal length, by name, and where each row was read.

    Attributes:
        columns: cells by column.
        where: from the index of a row to the words that say where it is, such as `people.csv:17`.
        target: the column that is to be predicted unless a recipe says otherwise.
    """

    columns: dict[str, list[Cell]]
    where: Callable[[int], str]
    target: str | None = None

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
    if path in BUNDLED and not file.is_file():
        return _bundled(path)
    if not file.is_file():
        state = "is a folder" if file.is_dir() else "there is no such file"
        raise UserError(f"{path}: {state}; name a .csv or .parquet file, or one of {', '.join(BUNDLED)}")
    words = GAPS | {gap.strip().lower() for gap in gaps}
    if file.suffix.lower() == ".parquet":
        table = _parquet(file, words)
    elif file.suffix.lower() in (".csv", ".tsv", ".txt"):
        table = _csv(file, words)
    else:
        raise UserError(f"{path}: {file.suffix or 'no ending'} is no table that can be read; give .csv or .parquet")
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
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            first = text.readline()
            text.seek(0)
            reader = csv.reader(text, delimiter=max(_DELIMITERS, key=first.count), strict=True)
            header = next((row for row in reader if row), None)
            if header is None:
                raise UserError(f"{file}: is empty; the first line names the columns")
            names = _names(file, header)
            for row in reader:
                if row and len(row) != len(names):
                    raise UserError(f"{file}:{reader.line_num}: has {len(row)} fields for {len(names)} columns")
                if row:
                    rows.append(row)
                    lines.append(reader.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: cannot be read as CSV in UTF-8: {error}") from None
    columns: dict[str, list[Cell]] = {name: [] for name in names}
    for i, cells in enumerate(columns.values()):
        cells += [None if (word := row[i].strip()).lower() in gaps else word for row in rows]
    return Table(columns, lambda row: f"{file}:{lines[row]}")


def _names(file: Path, header: Sequence[str]) -> list[str]:
    names = [name.strip() for name in header]
    for i, name in enumerate(names):
        if not name:
            raise UserError(f"{file}:1: column {i + 1} has no name")
        if name in names[:i]:
            raise UserError(
                f"{file}:1: columns {names.index(name) + 1} and {i + 1} are both called {name!r}; rename one"
            )
    return names


def _parquet(file: Path, gaps: frozenset[str]) -> Table:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(f"{file}: reading Parquet needs pyarrow: pip install 'trainkit[parquet]'") from None
    try:
        table = parquet.read_table(file)
    except (OSError, ArrowException) as error:
        raise UserError(f"{file}: cannot be read as Parquet: {str(error).splitlines()[0]}") from None
    names = _names(file, table.column_names)

    def cell(value: Any) -> Cell:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        word = str(value).strip()
        return None if word.lower() in gaps else word

    columns = {name: [cell(v) for v in table.column(i).to_pylist()] for i, name in enumerate(names)}
    if not columns:
        raise UserError(f"{file}: has no columns")
    return Table(columns, lambda row: f"{file}, row {row + 1}")


def as_number(cell: Cell) -> float | None:
    """Return a cell as a number, NaN for a gap; None for a word."""
    if cell is None:
        return math.nan
    try:
        return float(cell)
    except ValueError:
        return None


def numbers(table: Table, name: str, advice: str) -> Floats | None:
    """Return a column as numbers [N], NaN where there is a gap; None if most of its cells are words.

    Args:
        table: the table.
        name: of the column.
        advice: what to do if words are meant, for the message.

    Raises:
        UserError: most cells are numbers, and some word, or an infinite number, is among them.
    """
    cells = table.columns[name]
    found = [as_number(cell) for cell in cells]
    words = [i for i, value in enumerate(found) if value is None]
    known = sum(cell is not None for cell in cells)
    if 2 * len(words) >= known > 0:
        return None
    if words:
        others = known - len(words)
        more = f" (and {len(words) - 1} more like it)" if len(words) > 1 else ""
        raise UserError(
            f"{table.where(words[0])}: column {name!r} has {cells[words[0]]!r}{more} where its other {others:,} values "
            f"are numbers; mend it, or {advice}"
        )
    values: Floats = np.array(found, dtype=np.float64)
    if np.isinf(values).any():
        row = int(np.flatnonzero(np.isinf(values))[0])
        raise UserError(f"{table.where(row)}: column {name!r} has an infinite number; mend it, or leave the cell empty")
    return values
