"""A recipe that is given in Python, as nested mappings: copied, and checked to be plain."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainkit.config.locations import DEEPEST, LARGEST_INT, MOST_VALUES, NO_TEXT, KeyPath, Locations
from trainkit.errors import Location, Problem, RecipeError

FILE = "recipe"
"""What messages name in place of a file."""


def load_mapping(given: Mapping[str, Any]) -> tuple[dict[str, Any], Locations, list[Problem]]:
    """Return a copy of a recipe in plain values, and the location of each.

    Raises:
        RecipeError: it holds something that a recipe file could not.
    """
    copier = _Copier()
    data = copier.copy(given, ())
    if copier.problems:
        raise RecipeError(copier.problems)
    return data, copier.locations, []


class _Copier:
    """Copies values, and keeps their locations and what is wrong with them."""

    def __init__(self) -> None:
        self.locations: Locations = {}
        self.problems: list[Problem] = []

    def copy(self, value: Any, path: KeyPath) -> Any:
        if len(path) > DEEPEST or len(self.locations) > MOST_VALUES:  # a mapping may hold itself
            raise RecipeError(
                [Problem(Location(FILE), str(path[0]), "holds more than any recipe does")]
            )
        self.locations[path] = Location(FILE)
        if isinstance(value, Mapping):
            return self._mapping(value, path)
        if isinstance(value, list | tuple):
            found = []
            for i, inner in enumerate(value):
                found.append(self.copy(inner, (*path, i)))
            return found
        if isinstance(value, Path):
            return str(value)
        self._check(value, path)
        return value

    def _mapping(self, value: Mapping[Any, Any], path: KeyPath) -> dict[str, Any]:
        copied = {}
        for key, inner in value.items():
            if not isinstance(key, str):
                self._refuse(path, f"has the key {key!r:.60}; a key is text")
            copied[str(key)] = self.copy(inner, (*path, str(key)))
        return copied

    def _check(self, value: Any, path: KeyPath) -> None:
        if isinstance(value, str):
            if NO_TEXT.search(value):
                self._refuse(path, "has a character that is no text; remove it")
        elif isinstance(value, int) and abs(value) >= LARGEST_INT:
            self._refuse(path, "has more than a hundred digits")
        elif not (value is None or isinstance(value, int | float)):
            kind = type(value).__qualname__
            self._refuse(path, f"is a {kind}; give text, a number, true, a list or a mapping")

    def _refuse(self, path: KeyPath, message: str) -> None:
        self.problems.append(Problem(Location(FILE), ".".join(map(str, path)), message))
