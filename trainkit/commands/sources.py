"""`trainkit data`: the installed sources of data, or one with its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainkit.commands.endings import out
from trainkit.system.strict_json import to_json


def data(
    name: Annotated[
        str | None, typer.Argument(help="show one source and its options (imports it)")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """List the installed sources of data, or show one."""
    if name is None:
        from trainkit.commands.listing import show_all
        from trainkit.hooks.discovery import describe
        from trainkit.system.discovery import DATA, installed_in

        listings = []
        for point in installed_in(DATA, "sources of data").values():
            listings.append(describe(point))
        if as_json:
            facts = []
            for one in listings:
                facts.append(
                    {"name": one.name, "summary": one.summary, "distribution": one.distribution}
                )
            print(to_json(facts, indent=2))  # noqa: T201 - rich would wrap it
        else:
            show_all(listings, out, command="data")
        return
    from trainkit.config.find_source import source_class

    cls = source_class(name, Path())
    if as_json:
        from trainkit.commands.schema import source_schema

        print(to_json(source_schema(cls), indent=2))  # noqa: T201 - rich would wrap it
    else:
        from trainkit.commands.listing import show_options

        show_options(name, cls, out)
