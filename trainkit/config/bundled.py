"""The recipes that come with trainkit: in a wheel inside the package, in a checkout beside it."""

from __future__ import annotations

from pathlib import Path

from trainkit.errors import UserError, suggest
from trainkit.system.paths import is_there
from trainkit.system.writes import write_text


def folder() -> Path:
    """Return the folder of the recipes; an editable install has only the checkout's, so none can
    be stale.
    """
    packaged = Path(__file__).parents[1] / "recipes"
    if packaged.is_dir():
        return packaged
    return Path(__file__).parents[2] / "recipes"


def names() -> list[str]:
    """Return the name of every recipe, without its ending."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def first_lines(name: str) -> str:
    """Return the claim with which a recipe opens: its first comment line."""
    text = (folder() / f"{name}.yaml").read_text(encoding="utf-8")
    return text.splitlines()[0].removeprefix("#").strip() if text.startswith("#") else ""


def copy(name: str, target: Path) -> Path:
    """Copy a recipe to the folder `target` and return the new file.

    Raises:
        UserError: there is no such recipe, or the file is already there.
        WriteError: it cannot be written.
    """
    if name not in names():
        raise UserError(
            f"there is no recipe {name!r}{suggest(name, names())} (there are: {', '.join(names())})"
        )
    destination = target / f"{name}.yaml"
    if is_there(destination):
        raise UserError(f"{destination}: is already there; remove it or choose another folder")
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{destination}: cannot be written: {error.strerror}") from None
    write_text(destination, (folder() / f"{name}.yaml").read_text(encoding="utf-8"))
    return destination


def find(path: Path) -> Path:
    """Return `path`, or the recipe that comes with trainkit where `path` is only its name."""
    if is_there(path) or path.parent != Path() or path.stem not in names():
        return path
    found = folder() / f"{path.stem}.yaml"
    # Messages name this file: keep it short where it lies below the current folder.
    if found.is_relative_to(Path.cwd()):
        return found.relative_to(Path.cwd())
    return found
