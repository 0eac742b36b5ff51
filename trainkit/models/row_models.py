"""Models of rows of features [N, F], which installed distributions add to those of timm."""

from __future__ import annotations

from importlib.metadata import EntryPoint

from trainkit.system.discovery import installed_in, load_installed

GROUP = "trainkit.row_models"
"""The group of entry points: each names a function that is registered with timm when imported."""


def row_models() -> dict[str, EntryPoint]:
    """Return the models that take rows of features; all others take images.

    Raises:
        UserError: two distributions offer the same name.
    """
    return installed_in(GROUP, "models")


def register(name: str) -> None:
    """Import the model of rows that has this name, if there is one, and so tell timm of it.

    Raises:
        UserError: it cannot be imported.
    """
    point = row_models().get(name)
    if point is not None:
        load_installed(point)
