"""Finding the source of data that a recipe names, and the recipe's model with its options."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, create_model

from trainkit.config.data_source import DataSource
from trainkit.config.raw import RawRecipe, validate
from trainkit.errors import PluginError, Problem, TrainingError, UserError, suggest
from trainkit.system.discovery import DATA, installed_in, is_local, load_installed, load_local
from trainkit.system.failures import failure

BELOW = "/*"
"""The end of an entry point's name that stands for every name below a prefix: `torch/*`."""

M = TypeVar("M", bound=BaseModel)


class _AnySource(DataSource):
    """Any source: what a recipe is checked against where its own cannot be found."""

    model_config = ConfigDict(extra="allow")


def installed_sources() -> dict[str, EntryPoint]:
    """Return every installed source of data by name. Nothing is imported.

    Raises:
        UserError: two distributions offer the same name.
    """
    return installed_in(DATA, "sources of data")


def source_class(name: str, folder: Path) -> type[DataSource]:
    """Import the source of data that a recipe calls `name`.

    Args:
        name: an installed source's name, or `path/to/file.py:Class`.
        folder: from which such a path counts.

    Raises:
        UserError: there is no such source, it cannot be imported, or it is none.
    """
    if is_local(name):
        found = load_local(name, folder, "MySource")[1]
    else:
        points = installed_sources()
        prefix, slash, _ = name.partition("/")
        point = points.get(prefix + BELOW if slash and name not in points else name)
        if point is None:
            raise UserError(_unknown(name, list(points)))
        found = load_installed(point)
    if not isinstance(found, type) or not issubclass(found, DataSource):
        raise UserError(f"{found!r} is not a subclass of trainkit.DataSource")
    return found


def _unknown(name: str, known: list[str]) -> str:
    if not known:
        return (
            "no source of data is installed, not even trainkit's own: the installation is older "
            "than the code; install it anew (`pip install -e .` in a checkout)"
        )
    shown = ", ".join(key.replace(BELOW, "/…") for key in known)
    return f"no data set has this name{suggest(name, known)} (there are: {shown})"


def read_with_source(model: type[M], raw: RawRecipe) -> tuple[M | None, list[Problem]]:
    """Make a `model` of a recipe, its field `data` of the class that the recipe names.

    Raises:
        PluginError: code of that class raises what is no word about an option.
    """
    section = raw.data.get("data")
    name = section.get("name") if isinstance(section, dict) else None
    cls: type[DataSource] = _AnySource
    problems = []
    if isinstance(name, str) and name:
        try:
            cls = source_class(name, raw.folder("data", "name"))
        except UserError as error:
            location = raw.nearest("data", "name")
            problems.append(Problem(location, "data.name", f'{error}; got "{name}"'))
    try:
        found, others = validate(_with_source(model, cls), raw.data, raw, ())
    except (UserError, TrainingError):
        raise
    except Exception as error:
        raise PluginError(f"data source {name}: {failure(error, cls, 'making it')}") from error
    return (None if problems else found), [*problems, *others]


@cache
def _with_source(model: type[M], cls: type[DataSource]) -> type[M]:
    """Return `model` with `data` of the class `cls`, so that its options are checked in place."""
    field = Field(description=model.model_fields["data"].description)
    made: Any = create_model(
        model.__name__,
        __base__=model,
        __module__=model.__module__,
        __doc__=model.__doc__,
        data=(cls, field),
    )
    return cast(type[M], made)
