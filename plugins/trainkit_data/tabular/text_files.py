"""Tables as text: which characters a file's bytes are, what separates columns, and on which line
each row begins.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

from trainkit.errors import UserError
from trainkit.system.foreign import foreign

_DELIMITERS = ",;\t|"
# What a file begins with that says how its characters are written; the longer ones first.
_MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_SEPARATOR_LINE = re.compile(
    r"\"?sep=(.)\"?", re.IGNORECASE
)  # how Excel is told what separates columns
_NAMES = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}


def read_text(file: Path) -> str:
    """Return the text in a file: UTF-8, or UTF-16 and UTF-32 that say so at their beginning.

    Raises:
        UserError: it is no text, or of another encoding; the message has the line.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    what = foreign(content) if content else None
    if what is not None:
        raise UserError(f"{file}: is no table: it {what}")
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8-sig")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{content[error.start]:02x}" if error.start < len(content) else "its end"
        name = "UTF-8" if encoding == "utf-8-sig" else encoding.upper()
        raise UserError(f"{file}:{line}: is no text in {name} ({byte}); save it as UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(
            f"{file}:{line}: holds a NUL character (UTF-16 without its mark?); save it as UTF-8"
        )
    return text


@dataclass(frozen=True)
class Rows:
    """The rows of a table as text, empty lines left out.

    Attributes:
        header: the first row, and the line that it is on.
        rows: the others, of as many cells.
        lines: on which line each of them begins.
    """

    header: tuple[list[str], int]
    rows: list[list[str]]
    lines: list[int]


def read_rows(file: Path) -> Rows:
    """Return the rows of a file of comma-separated values, or of ones separated by what its first
    line has most of.

    Raises:
        UserError: it cannot be read, is empty, or a row has more or fewer cells than the first;
            with the line.
    """
    text = read_text(file)
    before, first = _first_line(text)
    said = _SEPARATOR_LINE.fullmatch(first.strip(" \r\n"))
    skipped = 0
    if said:
        text = text[len(before) + len(first) :]
        skipped = before.count("\n") + 1
    unquoted = re.sub(r'"[^"]*"', "", first)
    delimiter = said[1] if said else max(_DELIMITERS, key=unquoted.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: tuple[list[str], int] | None = None
    rows: list[list[str]] = []
    lines: list[int] = []
    while True:
        line = skipped + reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(_spoiled(file, line, skipped + reader.line_num, str(error))) from None
        if row is None:
            break
        if not row:
            continue
        if header is None:
            header = row, line
        elif len(row) != len(header[0]):
            raise UserError(
                _uneven(file, line, skipped + reader.line_num, len(row), len(header[0]), delimiter)
            )
        else:
            rows.append(row)
            lines.append(line)
    if header is None:
        raise UserError(f"{file}: is empty; the first line names the columns")
    return Rows(header, rows, lines)


def _first_line(text: str) -> tuple[str, str]:
    """Return what stands before the first line that is not empty, and that line with its end."""
    before = text[: len(text) - len(text.lstrip("\r\n "))]
    before = before[: before.rfind("\n") + 1]
    rest = text[len(before) :]
    end = rest.find("\n")
    return before, rest if end < 0 else rest[: end + 1]


def _spoiled(file: Path, line: int, end: int, error: str) -> str:
    if "unexpected end" in error:
        return f"{file}:{line}: a quote opens in this row and is never closed"
    if "field larger" in error:
        most = f"{csv.field_size_limit():,} characters"
        return f"{file}:{line}: a cell in this row has more than {most}; is a quote never closed?"
    if "expected after" in error:
        return (
            f"{file}:{end}: text follows a closing quote; a quote inside a quoted cell is written "
            "twice"
        )
    return f"{file}:{end}: cannot be read as a row of a table: {error}"


def _uneven(file: Path, line: int, end: int, cells: int, columns: int, delimiter: str) -> str:
    message = f"{file}:{line}: has {cells} fields for {columns} columns"
    if end > line:
        return (
            f"{message}, as a quote makes lines {line} to {end} one row; is it closed where it "
            "should be?"
        )
    if cells > columns:
        return (
            f"{message}, separated by {_NAMES.get(delimiter, delimiter)}; put cells that hold one "
            "into quotes"
        )
    return message
