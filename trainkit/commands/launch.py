"""`trainkit train`: what its arguments mean together, and what it prints at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from trainkit.commands.train import begin, go_on
from trainkit.config import bundled
from trainkit.errors import UserError


def launch(
    recipe: Path | None,
    overrides: Sequence[str],
    folder: Path | None,
    resume: Path | None,
    out: Console,
) -> None:
    """Train a recipe in a fresh folder, or go on with the run in `resume`, and show progress and
    result.

    Args:
        recipe: a recipe file or the name of a bundled one; None to go on with a run.
        overrides: as on the command line.
        folder: of the new run; None for a fresh one.
        resume: the folder of the run to go on with.
        out: where to show them.

    Raises:
        UserError: something given cannot be used.
        Interrupted: the user stopped the run.
        TrainingError: the run cannot go on.
    """
    if resume is not None and recipe is not None and "=" in str(recipe):
        recipe, overrides = None, [str(recipe), *overrides]  # no recipe, but a first override
    if recipe is not None and resume is None:
        result = begin(bundled.find(recipe), overrides, folder, [], out)
    elif recipe is None and resume is not None and folder is None:
        result = go_on(resume, overrides, [], out)
    else:
        raise UserError(
            "give a recipe (and overrides, --run-dir), or only --resume DIR: a resumed run keeps "
            "its own, and only train.epochs=… can make it longer"
        )
    if result.folder is not None:
        out.print(result.table())
        out.print(f"{result.folder}/report.html")
