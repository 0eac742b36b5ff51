"""Finding plugins: installed ones by entry point, local ones by path. Only what a recipe names
is imported.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING

from trainkit.errors import UserError, suggest
from trainkit.system.discovery import (
    installed_in,
    is_local,
    load_installed,
    load_local,
    source_of,
)

if TYPE_CHECKING:
    from trainkit.hooks.plugin import Plugin

GROUP = "trainkit.plugins"


def installed() -> dict[str, EntryPoint]:
    """Return every installed plugin by name. Nothing is imported.

    Raises:
        UserError: two distributions offer the same name.
    """
    return installed_in(GROUP, "plugins")


@dataclass(frozen=True)
class Listing:
    """What `trainkit plugins` says of a plugin, read from its source text without importing it."""

    name: str
    summary: str
    hooks: tuple[str, ...]
    distribution: str
    room: str = ""
    """The package beside which others of its kind stand."""


def describe(point: EntryPoint) -> Listing:
    """Return a plugin's listing; the summary says so where its source cannot be found."""
    distribution, room = point.dist.name if point.dist else "unknown", _room(point.module)
    path = source_of(point.module)
    try:
        body = []
        if path:
            body = ast.parse(path.read_bytes()).body
    except (OSError, SyntaxError, ValueError) as error:
        return Listing(
            point.name, f"({path} cannot be read: {type(error).__name__})", (), distribution, room
        )
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name == point.attr:
            summary = (ast.get_docstring(node) or "").partition("\n")[0]
            hooks = tuple(
                f.name for f in node.body if isinstance(f, ast.FunctionDef) and _is_hook(f)
            )
            return Listing(point.name, summary, hooks, distribution, room)
    return Listing(
        point.name, f"(no class {point.attr} found in {point.module})", (), distribution, room
    )


def _room(module: str) -> str:
    first, *rest = module.split(".")
    if len(rest) > 1:
        return rest[0]
    return first


def command_summary(point: EntryPoint) -> str:
    """Return the first line of what a plugin's command says of itself; it is not imported."""
    path = source_of(point.module)
    try:
        body = []
        if path:
            body = ast.parse(path.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return ""
    found = next((n for n in body if isinstance(n, ast.FunctionDef) and n.name == point.attr), None)
    if found:
        return (ast.get_docstring(found) or "").partition("\n")[0]
    return ""


def _is_hook(function: ast.FunctionDef) -> bool:
    return any("hookimpl" in ast.unparse(decorator) for decorator in function.decorator_list)


def load_class(key: str, folder: Path) -> tuple[str, type[Plugin]]:
    """Import the plugin that a recipe calls `key`.

    Args:
        key: an installed plugin's name, or `path/to/file.py:Class`.
        folder: the recipe's folder, from which such a path counts.

    Returns:
        The plugin's short name (for a local one its class name) and its class.

    Raises:
        UserError: there is no such plugin, it cannot be imported, or it is not a plugin.
    """
    if is_local(key):
        name, found = load_local(key, folder, "MyPlugin")
    else:
        points = installed()
        if key not in points:
            known = suggest(key, list(points))
            raise UserError(
                f"no plugin of this name is installed{known} (`trainkit plugins` lists them)"
            )
        name, found = key, load_installed(points[key])
    from trainkit.hooks.plugin import (
        Plugin,
    )  # here, because listing plugins must not wait for pydantic

    if not isinstance(found, type) or not issubclass(found, Plugin):
        raise UserError(f"{found!r} is not a subclass of trainkit.Plugin")
    return name, found
