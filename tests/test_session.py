"""A run on disk: what its folder holds however it ends, and when it may be resumed."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from tests.reference.tiny import with_plugins
from trainkit import Plugin, Run, hookimpl, resume, train
from trainkit.commands import session
from trainkit.commands.verify import differences
from trainkit.errors import Interrupted, TrainingError, UserError
from trainkit.system.run_folder import new_folder
from trainkit.training.build import Setup
from trainkit.training.checkpoint import read_state
from trainkit.training.checkpointer import Checkpointer
from trainkit.training.loop import evaluate

SHORT = ("train.epochs=1", "scheduler.warmup_epochs=0")
FILES = [
    "checkpoints/best-0001.safetensors",
    "checkpoints/last.pt",
    "environment.json",
    "metrics.csv",
    "metrics.jsonl",
    "recipe.yaml",
    "report.html",
    "summary.json",
    "weights.safetensors",
]


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def last(folder: Path) -> dict[str, Any]:
    return read_state(folder / "checkpoints" / "last.pt")


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that puts plugins made in the test into every recipe that is read from
    then on.
    """

    def put(*plugins: Plugin) -> None:
        def compose(path: Path, overrides: Any = ()) -> Setup:
            return with_plugins(path, overrides, *plugins)

        monkeypatch.setattr(session, "compose", compose)

    return put


class At(Plugin):
    """Does something after one step."""

    step: int
    act: Callable[[], object]

    @hookimpl
    def after_optimizer_step(self, run: Run) -> None:
        if run.step == self.step:
            self.act()


# A finished run.


def test_a_finished_run_leaves_everything(tiny: Path, tmp_path: Path) -> None:
    folder = train(tiny, "checkpoint.keep_best=9", run_dir=tmp_path / "new" / "run").folder
    assert folder == tmp_path / "new" / "run"
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert names == sorted([*FILES, "checkpoints/best-0002.safetensors"])
    told = summary(folder)
    assert (told["status"], told["steps"], told["epochs"]) == ("finished", 12, 2)
    assert (told["model"], told["seed"], told["effective_batch_size"]) == ("test_vit", 3, 4)
    assert told["final"].keys() == {"accuracy", "nll", "calibration_error"}
    assert told["best"]["metric"] == "accuracy"
    assert (
        told["best"]["value"]
        == told["best"]["accuracy"]
        == max(e["value"] for e in last(folder)["best"])
    )
    facts = json.loads((folder / "environment.json").read_text())
    assert facts["packages"]["timm"] == timm.__version__
    assert facts["device"] == "cpu, fp32, 1 rank(s)"
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == len(lines) == 12 + 2
    assert [float(row["loss"]) for row in rows if row["loss"]] == [
        row["loss"] for row in lines if "loss" in row
    ]
    assert (folder / "recipe.yaml").read_text() == last(folder)["recipe"]


@pytest.mark.usefixtures("no_report")
def test_the_folders_own_recipe_repeats_the_run(tiny: Path, tmp_path: Path) -> None:
    first = train(tiny, *SHORT, run_dir=tmp_path / "first").folder
    again = train(first / "recipe.yaml", run_dir=tmp_path / "again").folder
    assert next(differences(last(first), last(again)), None) is None
    for name in ("recipe.yaml", "metrics.jsonl", "weights.safetensors"):
        assert (first / name).read_bytes() == (again / name).read_bytes()


@pytest.mark.usefixtures("no_report")
def test_weights_are_measured_again_as_they_were(tiny: Path, tmp_path: Path) -> None:
    folder = train(tiny, run_dir=tmp_path / "run").folder
    told = summary(folder)
    assert evaluate(session.open_run(folder, weights="last")) == told["final"]
    best = evaluate(session.open_run(folder, weights="best"))
    assert {name: told["best"][name] for name in best} == best
    assert evaluate(session.open_run(folder, weights=str(folder / "weights.safetensors"))) == best


