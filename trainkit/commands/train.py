"""Training and planning from Python; the command line goes through the same door.

What can be refused without torch is refused before it is loaded, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from trainkit.config import bundled
from trainkit.config.raw import Given, read_raw, run_name
from trainkit.system.run_folder import begun, check_is_run, held, writes
from trainkit.system.terminal import Terminal

if TYPE_CHECKING:
    from trainkit.commands.plan_page import Plan
    from trainkit.commands.result import Result

AnyRecipe = Path | str | Mapping[str, Any]
"""A recipe file, the name of a recipe that comes with trainkit, or the recipe as nested
mappings.
"""


def train(
    recipe: AnyRecipe,
    *overrides: str,
    run_dir: Path | str | None = None,
    observers: Sequence[object] = (),
    progress: bool = True,
) -> Result:
    """Train a recipe, as `trainkit train` does, and return what came of it.

    Args:
        recipe: a recipe file, the name of a recipe that comes with trainkit, or nested mappings.
            Paths in mappings count from the working directory.
        overrides: `key=value` or `~key`, as on the command line.
        run_dir: folder for the results, empty or not there yet; default: a fresh one in `runs/`.
        observers: further objects with hooks, told after the plugins; see `Recorder`.
        progress: show how the run goes, in a terminal or a notebook.

    Raises:
        UserError: something given cannot be used; the message says what, where, and the fix.
        Interrupted: the user stopped the run; `resume(error.folder)` goes on with it.
        TrainingError: the run cannot go on.
    """
    folder = None
    if run_dir is not None:
        folder = Path(run_dir)
    return begin(_given(recipe), overrides, folder, observers, _console(progress))


def resume(
    run_dir: Path | str,
    *overrides: str,
    observers: Sequence[object] = (),
    progress: bool = True,
) -> Result:
    """Go on with a run that was stopped, exactly as if it had not been, or make one longer.

    Args:
        run_dir: the folder of the run.
        overrides: only `train.epochs=N`, which makes the run longer.
        observers: as for `train`.
        progress: as for `train`.

    Raises:
        UserError: there is nothing to go on with, or another process is at it.
        Interrupted: the user stopped the run again.
        TrainingError: the run cannot go on.
    """
    return go_on(Path(run_dir), overrides, observers, _console(progress))


def plan(recipe: AnyRecipe, *overrides: str) -> Plan:
    """Return what a recipe will do, as `trainkit plan` shows it: a dict that prints as that page.

    Args:
        recipe: as for `train`.
        overrides: as for `train`.

    Raises:
        UserError: the recipe has mistakes.
        PluginError: a plugin broke the rules of a hook.
    """
    from trainkit.commands.plan import make_plan
    from trainkit.commands.plan_page import Plan

    return Plan(make_plan(_given(recipe), overrides))


def begin(
    recipe: Given,
    overrides: Sequence[str],
    folder: Path | None,
    observers: Sequence[object],
    console: Console | None,
) -> Result:
    """Train a recipe in a fresh folder, and show progress on `console`; raises as `train` does."""
    read_raw(recipe, overrides)
    with ExitStack() as stack:
        if writes():
            folder = stack.enter_context(begun(folder, run_name(recipe)))
        with Terminal(stderr=True).waiting("loading torch"):
            from trainkit.commands import session
        shown = stack.enter_context(_shown(console))
        return session.start(recipe, overrides, folder, [*observers, *shown])


def go_on(
    folder: Path, overrides: Sequence[str], observers: Sequence[object], console: Console | None
) -> Result:
    """Go on with a run, and show progress on `console`; raises as `resume` does."""
    check_is_run(folder)
    with ExitStack() as stack:
        if writes():
            stack.enter_context(held(folder))
        with Terminal(stderr=True).waiting("loading torch"):
            from trainkit.commands import session
        shown = stack.enter_context(_shown(console))
        return session.resume(folder, [*observers, *shown], overrides)


def _given(recipe: AnyRecipe) -> Given:
    if isinstance(recipe, Mapping):
        return recipe
    return bundled.find(Path(recipe))


def _console(progress: bool) -> Console | None:
    if progress:
        return Terminal()
    return None


@contextmanager
def _shown(console: Console | None) -> Iterator[list[object]]:
    """Make the observers that show progress, on the rank that writes, and end their display."""
    if console is None or not writes():
        yield []
        return
    from trainkit.report.progress import Progress

    progress = Progress(console)
    try:
        yield [progress]
    finally:
        progress.close()
