"""`tensorboard` and `wandb`: loggers. Their packages are imported only in a run that names them."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, PrivateAttr, model_validator

from trainkit import (
    FolderName,
    Plugin,
    Record,
    Run,
    TrainingError,
    hookimpl,
    own_folder,
    write_text,
    writing,
)


def _require(package: str) -> None:
    if find_spec(package) is None:
        raise ValueError(
            f"needs the package {package}, which is not installed; install it with: pip install "
            f"'trainkit[{package}]'"
        )


def _finite(values: list[float]) -> list[float]:
    return [v for v in values if math.isfinite(v)]


@contextmanager
def _python_stream_kept() -> Iterator[None]:
    """Undo what a package does to Python's global random stream, so that logging changes
    nothing.
    """
    before = random.getstate()
    try:
        yield
    finally:
        random.setstate(before)


def _keep_writers_quiet() -> None:
    """Let no thread of TensorBoard print that it could not write: the thread that asked for it
    raises it again.
    """
    before = threading.excepthook
    if getattr(before, "__name__", "") == "unless_writer":
        return

    def unless_writer(args: threading.ExceptHookArgs) -> None:
        if not (
            isinstance(args.exc_value, OSError)
            and type(args.thread).__name__ == "_AsyncWriterThread"
        ):
            before(args)

    threading.excepthook = unless_writer


@contextmanager
def _sending(package: Any, folder: Path) -> Iterator[None]:
    """Run a block in which W&B writes into `folder`; what it cannot do ends the run in one line."""
    try:
        with writing(folder):
            yield
    except package.Error as error:
        raise TrainingError(f"wandb: {str(error) or type(error).__name__}") from error


def _wait_for_a_later_name(folder: Path) -> None:
    """Wait out the second in which an event file of `folder` was begun.

    TensorBoard reads the files of a folder in the order of their names, which count seconds: of two
    that were begun in the same one, the older may be read last, and its points stand for the
    newer's.
    """
    names = [path.name.split(".") for path in folder.glob("events.out.tfevents.*")]
    begun = {parts[3] for parts in names if len(parts) > 3}
    while str(int(time.time())) in begun:
        time.sleep(0.02)


class TensorBoard(Plugin):
    """Write what the run logs as TensorBoard event files.

    Numbers become scalars, vectors histograms. A resumed run goes on in the same folder and hides
    the points that the interrupted one wrote after the checkpoint.
    """

    citation: ClassVar[str] = ""
    neutral: ClassVar[dict[str, Any]] = {}

    folder: FolderName = Field("tensorboard", description="where to write, inside the run folder")
    flush_seconds: int = Field(30, ge=1, le=86400, description="write to disk at least this often")

    _writer: Any = PrivateAttr(default=None)
    _where: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _check(self) -> TensorBoard:
        _require("tensorboard")
        return self

    @hookimpl
    def on_fit_start(self, run: Run) -> None:
        """Open the event file, and take back what was written after the step from which the run
        goes on.
        """
        if run.folder is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        _keep_writers_quiet()
        self._where = own_folder(run, self, "folder")
        _wait_for_a_later_name(self._where)
        with writing(self._where):
            self._writer = SummaryWriter(
                str(self._where), purge_step=run.step + 1, flush_secs=self.flush_seconds
            )
            if run.step == 0:
                recipe = "".join(f"    {line}\n" for line in run.recipe.dump().splitlines())
                self._writer.add_text("recipe", recipe, 0)

    @hookimpl
    def on_log(self, record: Record) -> None:
        """Write one record."""
        if self._writer is None:
            return
        with writing(self._where):
            self._writer.add_scalar("epoch", record.epoch + 1, record.step)
            for name, value in record.values.items():
                if not isinstance(value, list):
                    self._writer.add_scalar(name, value, record.step)
                elif finite := _finite(value):
                    import numpy as np

                    self._writer.add_histogram(name, np.asarray(finite), record.step)

    @hookimpl
    def on_fit_end(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            with writing(self._where):
                self._writer.close()
            self._writer = None

    def state_dict(self) -> dict[str, Any]:
        """Bring to disk what was logged before the checkpoint; there is nothing else to keep."""
        if self._writer is not None:
            with writing(self._where):
                self._writer.flush()
        return {}

    def explain(self, run: Run) -> list[str]:
        """Say where the files go."""
        return [f"writes event files into {self.folder}/ of the run folder"]


class Wandb(Plugin):
    """Send what the run logs to Weights & Biases; by default into local files that `wandb sync` can
    upload.

    Numbers are logged as they are, vectors as histograms. A resumed run goes on under the same run
    id, which is kept in wandb_id.txt of the run folder; the steps that it takes again are sent
    again, and are the same numbers.
    """

    citation: ClassVar[str] = ""
    neutral: ClassVar[dict[str, Any]] = {}

    mode: Literal["offline", "online", "disabled"] = Field(
        "offline", description="write local files; send to the server; or do nothing"
    )
    project: str = Field("trainkit", min_length=1, description="W&B project")
    entity: str | None = Field(None, description="W&B user or team; default: your own")
    run_name: str | None = Field(
        None, description="name shown for the run; default: that of the run folder"
    )
    tags: tuple[str, ...] = Field((), description="tags of the run")

    _run: Any = PrivateAttr(default=None)
    _module: Any = PrivateAttr(default=None)
    _where: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _check(self) -> Wandb:
        if self.mode != "disabled":
            _require("wandb")
        return self

    @hookimpl
    def on_fit_start(self, run: Run) -> None:
        """Start the W&B run, or go on with the one that this run folder has begun."""
        if self.mode == "disabled" or run.folder is None:
            return
        # In a file, not in the state: which W&B run this folder is has nothing to do with how far
        # training is.
        file = run.folder / "wandb_id.txt"
        begun = file.read_text(encoding="utf-8").strip() if file.is_file() else None
        with _python_stream_kept():
            import wandb

        self._module, self._where = wandb, run.folder / "wandb"
        with _python_stream_kept(), _sending(wandb, self._where):
            # Where it cannot write there it would write into a folder for temporary files.
            self._where.mkdir(exist_ok=True)
            self._run = wandb.init(
                project=self.project,
                entity=self.entity,
                name=self.run_name or run.folder.name,
                tags=list(self.tags),
                mode=self.mode,
                id=begun,
                resume="allow",
                dir=str(run.folder),
                config=run.recipe.model_dump(mode="json"),
                # Its capture of the terminal and a progress display would write over each other.
                settings=wandb.Settings(console="off"),
            )
        if begun is None:
            write_text(file, f"{self._run.id}\n")

    @hookimpl
    def on_log(self, record: Record) -> None:
        """Send one record."""
        if self._run is None:
            return
        row: dict[str, Any] = {"epoch": record.epoch + 1}
        for name, value in record.values.items():
            if not isinstance(value, list):
                row[name] = value
            elif finite := _finite(value):
                row[name] = self._module.Histogram(finite)
        with _sending(self._module, self._where):
            self._run.log(row, step=record.step)

    @hookimpl
    def on_fit_end(self, run: Run) -> None:
        """Finish the W&B run."""
        if self._run is not None:
            with _sending(self._module, self._where):
                self._run.summary["stop_reason"] = run.stop_reason
                self._run.finish()
            self._run = None

    def explain(self, run: Run) -> list[str]:
        """Say where the numbers go."""
        if self.mode == "disabled":
            return ["disabled: sends and writes nothing"]
        where = (
            "to the W&B server"
            if self.mode == "online"
            else "into wandb/ of the run folder, for `wandb sync`"
        )
        return [f"logs {where}, project {self.project}"]
