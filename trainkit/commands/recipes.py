"""`trainkit recipes` and `trainkit recipes copy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from trainkit.commands.endings import ending_well, out

app = typer.Typer(
    help="List the recipes that come with trainkit, or copy one.", rich_markup_mode=None
)


@app.callback(invoke_without_command=True)
@ending_well
def recipes(context: typer.Context) -> None:
    """List the recipes that come with trainkit, or copy one."""
    if context.invoked_subcommand is None:
        from trainkit.config import bundled

        table = Table("recipe", "claim")
        for name in bundled.names():
            table.add_row(name, bundled.first_lines(name))
        out.print(table)


@app.command()
@ending_well
def copy(
    name: Annotated[str, typer.Argument(help="the recipe's name")],
    folder: Annotated[Path, typer.Option("--to", help="folder to copy it to")] = Path(),
) -> None:
    """Copy a recipe, to change it."""
    from trainkit.config import bundled

    out.print(str(bundled.copy(name, folder)))
