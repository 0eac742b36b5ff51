"""Plugins made in a test as a recipe would name them, and what the manager says against them."""

from __future__ import annotations

from trainkit import Plugin
from trainkit.errors import Location
from trainkit.hooks.manager import make_manager
from trainkit.hooks.order import Entry


class Quiet:
    """Core without answers, for tests that only look at what is refused."""


def entries_of(*plugins: Plugin) -> list[Entry]:
    """Return entries of plugins named by their class, on lines 1, 2, 3 … of a recipe."""
    entries = []
    for i, plugin in enumerate(plugins):
        name = type(plugin).__name__.lower()
        plugin.bind(name, 0)
        entries.append(Entry(name, plugin, Location("r.yaml", i + 1)))
    return entries


def refusals(*plugins: Plugin) -> list[str]:
    """Return what the manager says against the shape of these plugins."""
    return [str(problem) for problem in make_manager(entries_of(*plugins), Quiet())[1]]
