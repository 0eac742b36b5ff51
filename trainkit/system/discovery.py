"""Finding classes by name: installed ones by entry point, local ones by path. Only what is asked
for is imported.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from trainkit.errors import UserError
from trainkit.system.paths import is_file, whole

DATA = "trainkit.data"
"""The group of entry points of sources of data."""


def installed_in(group: str, noun: str) -> dict[str, EntryPoint]:
    """Return every entry point of a group by name. Nothing is imported.

    Args:
        group: the group of entry points.
        noun: what its members are called in messages, in the plural.

    Raises:
        UserError: two distributions offer the same name.
    """
    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=group), key=lambda p: p.name):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise UserError(
                f"two installed {noun} are called {point.name!r} ({other.value} and "
                f"{point.value}); uninstall one"
            )
    return found


def is_local(key: str) -> bool:
    """Return whether a recipe names a class by the path of its file."""
    return ".py:" in key or key.endswith(".py")


def load_local(key: str, folder: Path, example: str) -> tuple[str, Any]:
    """Import what a recipe names by path, and return its short name and what it is.

    Args:
        key: `path/to/file.py:Class`.
        folder: from which such a path counts.
        example: of a class's name, for the message where it is left out.

    Raises:
        UserError: there is no such file or class, or it cannot be imported.
    """
    path, _, class_name = key.rpartition(":")
    if not path or not class_name:
        raise UserError(f"name the class too: `{key.rstrip(':')}:{example}`")
    found = getattr(_import_file(whole(folder / path)), class_name, None)
    if found is None:
        raise UserError(f"there is no class {class_name!r} in {path}")
    return class_name, found


def load_installed(point: EntryPoint) -> Any:
    """Import what an entry point names.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        return point.load()
    except (Exception, SystemExit) as error:
        raise UserError(f"cannot be imported: {_short(error)}") from error


def source_of(module: str) -> Path | None:
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
    frames = []
    for f in traceback.extract_tb(error.__traceback__):
        if not f.filename.startswith(machinery):
            frames.append(f)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
