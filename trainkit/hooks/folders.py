"""Folders that plugins make in a run folder: below it, and nowhere else, whatever a recipe asks
for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from trainkit.errors import UserError, printable

if TYPE_CHECKING:
    from trainkit.hooks.plugin import Plugin
    from trainkit.hooks.run import Run

CORE = (
    *(
        "recipe.yaml",
        "environment.json",
        "metrics.jsonl",
        "metrics.csv",
        "checkpoints",
        "summary.json",
    ),
    *("report.html", "weights.safetensors"),
)
"""What core itself writes into a run folder."""


def _check(name: str) -> str:
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\\" in name or ":" in name:
        raise ValueError(
            "give a name below the run folder, such as logs or logs/events: no way out of it"
        )
    if not all(0 < len(part) <= 100 and part.strip() == part and part[0] != "." for part in parts):
        raise ValueError(
            "each part of a folder's name has 1 to 100 characters, no dot first, no space at its "
            "ends"
        )
    if printable(name) != name or "\n" in name or "\t" in name:
        raise ValueError("a folder's name has no control characters")
    if parts[0].lower() in CORE:
        raise ValueError(f"{parts[0]} is what core writes there; choose another name")
    return name


FolderName = Annotated[str, Field(min_length=1), AfterValidator(_check)]
"""Type of a plugin's option that names a folder of its own below the run folder; other names are
refused.

`own_folder` makes it.
"""


def own_folder(run: Run, plugin: Plugin, option: str) -> Path:
    """Make the folder that an option of the type `FolderName` names, and return it.

    Args:
        run: with a folder.
        plugin: whose folder it is.
        option: its option whose value is the name.

    Raises:
        UserError: a file stands there already, a link leads elsewhere, or the folder cannot be
            made.
    """
    assert run.folder is not None
    folder: Path = run.folder / getattr(plugin, option)
    place = (
        f"{run.recipe.raw.nearest('plugins', plugin.name, option)}: plugins.{plugin.name}.{option}"
    )
    if not folder.resolve().is_relative_to(run.folder.resolve()):
        raise UserError(
            f"{place}: {folder} is a link that leads out of the run folder; remove it, or choose "
            "another"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{place}: {folder} cannot be made: {error.strerror}; choose another name"
        ) from None
    return folder
