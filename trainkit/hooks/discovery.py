"""Finding plugins: installed ones by entry point, local ones by path. Only what a recipe names
is imported.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
import traceback
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from trainkit.errors import UserError, suggest
from trainkit.system.paths import is_file, whole

if TYPE_CHECKING:
    from trainkit.hooks.plugin import Plugin

GROUP = "trainkit.plugins"


def installed() -> dict[str, EntryPoint]:
    """Return every installed plugin by name. Nothing is imported.

    Raises:
        UserError: two distributions offer the same name.
    """
    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise UserError(
                f"two installed plugins are called {point.name!r} ({other.value} and "
                f"{point.value}); uninstall one"
            )
    return found


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
    path = _source_of(point.module)
    try:
        body = ast.parse(path.read_bytes()).body if path else []
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
    return rest[0] if len(rest) > 1 else first


def command_summary(point: EntryPoint) -> str:
    """Return the first line of what a plugin's command says of itself; it is not imported."""
    path = _source_of(point.module)
    try:
        body = ast.parse(path.read_bytes()).body if path else []
    except (OSError, SyntaxError, ValueError):
        return ""
    found = next((n for n in body if isinstance(n, ast.FunctionDef) and n.name == point.attr), None)
    return (ast.get_docstring(found) or "").partition("\n")[0] if found else ""


def _is_hook(function: ast.FunctionDef) -> bool:
    return any("hookimpl" in ast.unparse(decorator) for decorator in function.decorator_list)


def _source_of(module: str) -> Path | None:
    """Find a module's file without importing its parent packages (importlib.util.find_spec
    would).
    """
    search: list[str] | None = None
    spec = None
    for part in module.split("."):
        # The part alone, as if it were at the top: a dotted name would make the finder ask for the
        # parent package.
        spec = PathFinder.find_spec(part, search)
        if spec is None:
            return None
        search = list(spec.submodule_search_locations or [])
    return Path(spec.origin) if spec and spec.origin else None


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
    if ".py:" in key or key.endswith(".py"):
        path, _, class_name = key.rpartition(":")
        if not path or not class_name:
            raise UserError(f"name the class too: `{key.rstrip(':')}:MyPlugin`")
        found = getattr(_import_file(whole(folder / path)), class_name, None)
        if found is None:
            raise UserError(f"there is no class {class_name!r} in {path}")
        name = class_name
    else:
        points = installed()
        if key not in points:
            known = suggest(key, list(points))
            raise UserError(
                f"no plugin of this name is installed{known} (`trainkit plugins` lists them)"
            )
        try:
            found = points[key].load()
        except (Exception, SystemExit) as error:
            raise UserError(f"cannot be imported: {_short(error)}") from error
        name = key
    from trainkit.hooks.plugin import (
        Plugin,
    )  # here, because listing plugins must not wait for pydantic

    if not isinstance(found, type) or not issubclass(found, Plugin):
        raise UserError(f"{found!r} is not a subclass of trainkit.Plugin")
    return name, found


def _import_file(path: Path) -> ModuleType:
    if not is_file(path):
        raise UserError(f"there is no file {path}")
    # The name carries the path: two files of the same name in different folders are two modules.
    name = f"trainkit_local_{abs(hash(str(path)))}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(f"{path} cannot be imported: {_short(error)}") from error
    return module


def _short(error: BaseException) -> str:
    """One line with the place in the plugin's own code that raised."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"SyntaxError: {error.msg} ({error.filename}:{error.lineno})"
    machinery = (__file__, "<frozen", str(Path(importlib.util.__file__).parent))
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(machinery)
    ]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
