"""The command line. It imports torch only in the commands that compute something."""

from __future__ import annotations

import sys
from collections.abc import Callable
from copy import copy
from importlib.metadata import EntryPoint, entry_points
from inspect import signature
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.table import Table

from trainkit.commands import new, recipes, sources
from trainkit.commands.endings import ending_well, err, out
from trainkit.errors import TrainingError
from trainkit.system.strict_json import to_json

app = typer.Typer(
    name="trainkit",
    help="Training techniques as plugins for timm models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
F = TypeVar("F", bound=Callable[..., Any])

RecipePath = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="a YAML file, or the name of a bundled recipe")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE …]", help="set a key (a.b=1) or remove one (~a.b)"),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def _say_version(asked: bool) -> None:
    if asked:
        from trainkit import __version__

        print(f"trainkit {__version__}")  # noqa: T201 - one line for scripts
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_say_version, is_eager=True, help="print the version and exit"
        ),
    ] = False,
) -> None:
    """Training techniques as plugins for timm models."""


def _command(function: F, name: str | None = None, to: typer.Typer = app) -> F:
    """Register a command whose failures end in one message and an exit code, not in a traceback."""
    # What is no option is taken for an override, whose check says how one is written.
    lenient = {"ignore_unknown_options": "overrides" in signature(function).parameters}
    return to.command(name, context_settings=lenient)(ending_well(function))


@_command
def train(
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="[RECIPE]", help="a YAML file, or the name of a bundled recipe"),
    ] = None,
    overrides: Overrides = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="folder for the results; default: a fresh one in runs/")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="go on with the run in this folder; a larger train.epochs=… makes it longer"
        ),
    ] = None,
) -> None:
    """Train a recipe, or go on with a run that was interrupted."""
    from trainkit.commands.launch import launch

    launch(recipe, overrides or [], run_dir, resume, out)


@_command
def plan(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show what a recipe will do, before anything trains."""
    from trainkit.config import bundled

    with err.waiting("loading torch"):
        from trainkit.commands.plan import make_plan
        from trainkit.commands.plan_page import show

    made = make_plan(bundled.find(recipe), overrides or [])
    if as_json:
        print(to_json(made, indent=2))  # noqa: T201 - rich would wrap it
    else:
        show(made, out)


def evaluate_run(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="the folder of a run")],
    weights: Annotated[str, typer.Option(help="best, last, or a file of weights")] = "best",
    as_json: AsJson = False,
) -> None:
    """Measure the weights of a run on its validation data."""
    from trainkit.system.run_folder import check_is_run

    check_is_run(run_dir)
    with err.waiting("loading torch"):
        from trainkit.commands.session import open_run, what_is_measured
        from trainkit.training.loop import evaluate

    run = open_run(run_dir, weights=weights)
    metrics = evaluate(run)
    if as_json:
        print(to_json(metrics, indent=2))  # noqa: T201 - rich would wrap it
        return
    out.print("\n".join(what_is_measured(run, run_dir, weights)))
    table = Table("metric", "value")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    out.print(table)


_command(evaluate_run, "eval")


@_command
def plugins(
    name: Annotated[
        str | None, typer.Argument(help="show one plugin and its options (imports it)")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the installed plugins, or show one."""
    from trainkit.hooks.discovery import describe, installed, load_class

    if name is None:
        listings = []
        for point in installed().values():
            listings.append(describe(point))
        if as_json:
            rows = [vars(listing) for listing in listings]
            print(to_json(rows, indent=2))  # noqa: T201 - rich would wrap it
        else:
            from trainkit.commands.listing import show_all

            show_all(listings, out)
    elif as_json:
        from trainkit.commands.schema import plugin_schema

        options = plugin_schema(load_class(name, Path())[1])
        print(to_json(options, indent=2))  # noqa: T201 - rich would wrap it
    else:
        from trainkit.commands.listing import show_one

        points = installed()
        show_one(name, describe(points[name]).hooks if name in points else (), out)


_command(sources.data)

app.add_typer(recipes.app, name="recipes")
app.add_typer(new.app, name="new")


@_command
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from trainkit.commands.schema import recipe_schema

    print(to_json(recipe_schema(), indent=2))  # noqa: T201 - rich would wrap it


@_command
def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="the folder of a run")],
) -> None:
    """Make report.html again from what a run logged."""
    from trainkit.hooks.entries import read_entries
    from trainkit.report.page import write_report
    from trainkit.system.run_folder import check_is_run, held

    check_is_run(run_dir)
    with held(run_dir):
        plugins = []
        for entry in read_entries(run_dir / "recipe.yaml"):
            plugins.append(entry.plugin)
        out.print(str(write_report(run_dir, plugins)))


@_command
def cite(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Print the BibTeX of the papers behind a recipe."""
    from trainkit.commands.cite import citations
    from trainkit.config import bundled
    from trainkit.hooks.entries import read_entries

    entries = read_entries(bundled.find(recipe), overrides or [])
    print(citations(entries))  # noqa: T201 - BibTeX, as it is


@_command
def verify_resume(
    recipe: RecipePath,
    overrides: Overrides = None,
    at: Annotated[int, typer.Option(help="stop after this step")] = 7,
    steps: Annotated[
        int | None, typer.Option(help="compare after this step; default: five steps later")
    ] = None,
) -> None:
    """Prove that a recipe resumes exactly: train with and without a stop, and compare every bit."""
    from trainkit.config import bundled

    with err.waiting("loading torch"):
        from trainkit.commands.verify import verify_resume as verify

    verdict = verify(bundled.find(recipe), overrides or [], at, steps)
    if verdict.difference is not None:
        raise TrainingError(
            f"resumed after step {verdict.at}, step {verdict.steps} differs: {verdict.difference}"
        )
    out.print(
        f"resumed after step {verdict.at}: everything is the same, bit for bit, after step "
        f"{verdict.steps}"
    )


def with_plugins(asked: str) -> typer.Typer:
    """Return the command line with the commands of installed plugins; the one that is asked for
    is imported.
    """
    whole = copy(app)
    whole.registered_commands = list(app.registered_commands)
    for point in entry_points(group="trainkit.commands"):
        _add(whole, point, asked)
    return whole


def _add(to: typer.Typer, point: EntryPoint, asked: str) -> None:
    """Add the command of a plugin, a function as Typer takes them; it is imported only when it
    is asked for.
    """
    if point.name == asked:
        with err.waiting(f"loading {point.module}"):
            function = point.load()
        _command(function, point.name, to)
        return
    from trainkit.hooks.discovery import command_summary

    to.command(point.name, help=f"{command_summary(point)} ({point.module.split('.')[0]})")(
        lambda: None
    )


def main() -> None:
    """Run the command line, with the commands that installed plugins bring."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # a terminal that knows no `…` is no reason to fail
    asked = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    with_plugins(asked)(prog_name="trainkit")


if __name__ == "__main__":
    main()
