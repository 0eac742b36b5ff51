"""Files that cannot be written: one line says which and why, the old ones are whole, and nothing
else is left.
"""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from trainkit import Plugin, Run, hookimpl, resume, train
from trainkit.commands import session
from trainkit.commands.app import app
from trainkit.commands.verify import differences
from trainkit.errors import UserError, WriteError
from trainkit.models.weights_file import save_weights
from trainkit.system.writes import append, atomically, write_text
from trainkit.training.checkpoint import read_state

SHORT = ("train.epochs=1", "scheduler.warmup_epochs=0")


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let the system refuse files that are larger, as it does where the disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: write_text(path, "x" * 50_000),
    "checkpoint": lambda path: atomically(
        path, lambda part: torch.save({"a": torch.zeros(50_000)}, part)
    ),
    "weights": lambda path: save_weights(nn.Linear(100, 500), path, {}),
    "log": lambda path: append(path, "x" * 50_000, None),
}


@pytest.mark.parametrize("room", [0, 1_000, 20_000])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_leaves_the_old_file_and_one_line(tmp_path: Path, kind: str, room: int) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with room_for(room), pytest.raises(WriteError) as caught:
        WRITERS[kind](path)
    assert (
        str(caught.value)
        == f"{path}: cannot be written: File too large; raise the limit on the size of a file"
        " (ulimit -f)"
    )
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_folder_that_is_gone_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "gone" / "file"
    with pytest.raises(WriteError) as caught:
        WRITERS[kind](path)
    assert str(caught.value).startswith(
        f"{path}: cannot be written: No such file or directory; it or its folder"
    )


def test_what_is_no_fault_of_the_disk_goes_on_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        atomically(tmp_path / "file", lambda part: 1 // 0)
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_somebody_else_writes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    size = append(path, "one\n", 0)
    assert append(path, "two\n", size) == 8
    path.write_text("one\ntwo\nother\n")
    with pytest.raises(
        WriteError,
        match=r"has 14 bytes where this run wrote 8: something else writes in its folder",
    ):
        append(path, "three\n", 8)
    path.unlink()
    with pytest.raises(WriteError, match="No such file or directory"):
        append(path, "three\n", 8)
    assert not path.exists()


# Whole runs.


@pytest.mark.parametrize("room", [0, 300])
def test_a_run_without_room_for_its_recipe_leaves_no_folder(
    tiny: Path, tmp_path: Path, room: int
) -> None:
    with room_for(room), pytest.raises(WriteError, match=r"run/recipe\.yaml: cannot be written"):
        train(tiny, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_report")
def test_a_run_that_found_no_room_goes_on_when_there_is(tiny: Path, tmp_path: Path) -> None:
    whole = train(tiny, run_dir=tmp_path / "whole").folder
    folder = tmp_path / "run"
    overrides = ["checkpoint.every_steps=4"]
    with (
        room_for(10_000),
        pytest.raises(WriteError, match=r"checkpoints/last\.pt: cannot be written"),
    ):
        train(tiny, *overrides, run_dir=folder)
    assert list(folder.rglob(".*")) == []
    assert json.loads((folder / "summary.json").read_text())["status"].startswith("failed: ")
    shutil.rmtree(folder)
    other = train(tiny, *overrides, run_dir=folder).folder
    (other / "summary.json").unlink()  # as if there had been no room for it
    resume(other)
    states = [
        read_state(f / "checkpoints" / "last.pt") | {"recipe": ""} for f in (whole, other) if f
    ]
    assert list(differences(*states)) == []


@pytest.mark.parametrize("name", ["report.html", "metrics.csv", "summary.json"])
def test_a_finished_run_that_could_not_write_all_writes_what_is_missing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / "run"

    class InTheWay(Plugin):
        @hookimpl
        def on_fit_end(self, run: Run) -> None:
            if run.folder is not None:
                (run.folder / name).mkdir()

    from tests.reference.tiny import with_plugins

    with monkeypatch.context() as patch:
        patch.setattr(session, "compose", lambda p, o=(): with_plugins(p, o, InTheWay()))
        with pytest.raises(WriteError, match=rf"{name}: cannot be written: Is a directory"):
            train(tiny, *SHORT, run_dir=folder)
    assert not (folder / "summary.json").is_file()
    (folder / name).rmdir()
    resume(folder)
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
    assert (folder / name).is_file()
    with pytest.raises(UserError, match="is finished after 6 steps"):
        resume(folder)


@pytest.mark.usefixtures("no_report")
def test_a_folder_removed_while_training_is_one_line(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    class Removes(Plugin):
        @hookimpl
        def after_optimizer_step(self, run: Run) -> None:
            if run.step == 4:
                shutil.rmtree(folder)

    from tests.reference.tiny import with_plugins

    monkeypatch.setattr(session, "compose", lambda p, o=(): with_plugins(p, o, Removes()))
    with pytest.raises(
        WriteError, match=r"run/metrics\.jsonl: cannot be written: No such file or directory"
    ):
        train(tiny, run_dir=folder)
    assert not folder.exists()


def test_a_recipe_that_cannot_be_copied_leaves_nothing(tmp_path: Path) -> None:
    with room_for(100):
        done = CliRunner().invoke(app, ["recipes", "copy", "digits", "--to", str(tmp_path)])
    assert done.exit_code == 1
    assert done.stderr.startswith(
        f"error: {tmp_path}/digits.yaml: cannot be written: File too large"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_report")
def test_an_event_file_without_room_is_one_line(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    whole = train(tiny, *SHORT, run_dir=tmp_path / "whole").folder
    room = len((whole / "recipe.yaml").read_bytes()) + 100  # the event file holds it indented
    overrides = [*SHORT, "plugins.tensorboard={}"]
    with (
        room_for(room),
        pytest.raises(WriteError, match=r"run/tensorboard: cannot be written: File too large"),
    ):
        train(tiny, *overrides, run_dir=tmp_path / "run")
    assert capfd.readouterr().err == ""
