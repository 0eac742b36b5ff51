"""Training techniques as plugins for timm models."""

from trainkit.errors import UserError
from trainkit.figures import figure
from trainkit.hooks import Hooks, hookimpl, moment, value
from trainkit.log import History, Record
from trainkit.plugin import Plugin
from trainkit.report import Section
from trainkit.run import Batch, Predictions, Run

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "History",
    "Hooks",
    "Plugin",
    "Predictions",
    "Record",
    "Run",
    "Section",
    "UserError",
    "figure",
    "hookimpl",
    "moment",
    "value",
]