@pytest.mark.usefixtures("no_report")
def test_weights_that_cannot_be_measured_are_refused(tiny: Path, tmp_path: Path) -> None:
    folder = train(tiny, *SHORT, run_dir=tmp_path / "run").folder
    with pytest.raises(UserError, match=r"none\.pth: there are no weights here"):
        evaluate(session.open_run(folder, weights="none.pth"))
    other = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, other)
    with pytest.raises(UserError, match=r"other\.pth: these weights do not fit the model: \S+"):
        evaluate(session.open_run(folder, weights=str(other)))
    other.write_bytes(b"")
    with pytest.raises(UserError, match=r"other\.pth: cannot be read as weights: \S+"):
        evaluate(session.open_run(folder, weights=str(other)))
    with pytest.raises(UserError, match=r"is no run folder \(there is no recipe\.yaml in it\)"):
        evaluate(session.open_run(tmp_path, weights="best"))


# Where it is written.


def test_a_folder_that_is_not_empty_is_left_alone(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(UserError) as caught:
        train(tiny, run_dir=tmp_path)
    assert (
        str(caught.value)
        == f"{tmp_path}: is not empty; name another folder, or go on with `--resume {tmp_path}`"
    )
    assert (tmp_path / "mine.txt").read_text() == "keep me"


@pytest.mark.parametrize("place", ["/proc/run", "/dev/null/run"])
def test_a_folder_that_cannot_be_written_is_refused(tiny: Path, place: str) -> None:
    with pytest.raises(
        UserError, match=rf"^{place}: cannot be written: .+; choose another --run-dir$"
    ):
        train(tiny, run_dir=Path(place))


def test_a_file_in_the_folders_place_is_refused(tiny: Path, write: Callable[..., Path]) -> None:
    with pytest.raises(
        UserError, match=r"cannot be written: File exists; choose another --run-dir"
    ):
        train(tiny, run_dir=write("text", "taken"))


def test_fresh_folders_are_all_different(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [new_folder(None, "tiny") for _ in range(4)]
    assert len(set(folders)) == 4
    assert all(folder.is_dir() and folder.parent == Path("runs") for folder in folders)
    assert all(folder.name.startswith("tiny-2") for folder in folders)


def test_a_run_that_cannot_be_built_leaves_no_folder(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (None, tmp_path / "named"):
        with pytest.raises(UserError, match=r"timm cannot make test_vit"):
            train(tiny, "model.args={deepth: 1}", run_dir=folder)
    assert not (tmp_path / "named").exists()
    assert list((tmp_path / "runs").iterdir()) == []


# Other ends.


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_and_it_goes_on_to_the_same_end(
    tiny: Path, tmp_path: Path, plugged: Callable[..., None], number: int
) -> None:
    idle = At(step=-1, act=int)
    plugged(idle)
    whole = train(tiny, run_dir=tmp_path / "whole").folder
    handler = signal.getsignal(number)
    plugged(At(step=4, act=lambda: os.kill(os.getpid(), number)))
    with pytest.raises(Interrupted):
        train(tiny, run_dir=tmp_path / "stopped")
    assert signal.getsignal(number) is handler
    told = summary(tmp_path / "stopped")
    assert (told["status"], told["steps"]) == ("interrupted", 4)
    assert told["best"] is None
    plugged(idle)
    resumed = resume(tmp_path / "stopped").folder
    assert next(differences(last(whole), last(resumed)), None) is None
    assert (whole / "metrics.jsonl").read_bytes() == (resumed / "metrics.jsonl").read_bytes()
    assert summary(resumed)["status"] == "finished"


@pytest.mark.usefixtures("no_report")
def test_a_second_ctrl_c_stops_at_once(
    tiny: Path, tmp_path: Path, plugged: Callable[..., None]
) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    plugged(At(step=4, act=twice))
    with pytest.raises(KeyboardInterrupt):
        train(tiny, run_dir=tmp_path / "run")
    assert summary(tmp_path / "run")["status"] == "interrupted"


@pytest.mark.usefixtures("no_report")
def test_a_run_that_fails_is_never_called_finished(
    tiny: Path, tmp_path: Path, plugged: Callable[..., None]
) -> None:
    def fail() -> None:
        raise RuntimeError("out of memory")

    plugged(At(step=7, act=fail))
    with pytest.raises(TrainingError, match="RuntimeError: out of memory") as caught:
        train(tiny, run_dir=tmp_path / "run")
    told = summary(tmp_path / "run")
    assert told["status"] == f"failed: {caught.value}"
    assert told["steps"] == 7


@pytest.mark.usefixtures("no_report")
def test_a_loss_that_is_not_finite_is_the_status(tiny: Path, tmp_path: Path) -> None:
    key = next(iter(session.compose(tiny).recipe.plugins))
    with pytest.raises(TrainingError) as caught:
        train(tiny, f"plugins={{{key}: {{poison: 3}}}}", run_dir=tmp_path / "run")
    assert summary(tmp_path / "run")["status"] == f"failed: {caught.value}"


# When a run may be resumed.


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        resume(folder)
    return str(caught.value)


@pytest.mark.usefixtures("no_report")
def test_a_finished_run_is_not_resumed(tiny: Path, tmp_path: Path) -> None:
    folder = train(tiny, run_dir=tmp_path / "run").folder
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert (
        refusal(folder)
        == f"{folder}: this run is finished after 12 steps; there is nothing to resume"
    )
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("early", [False, True])
def test_a_run_killed_after_its_last_step_is_brought_to_its_end(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plugged: Callable[..., None],
    early: bool,
) -> None:
    ended = []

    class End(Plugin):
        @hookimpl
        def on_evaluate_end(self, run: Run) -> None:
            if early:
                run.stop("enough")

        @hookimpl
        def on_fit_end(self, run: Run) -> None:
            ended.append(run.step)

    plugged(End())

    class Killed(BaseException):
        pass

    save = Checkpointer.save

    def save_then_die(self: Checkpointer, run: Run) -> None:
        save(self, run)
        if run.epoch == 2 or run.stop_reason:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "save", save_then_die)
        patch.setattr(session, "finish", lambda *_: None)  # kill -9 leaves no time for it
        with pytest.raises(Killed):
            train(tiny, run_dir=tmp_path / "run")
    assert ended == []
    assert not (tmp_path / "run" / "summary.json").exists()
    resume(tmp_path / "run")
    assert ended == [6 if early else 12]
    assert summary(tmp_path / "run")["status"] == ("stopped early: enough" if early else "finished")
    assert "is finished after" in refusal(tmp_path / "run")


@pytest.mark.usefixtures("no_report")
def test_a_changed_recipe_is_refused(
    tiny: Path, tmp_path: Path, plugged: Callable[..., None]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            session, "compose", lambda p, o=(): with_plugins(p, o, At(step=2, act=_interrupt))
        )
        with pytest.raises(Interrupted):
            train(tiny, run_dir=tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("lr: 0.002", "lr: 0.003"))
    assert (
        refusal(tmp_path / "run")
        == f"{recipe}: was changed since the checkpoint was written; restore it, or start a new run"
    )


def _interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_folder_without_a_run_is_refused(tiny: Path, tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path}: is no run folder (there is no recipe.yaml in it)"
    (tmp_path / "recipe.yaml").write_text(tiny.read_text())
    last_pt = tmp_path / "checkpoints" / "last.pt"
    assert (
        refusal(tmp_path)
        == f"{last_pt}: there is no checkpoint here; start the run anew, or name another folder"
    )
    last_pt.parent.mkdir()
    last_pt.write_bytes(b"not a checkpoint")
    assert refusal(tmp_path).startswith(f"{last_pt}: damaged, or not a checkpoint of trainkit (")
