"""`trainkit train`: what can be refused without torch is refused before it is loaded, which
takes seconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from trainkit.config import bundled as shelf
from trainkit.config.raw import read_raw
from trainkit.errors import UserError
from trainkit.system.run_folder import begun, check_is_run, held, writes
from trainkit.system.terminal import Terminal


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
    if (
        resume is not None and recipe is not None and "=" in str(recipe)
    ):  # no recipe, but a first override
        recipe, overrides = None, [str(recipe), *overrides]
    if (recipe is None) == (resume is None) or (resume and folder):
        raise UserError(
            "give a recipe (and overrides, --run-dir), or only --resume DIR: a resumed run keeps "
            "its own, and only train.epochs=… can make it longer"
        )
    with ExitStack() as holding:
        if resume is not None:
            check_is_run(resume)
            if writes():
                holding.enter_context(held(resume))
        elif recipe is not None:
            recipe = shelf.find(recipe)
            read_raw(recipe, overrides)
            folder = holding.enter_context(begun(folder, recipe.stem)) if writes() else None
        _train(recipe, overrides, folder, resume, out)


def _train(
    recipe: Path | None,
    overrides: Sequence[str],
    folder: Path | None,
    resume: Path | None,
    out: Console,
) -> None:
    with Terminal(stderr=True).waiting("loading torch"):
        from trainkit.commands import session
    from trainkit.report.progress import Progress
    from trainkit.report.summary import summary_table

    progress = Progress(out)
    observers = [progress] if writes() else []
    try:
        if resume is not None:
            done = session.resume(resume, observers, overrides)
        else:
            assert recipe is not None  # the command line has seen to it
            done = session.start(recipe, overrides, folder, observers)
    finally:
        progress.close()
    if done is not None:
        out.print(summary_table(json.loads((done / "summary.json").read_text())))
        out.print(f"{done}/report.html")
