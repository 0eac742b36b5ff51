"""Training techniques as plugins for timm models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainkit.data.drawn import DrawnEval, DrawnStream
    from trainkit.data.pools import ClassPool, class_pool, target_pool
    from trainkit.data.types import Data
    from trainkit.errors import UserError
    from trainkit.figures import figure, style
    from trainkit.folders import FolderName, own_folder
    from trainkit.groups import exempt_names
    from trainkit.history import History
    from trainkit.hooks import Hooks, hookimpl, moment, value
    from trainkit.log import Record
    from trainkit.plugin import Plugin
    from trainkit.report import Section
    from trainkit.run import Batch, Predictions, Run
    from trainkit.session import open_run
    from trainkit.strict_json import to_json
    from trainkit.terminal import Terminal
    from trainkit.window import Window
    from trainkit.writes import atomically, write_text, writing

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "ClassPool",
    "Data",
    "DrawnEval",
    "DrawnStream",
    "FolderName",
    "History",
    "Hooks",
    "Plugin",
    "Predictions",
    "Record",
    "Run",
    "Section",
    "Terminal",
    "UserError",
    "Window",
    "atomically",
    "class_pool",
    "exempt_names",
    "figure",
    "hookimpl",
    "moment",
    "open_run",
    "own_folder",
    "style",
    "target_pool",
    "to_json",
    "value",
    "write_text",
    "writing",
]

_HOMES = {
    "data.drawn": ("DrawnEval", "DrawnStream"),
    "data.pools": ("ClassPool", "class_pool", "target_pool"),
    "data.types": ("Data",),
    "errors": ("UserError",),
    "figures": ("figure", "style"),
    "folders": ("FolderName", "own_folder"),
    "groups": ("exempt_names",),
    "hooks": ("Hooks", "hookimpl", "moment", "value"),
    "history": ("History",),
    "log": ("Record",),
    "plugin": ("Plugin",),
    "report": ("Section",),
    "run": ("Batch", "Predictions", "Run"),
    "session": ("open_run",),
    "strict_json": ("to_json",),
    "writes": ("atomically", "write_text", "writing"),
    "terminal": ("Terminal",),
    "window": ("Window",),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: the command line starts without pydantic."""
    for module, names in _HOMES.items():
        if name in names:
            found = globals()[name] = getattr(import_module(f"trainkit.{module}"), name)
            return found
    raise AttributeError(f"module 'trainkit' has no attribute {name!r}")
