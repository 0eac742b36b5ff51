"""The plugins that a recipe names, made from their options; every mistake has the recipe's line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainkit.config.raw import RawRecipe, validate
from trainkit.config.recipe import read_recipe
from trainkit.errors import Problem, RecipeError, UserError
from trainkit.hooks.discovery import load_class
from trainkit.hooks.guard import make
from trainkit.hooks.order import Entry, arrange


def instantiate(raw: RawRecipe) -> tuple[list[Entry], list[Problem]]:
    """Make the plugins that a recipe names; return them in recipe order, and every mistake
    found.
    """
    entries: dict[str, Entry] = {}
    problems: list[Problem] = []
    section = raw.data.get("plugins", {})
    if not isinstance(section, dict):
        return [], []  # core's own check of the recipe reports this
    seed = raw.data.get("seed", 0)
    for key, options in section.items():
        location = raw.nearest("plugins", key)
        if not isinstance(options, dict):
            continue
        try:
            name, cls = load_class(key, raw.folder("plugins", key))
        except UserError as error:
            problems.append(Problem(location, f"plugins.{key}", str(error)))
            continue
        plugin, found = make(name, cls, options, raw, ("plugins", key), by=validate)
        problems += found
        if name in entries:
            problems.append(
                Problem(
                    location, f"plugins.{key}", f"a plugin called {name} is already on; keep one"
                )
            )
        elif plugin is not None:
            plugin.bind(name, seed if isinstance(seed, int) else 0)
            entries[name] = Entry(name, plugin, location)
    return list(entries.values()), problems


def read_entries(path: Path, overrides: Sequence[str] = ()) -> list[Entry]:
    """Return the plugins of a recipe in order, without looking at anything that timm must check.

    Raises:
        RecipeError: the recipe or a plugin's options have mistakes.
    """
    _, raw, problems = read_recipe(path, overrides)
    entries, found = plugins_of(raw)
    if problems or found:
        raise RecipeError([*problems, *found])
    return entries


def plugins_of(raw: RawRecipe) -> tuple[list[Entry], list[Problem]]:
    """Return the plugins that a recipe names, made and in order, and every mistake found."""
    entries, problems = instantiate(raw)
    section = raw.data.get("plugins", {})
    # One that could not be made has been reported; nobody need hear that it is missing as well.
    named = []
    if isinstance(section, dict):
        named = [key.rpartition(":")[2] for key in section]
    entries, found = arrange(entries, named)
    return entries, [*problems, *found]
