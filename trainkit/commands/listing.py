"""What `trainkit plugins` and `trainkit data` show: all that is installed, by room, or one with
its options.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path

from pydantic import BaseModel
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trainkit.hooks.discovery import Listing, load_class

_NAMES = 24  # characters of the column of names


def show_all(listings: list[Listing], out: Console, command: str = "plugins") -> None:
    """Print every plugin or source with what it does, those of one room together."""
    width = max([_NAMES, *(len(listing.name) + 4 for listing in listings)])
    for room in dict.fromkeys((listing.distribution, listing.room) for listing in listings):
        out.print(Text(f"{room[1]} ({room[0]})", style="bold"))
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(width=width - 2, no_wrap=True)
        table.add_column()
        for listing in listings:
            if (listing.distribution, listing.room) == room:
                table.add_row(f"  {listing.name}", listing.summary)
        out.print(table)
    what = "its hooks and options" if command == "plugins" else "its options"
    out.print(f"\n`trainkit {command} NAME` shows one with {what}.")


def show_one(name: str, hooks: tuple[str, ...], out: Console) -> None:
    """Print what a plugin says of itself, and every option with its type, default and meaning.

    Raises:
        UserError: there is no such plugin, or it cannot be imported.
    """
    _, cls = load_class(name, Path())
    show_options(name, cls, out)
    facts = {"hooks": hooks, "before": cls.before, "after": cls.after, "requires": cls.requires}
    out.print()
    for label, value in facts.items():
        if value:
            out.print(f"{label}: {', '.join(value)}", soft_wrap=False)
    for other, reason in cls.conflicts.items():
        out.print(f"conflicts with {other}: {reason}", soft_wrap=False)


def show_options(name: str, cls: type[BaseModel], out: Console) -> None:
    """Print what a class says of itself, and its options with type, default and meaning."""
    out.print(f"{name}\n\n{inspect.getdoc(cls)}\n", soft_wrap=True)
    for option, field in cls.model_fields.items():
        default = (
            "required" if field.is_required() else json.dumps(field.get_default(), default=str)
        )
        kind = inspect.formatannotation(field.annotation).replace("typing.", "")
        out.print(Text.assemble((option, "bold"), f": {kind} = {default}"))
        out.print(Padding(field.description or "", (0, 0, 0, 4)), soft_wrap=False)
