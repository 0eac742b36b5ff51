"""A whole run on disk: its folder, training, interruption, resuming, and what is written at the end."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from trainkit import shelf
from trainkit.build import Setup, build, compose
from trainkit.checkpoint import Keeper, atomically, misfit, read_state
from trainkit.environment import facts
from trainkit.errors import Interrupted, TrainingError, UserError, suggest
from trainkit.log import History
from trainkit.loop import evaluate, fit
from trainkit.paths import is_file, is_folder
from trainkit.report import write_report
from trainkit.run import Run


def start(recipe: Path, overrides: Sequence[str], folder: Path | None, observers: Sequence[object]) -> Path:
    """Train a recipe in a fresh folder; return the folder. Raises what `_train` raises."""
    setup = compose(recipe, overrides)
    # The other ranks write nothing; a folder made by each would be one too many, or found not empty.
    target = new_folder(folder, recipe.stem) if os.environ.get("RANK", "0") == "0" else Path()
    try:
        run = build(setup, target, observers)
    except BaseException:
        with suppress(OSError):
            target.rmdir()  # nothing was written: leave no empty folder behind
        raise
    keeper = Keeper(run.folder, run)
    if run.folder is not None:
        (run.folder / "recipe.yaml").write_text(setup.recipe.dump(), encoding="utf-8")
        (run.folder / "environment.json").write_text(json.dumps(facts(run.device), indent=2) + "\n")
    return _train(run, keeper, target)


def resume(folder: Path, observers: Sequence[object]) -> Path:
    """Go on with an interrupted run, exactly; return its folder. Raises what `_train` raises.

    Raises:
        UserError: there is nothing to resume, or the recipe was changed since.
    """
    path = folder / "recipe.yaml"
    if not is_file(path):
        raise UserError(f"{folder}: is no run folder (there is no recipe.yaml in it)")
    state = read_state(folder / "checkpoints" / "last.pt")
    setup = compose(path)
    if setup.recipe.dump() != state["recipe"]:
        raise UserError(f"{path}: was changed since the checkpoint was written; restore it, or start a new run")
    if (state["epoch"] >= setup.recipe.train.epochs or state["stop_reason"]) and _ended(folder):
        raise UserError(f"{folder}: this run is finished after {state['step']} steps; there is nothing to resume")
    run = build(setup, folder, observers)
    keeper = Keeper(run.folder, run)
    keeper.restore(run, state)
    return _train(run, keeper, folder)


def _ended(folder: Path) -> bool:
    """Return whether a run wrote its summary at its end; killed after its last step, it has still to do so."""
    try:
        status = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["status"]
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return str(status).startswith((_FINISHED, _STOPPED))


_FINISHED, _STOPPED = "finished", "stopped early"


def open_run(source: str | Path, overrides: Sequence[str] = (), weights: str | Path | None = None) -> Run:
    """Build a run that trains nothing, with weights in its model: for commands that measure or change trained models.

    Args:
        source: the folder of a run; or a recipe, as a file or by the name of a bundled one; or the name of a timm
            model, and then the overrides say the rest, the data at least.
        overrides: `key=value` or `~key`, as on the command line.
        weights: `best` or `last` of a run folder, or a file that timm can load. Default: the best of a run folder;
            for anything else what `model.pretrained` and `model.checkpoint` of the recipe say.

    Raises:
        UserError: there is no such source or file, it has mistakes, or the weights do not fit the model.
    """
    folder = Path(source) if is_folder(source) else None
    if folder is not None and not is_file(folder / "recipe.yaml"):
        raise UserError(f"{folder}: is no run folder (there is no recipe.yaml in it)")
    run = build(_compose(str(source), folder, overrides))
    if weights in ("best", "last") and folder is None:
        raise UserError(f"only the folder of a run has {weights} weights, and {source} is none; name a file of weights")
    if folder is not None and weights == "last":
        file = folder / "checkpoints" / "last.pt"
        _load_weights(run, file, read_state(file)["model"])
    elif folder is not None and weights in (None, "best"):
        _load_weights(run, folder / "weights.safetensors")
    elif weights is not None:
        _load_weights(run, Path(weights))
    return run


def _compose(source: str, folder: Path | None, overrides: Sequence[str]) -> Setup:
    from timm import is_model, list_models

    path = folder / "recipe.yaml" if folder is not None else shelf.find(Path(source))
    if is_file(path):
        return compose(path, overrides)
    if is_model(source.partition(".")[0]):
        return compose(None, [f"model.name={source}", *overrides])
    near = suggest(source, [*shelf.names(), *list_models()])
    raise UserError(f"{source}: is no run folder, no recipe and no model of timm{near}")


def _load_weights(run: Run, file: Path, state: Mapping[str, Any] | None = None) -> None:
    """Load a file that timm can read, or the state that has been read from it."""
    from timm.models import load_checkpoint

    if not is_file(file):
        raise UserError(f"{file}: there are no weights here")
    try:
        if state is not None:
            run.model.load_state_dict(state)
        else:
            load_checkpoint(run.model, str(file), weights_only=True)
    except Exception as error:  # spoiled bytes may raise anything
        what = "these weights do not fit the model" if "state_dict" in str(error) else "cannot be read as weights"
        raise UserError(f"{file}: {what}: {misfit(error)[:160]}") from None


def measure(folder: Path, weights: str) -> dict[str, float]:
    """Return the validation metrics of a run folder's weights.

    Args:
        folder: the run folder.
        weights: `best` for weights.safetensors, `last` for the last checkpoint, or a path of weights.
    """
    if not is_folder(folder):
        raise UserError(f"{folder}: is no run folder (there is no recipe.yaml in it)")
    return evaluate(open_run(folder, weights=weights))


def _train(run: Run, keeper: Keeper, folder: Path) -> Path:
    """Train to the end and write what is left behind, however it ends.

    Raises:
        Interrupted: the user stopped the run; it can be resumed.
        TrainingError: the run cannot go on.
    """
    status = _FINISHED
    try:
        with interruptible() as interrupted:
            fit(run, keeper, interrupted=interrupted)
        if run.stop_reason:
            status = f"{_STOPPED}: {run.stop_reason}"
    except (Interrupted, KeyboardInterrupt):
        status = "interrupted"
        raise
    except (TrainingError, UserError) as error:  # a UserError: an image that cannot be read, say
        status = f"failed: {error}"
        raise
    except BaseException as error:  # whatever it is, the summary must not call the run finished
        status = f"failed: {type(error).__name__}: {error}"
        raise
    finally:
        if run.folder is not None and keeper.ran(run):
            finish(run, keeper, status)
        run.device.close()
    return folder


def finish(run: Run, keeper: Keeper, status: str) -> None:
    """Write summary.json, metrics.csv and report.html into the run folder."""
    folder = run.folder
    if folder is None:
        return
    best = keeper.best[0] if keeper.best else None
    summary: dict[str, Any] = {
        "status": status,
        "model": run.recipe.model.name,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "data": run.data.summary,
        "seed": run.recipe.seed,
        "steps": run.step,
        "epochs": run.epoch,
        "effective_batch_size": run.data.train.examples_per_step,
        "seconds": round(keeper.seconds, 2),
        "final": keeper.final,
        "best": best
        and {"metric": keeper.spec.metric, "value": best["value"], "epoch": best["epoch"], **best["metrics"]},
        "notes": run.log.notes,
    }
    text = json.dumps(summary, indent=2) + "\n"
    atomically(folder / "summary.json", lambda part: part.write_text(text))
    History.read(folder / "metrics.jsonl").write_csv(folder / "metrics.csv")
    write_report(folder, list(run.plugins.values()))


def new_folder(wanted: Path | None, name: str) -> Path:
    """Make the run folder: `wanted`, which must be empty or new, or a fresh one under `runs/`.

    Raises:
        UserError: it has files in it, or cannot be written.
    """
    try:
        if wanted is not None:
            wanted.mkdir(parents=True, exist_ok=True)
            if any(wanted.iterdir()):
                raise UserError(f"{wanted}: is not empty; name another folder, or go on with `--resume {wanted}`")
            probe = wanted / ".write"
            probe.touch()
            probe.unlink()
            return wanted
        stem = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
        for suffix in ("", *(f"-{i}" for i in range(2, 100))):
            folder = Path("runs") / f"{stem}{suffix}"
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:
                continue
        raise UserError(f"runs/{stem}: too many runs began in this second")
    except OSError as error:
        raise UserError(f"{wanted or 'runs'}: cannot be written: {error.strerror}; choose another --run-dir") from None


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C (or SIGTERM) into a flag that the loop asks for; a second Ctrl-C stops at once."""
    asked = False

    def ask(signum: int, frame: object) -> None:
        nonlocal asked
        if asked and signum == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
