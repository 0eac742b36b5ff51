"""A run folder is written by one process at a time, and who comes second is told so before torch
is loaded.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainkit import resume, train
from trainkit.errors import UserError, WriteError
from trainkit.system.run_folder import LOCK, begun, held

HOLDS = """
import os, sys, time
from pathlib import Path
from trainkit.errors import UserError
from trainkit.system.run_folder import begun, held
folder, fork = Path(sys.argv[1]), sys.argv[2] == "fork"
try:
    with begun(folder, "x") if sys.argv[2] == "begin" else held(folder):
        if fork and os.fork() != 0:
            time.sleep(60)  # its fork speaks: by then it has let go
        print("held", flush=True)
        time.sleep(1 if sys.argv[2] == "begin" else 60)
except UserError as error:
    print(error, flush=True)
"""


def holder(folder: Path, how: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder), how],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def killed(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_a_folder_in_use_is_refused_until_its_process_is_killed(tmp_path: Path) -> None:
    process = holder(tmp_path, "hold")
    assert said(process) == "held"
    with pytest.raises(UserError) as caught, held(tmp_path):
        pass
    assert (
        str(caught.value)
        == f"{tmp_path}: is in use: another process (pid {process.pid} on {platform.node()}) writes"
        " there; wait for its end, or end it"
    )
    for act in (
        lambda: resume(tmp_path),
        lambda: train(tmp_path / "r.yaml", run_dir=tmp_path),
    ):
        (tmp_path / "recipe.yaml").write_text("model: {name: test_vit}\ndata: {name: digits}\n")
        (tmp_path / "r.yaml").write_text(
            "model: {name: test_vit, in_chans: 1}\ndata: {name: digits}\n"
        )
        with pytest.raises(UserError, match="is in use"):
            act()
    killed(process)
    with held(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    assert not (tmp_path / LOCK).exists()


def test_a_data_worker_left_behind_does_not_hold_the_folder(tmp_path: Path) -> None:
    process = holder(tmp_path, "fork")
    try:
        assert said(process) == "held"
        process.kill()
        process.wait()
        os.killpg(process.pid, 0)  # its fork lives on
        with held(tmp_path):
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        killed(process)


def test_of_many_that_begin_at_once_one_does(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    processes = [holder(folder, "begin") for _ in range(5)]
    answers = [said(process) for process in processes]
    for process in processes:
        killed(process)
    assert answers.count("held") == 1
    assert sum("is in use" in answer for answer in answers) == 4


def test_a_lock_left_by_a_killed_process_is_no_file_of_a_run(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("pid 1 on elsewhere\n")
    with begun(tmp_path, "x") as folder:
        assert folder == tmp_path
    with pytest.raises(WriteError, match=r"\.lock: cannot be written"), held(tmp_path / "gone"):
        pass


def test_a_block_inside_another_changes_nothing(tmp_path: Path) -> None:
    with held(tmp_path):
        with held(tmp_path / "." / ""):
            pass
        assert (tmp_path / LOCK).exists()
    assert list(tmp_path.iterdir()) == []


REFUSED = """
import sys
from typer.testing import CliRunner
from trainkit.commands.app import app
for words in (
    ["train", "missing.yaml"], ["train", "--resume", "nothing"], ["train", "--resume", "used"],
    ["train", "r.yaml", "--run-dir", "used"], ["train", "r.yaml", "--run-dir", "full"],
    ["report", "used"],
):
    done = CliRunner().invoke(app, words)
    print(done.exit_code, "torch" in sys.modules, done.stderr.strip())
"""


def test_what_can_be_refused_without_torch_is(tmp_path: Path) -> None:
    for name in ("used", "full"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text("")
    (tmp_path / "r.yaml").write_text("model: {name: test_vit}\ndata: {name: digits}\n")
    process = holder(tmp_path / "used", "hold")
    assert said(process) == "held"
    done = subprocess.run(
        [sys.executable, "-c", REFUSED], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    killed(process)
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["2", "False"]] * 6
    messages = [
        "no such file",
        "is no run folder",
        "is in use",
        "is in use",
        "is not empty",
        "is in use",
    ]
    assert all(message in line for message, line in zip(messages, lines, strict=True))
    assert sorted(p.name for p in (tmp_path / "full").iterdir()) == ["recipe.yaml"]


def test_a_rank_that_writes_nothing_touches_no_folder(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("RANK", "1")
    for folder in (None, here, tmp_path / "run"):
        with pytest.raises(UserError, match="timm cannot make test_vit"):
            train(tiny, "model.args={deepth: 1}", run_dir=folder)
        assert list(here.iterdir()) == []
    assert not (tmp_path / "run").exists()
