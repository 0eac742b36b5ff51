"""Building the data of a recipe, whoever wrote its source."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainkit.config.recipe import Recipe
from trainkit.data.types import Data
from trainkit.errors import Interrupted, PluginError, TrainingError, UserError
from trainkit.system.failures import failure, place_of

if TYPE_CHECKING:
    from trainkit.training.device import Device


def build_source(recipe: Recipe, device: Device) -> Data:
    """Return the data that a recipe names, for this rank.

    Raises:
        UserError: the files are not there, or do not fit the recipe.
        PluginError: the source raises anything else, or returns something else.
    """
    source = recipe.data
    build = type(source).build
    try:
        data = source.build(recipe, device)
    except (UserError, TrainingError, Interrupted):
        raise
    except Exception as error:
        raise PluginError(f"data source {source.name}: {failure(error, build, 'build')}") from error
    if not isinstance(data, Data):
        wrong = f"build returned {type(data).__name__}; it must return trainkit.Data"
        raise PluginError(f"data source {source.name}: {wrong}{place_of(build)}")
    if recipe.data.missing is not None and not data.missing:
        mark = recipe.raw.nearest("data", "missing")
        raise UserError(f"{mark}: data.missing: {source.name} hides no entries; leave it out")
    return data
