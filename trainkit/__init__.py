"""Training techniques as plugins for timm models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainkit.commands.plan_page import Plan
    from trainkit.commands.result import Result
    from trainkit.commands.session import open_run
    from trainkit.commands.train import plan, resume, train
    from trainkit.config.data_source import DataSource
    from trainkit.config.direction import goodness
    from trainkit.config.recipe import Recipe
    from trainkit.data.class_images import ImagesByClass
    from trainkit.data.image_data import Splits
    from trainkit.data.images import ImageSource
    from trainkit.data.loader import Images, Rows
    from trainkit.data.streams import make_streams
    from trainkit.data.types import Data
    from trainkit.errors import Interrupted, PluginError, RecipeError, TrainingError, UserError
    from trainkit.hooks.folders import FolderName, own_folder
    from trainkit.hooks.plugin import Plugin
    from trainkit.hooks.recorder import Recorder
    from trainkit.hooks.run import Batch, Predictions, Run
    from trainkit.hooks.section import Section
    from trainkit.hooks.specs import Hooks, hookimpl, moment, value
    from trainkit.log.history import History
    from trainkit.log.records import Record
    from trainkit.models.anatomy import (
        classifiers,
        decaying_parameters,
        exempt_names,
        first_layers,
    )
    from trainkit.report.figures import figure, style
    from trainkit.system.strict_json import to_json
    from trainkit.system.terminal import Terminal
    from trainkit.system.writes import atomically, write_text, writing
    from trainkit.training.device import Device
    from trainkit.training.window import Window

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Data",
    "DataSource",
    "Device",
    "FolderName",
    "History",
    "Hooks",
    "ImageSource",
    "Images",
    "ImagesByClass",
    "Interrupted",
    "Plan",
    "Plugin",
    "PluginError",
    "Predictions",
    "Recipe",
    "RecipeError",
    "Record",
    "Recorder",
    "Result",
    "Rows",
    "Run",
    "Section",
    "Splits",
    "Terminal",
    "TrainingError",
    "UserError",
    "Window",
    "atomically",
    "classifiers",
    "decaying_parameters",
    "exempt_names",
    "figure",
    "first_layers",
    "goodness",
    "hookimpl",
    "make_streams",
    "moment",
    "open_run",
    "own_folder",
    "plan",
    "resume",
    "style",
    "to_json",
    "train",
    "value",
    "write_text",
    "writing",
]

_HOMES = {
    "config.direction": ("goodness",),
    "config.data_source": ("DataSource",),
    "config.recipe": ("Recipe",),
    "data.class_images": ("ImagesByClass",),
    "data.image_data": ("Splits",),
    "data.images": ("ImageSource",),
    "data.loader": ("Images", "Rows"),
    "data.streams": ("make_streams",),
    "data.types": ("Data",),
    "errors": ("Interrupted", "PluginError", "RecipeError", "TrainingError", "UserError"),
    "report.figures": ("figure", "style"),
    "hooks.folders": ("FolderName", "own_folder"),
    "models.anatomy": ("classifiers", "decaying_parameters", "exempt_names", "first_layers"),
    "training.device": ("Device",),
    "hooks.specs": ("Hooks", "hookimpl", "moment", "value"),
    "log.history": ("History",),
    "log.records": ("Record",),
    "hooks.plugin": ("Plugin",),
    "hooks.recorder": ("Recorder",),
    "hooks.section": ("Section",),
    "hooks.run": ("Batch", "Predictions", "Run"),
    "commands.plan_page": ("Plan",),
    "commands.result": ("Result",),
    "commands.session": ("open_run",),
    "commands.train": ("plan", "resume", "train"),
    "system.strict_json": ("to_json",),
    "system.writes": ("atomically", "write_text", "writing"),
    "system.terminal": ("Terminal",),
    "training.window": ("Window",),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: the command line starts without pydantic."""
    for module, names in _HOMES.items():
        if name in names:
            found = globals()[name] = getattr(import_module(f"trainkit.{module}"), name)
            return found
    raise AttributeError(f"module 'trainkit' has no attribute {name!r}")
