"""What trainkit says when it cannot go on. Everything here reaches the user as text, never as a traceback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mark:
    """Where a value was written: a line of a file, or an override on the command line (`line` 0)."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True)
class Problem:
    """One mistake in a recipe: where it stands, which key it concerns, what is wrong and what to do."""

    mark: Mark
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.mark}: {self.key}: {self.message}" if self.key else f"{self.mark}: {self.message}"


class UserError(Exception):
    """Something the user gave cannot be used (exit code 2). The message says what, where, and the fix."""


class RecipeError(UserError):
    """A recipe with mistakes: all of them at once, in the order in which they stand in the file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(
            sorted(dict.fromkeys(problems), key=lambda p: (p.mark.line == 0, p.mark.file, p.mark.line))
        )
        super().__init__("\n".join(map(str, self.problems)))


class TrainingError(Exception):
    """The run cannot go on although its input was fine (exit code 1): the loss is not finite, say."""


class PluginError(TrainingError):
    """A plugin broke the rules of a hook while the run was under way; the message names it."""


class Interrupted(Exception):
    """The user asked the run to stop; a checkpoint has been written in `folder` (exit code 130)."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        super().__init__(f"interrupted; the state is in {folder}")


def suggest(word: str, known: Sequence[str]) -> str:
    """Return `; did you mean 'x'?` for the known word nearest to `word`, or nothing when none is near."""
    import difflib

    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
