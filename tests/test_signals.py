"""Signals that ask for the end: a run saves its step, and data workers outlive them."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.reference.tiny import with_plugins
from trainkit import Plugin, Run, hookimpl, train
from trainkit.commands import session
from trainkit.data.loader import OrderedStream, Rows, ShuffledStream
from trainkit.errors import Interrupted, TrainingError
from trainkit.system.signals import ending_at_once, interruptible


@pytest.fixture
def unhardened() -> Iterator[None]:
    """Obey SIGHUP and SIGINT, which who starts the tests in the background may have told them to
    ignore.
    """
    numbers = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in numbers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("unhardened")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU])
def test_a_signal_that_comes_twice_only_asks(number: int) -> None:
    with interruptible() as interrupted:
        assert not interrupted()
        for _ in range(2):
            os.kill(os.getpid(), number)
        assert interrupted()
    assert signal.getsignal(number) == signal.SIG_DFL


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible() as interrupted:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupted()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("unhardened")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_where_nothing_can_be_lost_a_signal_ends_at_once(number: int) -> None:
    with pytest.raises(KeyboardInterrupt), ending_at_once():
        signal.raise_signal(number)


def workers_of(stream: Any) -> list[Any]:
    found: list[Any] = stream._loader._iterator._workers
    return found


def rows(count: int = 12, width: int = 3) -> Rows:
    return Rows(
        torch.arange(count * width, dtype=torch.float32).reshape(count, width), torch.arange(count)
    )


def test_data_workers_obey_their_parent_alone() -> None:
    stream = ShuffledStream(rows(), seed=0, batch_size=2, workers=2)
    batches = stream.batches(0, 0)
    first = next(batches)
    workers = workers_of(stream)
    for name in ("TERM", "INT", "HUP"):
        # From a process that is not their parent, as a scheduler's are.
        subprocess.run(
            ["sh", "-c", f"kill -{name} {' '.join(str(w.pid) for w in workers)}; sleep 0.2"],
            check=True,
        )
    alone = [first, *batches]
    here = list(ShuffledStream(rows(), seed=0, batch_size=2).batches(0, 0))
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(alone, here, strict=True))
    assert all(worker.is_alive() for worker in workers)
    workers[0].terminate()
    workers[0].join(10)
    assert workers[0].exitcode == 0


class WithWorkers(Plugin):
    """Acts once, after a step, while data workers are there."""

    step: int
    act: Any

    @hookimpl
    def after_optimizer_step(self, run: Run) -> None:
        if run.step == self.step:
            self.act()


@pytest.fixture
def run_with(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None) -> Any:
    def run(act: Any) -> Path:
        monkeypatch.setattr(
            session, "compose", lambda p, o=(): with_plugins(p, o, WithWorkers(step=4, act=act))
        )
        train(tiny, "data.workers=2", run_dir=tmp_path / "run")
        return tmp_path / "run"

    return run


def test_a_signal_to_everybody_saves_the_step(run_with: Any, tmp_path: Path) -> None:
    def everybody() -> None:
        pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
        assert len(pids) >= 3
        subprocess.run(
            ["sh", "-c", f"kill -TERM {' '.join(map(str, pids))}; sleep 0.2"], check=True
        )

    with pytest.raises(Interrupted):
        run_with(everybody)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)["step"] == 4


def test_a_worker_that_is_killed_is_one_line(run_with: Any) -> None:
    def kill() -> None:
        for child in multiprocessing.active_children():
            child.kill()
        time.sleep(1)

    with pytest.raises(
        TrainingError,
        match=r"a data worker was ended from outside \(signal: Killed\), .*data\.workers",
    ):
        run_with(kill)


@pytest.mark.parametrize("stream", ["training", "validation"])
def test_batches_that_do_not_fit_into_shared_memory_come_all_the_same(stream: str) -> None:
    """The system refuses shared memory above a size; /dev/shm that is full is refused in the
    same place.
    """
    images, notes = rows(12, 100_000), []

    def read(workers: int) -> list[Any]:
        made: Any = (
            ShuffledStream(images, seed=0, batch_size=4, workers=workers)
            if stream == "training"
            else OrderedStream(images, batch_size=4, workers=workers)
        )
        made.note = notes.append
        return list(made.batches(0, 0) if stream == "training" else made)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        crowded = read(1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(crowded, read(0), strict=True))
    assert all(note.startswith("/dev/shm has no room for the batches") for note in notes)
    assert len(notes) == 3  # the targets are small enough
    notes.clear()
    read(1)
    assert notes == []
