"""`trainkit new plugin`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainkit.commands.endings import ending_well, out

app = typer.Typer(help="Write the skeleton of a plugin.", rich_markup_mode=None)


@app.callback(no_args_is_help=True)
def _new() -> None:
    """Write the skeleton of a plugin."""


@app.command()
@ending_well
def plugin(
    name: Annotated[str, typer.Argument(help="the plugin's name, as a recipe will have it")],
    folder: Annotated[
        Path, typer.Option("--to", help="a checkout of trainkit, or where a new folder goes")
    ] = Path(),
) -> None:
    """Write a plugin's skeleton: a room of this checkout, or elsewhere a distribution."""
    from trainkit.commands.skeletons import new_plugin

    skeleton = new_plugin(name, folder)
    out.print("\n".join(map(str, skeleton.files)))
    out.print("next:")
    out.print("\n".join(f"  {step}" for step in skeleton.further))
