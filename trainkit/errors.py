"""What trainkit says when it cannot go on. Everything here reaches the user as text, never as a
traceback.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_MANY = 50  # mistakes of one recipe that are shown


def printable(text: str) -> str:
    """Return `text` with every character that would command the terminal, or stand there unseen,
    written out.

    Left as they are: tabs and line breaks. A file of a stranger can so neither colour nor erase
    what is read.
    """
    return _UNSEEN.sub(lambda found: repr(found[0])[1:-1], text)


def one_line(text: str, most: int = 1500) -> str:
    """Return `text` as a printable line; of a very long one the middle is left out."""
    line = printable(" ".join(part.strip() for part in text.replace("\t", " ").splitlines()))
    return line if len(line) <= most else f"{line[: most * 2 // 3]} … {line[-most // 4 :]}"


@dataclass(frozen=True)
class Location:
    """Where a value was written: a line of a file, or an override on the command line (`line`
    0).
    """

    file: str
    line: int = 0

    def __str__(self) -> str:
        file = one_line(self.file, 300)
        return f"{file}:{self.line}" if self.line else file


@dataclass(frozen=True)
class Problem:
    """One mistake in a recipe: where it stands, which key it concerns, what is wrong and what to
    do.
    """

    location: Location
    key: str
    message: str

    def __str__(self) -> str:
        message = one_line(self.message)
        return (
            f"{self.location}: {one_line(self.key, 200)}: {message}"
            if self.key
            else f"{self.location}: {message}"
        )


class UserError(Exception):
    """Something the user gave cannot be used (exit code 2). The message says what, where, and
    the fix.
    """


class RecipeError(UserError):
    """A recipe with mistakes: all of them at once, in the order in which they stand in the file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(
            sorted(
                dict.fromkeys(problems),
                key=lambda p: (p.location.line == 0, p.location.file, p.location.line),
            )
        )
        lines = list(map(str, self.problems[:_MANY]))
        if len(self.problems) > _MANY:
            lines.append(f"and {len(self.problems) - _MANY:,} more mistakes")
        super().__init__("\n".join(lines))


class TrainingError(Exception):
    """The run cannot go on although its input was fine (exit code 1): the loss is not finite,
    say.
    """


class PluginError(TrainingError):
    """A plugin broke the rules of a hook while the run was under way; the message names it."""


class WriteError(TrainingError):
    """A file could not be written: the disk is full, the folder gone or read-only. The message
    names it.
    """


class Interrupted(Exception):
    """The user asked the run to stop; a checkpoint has been written in `folder` (exit code 130)."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        super().__init__(f"interrupted; the state is in {folder}")


def first_line(error: BaseException) -> str:
    """Return the first line of what an exception says; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def some(names: Sequence[str], most: int = 5) -> str:
    """Return the first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def suggest(word: str, known: Sequence[str]) -> str:
    """Return `; did you mean 'x'?` for the known word nearest to `word`, or nothing when none is
    near.
    """
    import difflib

    if len(word) > 100:  # no slip of the finger, and slow to compare
        return ""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
