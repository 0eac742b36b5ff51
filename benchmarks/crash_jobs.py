"""Jobs that crashes.py sends signals to: the command line in forks of a process that has loaded
torch already.

A fork takes a second where a new process takes ten. The parent must not have computed anything yet:
threads of torch would be missing in the forks.
"""

from __future__ import annotations

import mmap
import multiprocessing.util
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trainkit.commands.session
import trainkit.log.records
import trainkit.training.loop
from trainkit.commands.app import app
from trainkit.system import writes
from trainkit.system.signals import ENDING
from trainkit.training.checkpointer import Checkpointer

PHASES = ("building", "training", "validating", "saving", "finishing")
Arrange = Callable[[], None]


class Job:
    """One run on one or more ranks, in a process group of its own.

    Args:
        words: arguments of the command line.
        ranks: how many processes.
        arrange: called in the first rank's process before it begins.
    """

    def __init__(self, words: list[str], ranks: int = 1, arrange: Arrange = lambda: None) -> None:
        self._marks = mmap.mmap(
            -1, 1 + len(PHASES)
        )  # the phase of rank 0, and how often it has been in each
        self._read, write = os.pipe()
        self.pids: list[int] = []
        self.codes: dict[int, int] = {}
        port = _free_port()
        for rank in range(ranks):
            pid = os.fork()
            if pid == 0:
                os.close(self._read)
                os.setpgid(0, self.pids[0] if self.pids else 0)
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
                if ranks > 1:
                    os.environ.update(
                        {name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1"
                    )
                _run(
                    words,
                    write,
                    self._marks if rank == 0 else None,
                    arrange if rank == 0 else lambda: None,
                )
            self.pids.append(pid)
            os.setpgid(pid, self.pids[0])
        os.close(write)
        self.output = ""

    @property
    def phase(self) -> str:
        """What rank 0 is doing."""
        return PHASES[self._marks[0]]

    def alive(self) -> bool:
        """Return whether any process of it is, having taken what they wrote."""
        while select.select([self._read], [], [], 0)[0] and (text := os.read(self._read, 1 << 16)):
            self.output += text.decode(errors="replace")
        for pid in self.pids:
            if pid not in self.codes and (found := os.waitpid(pid, os.WNOHANG))[0]:
                self.codes[pid] = os.waitstatus_to_exitcode(found[1])
        return len(self.codes) < len(self.pids)

    def wait_for(self, phase: str, times: int) -> bool:
        """Wait until rank 0 is in a phase for at least so many times; return False if it ends
        before.
        """
        number = PHASES.index(phase)
        while self.alive():
            if self._marks[0] == number and self._marks[1 + number] >= times:
                return True
            time.sleep(0.0005)
        return False

    def signal(self, number: int) -> None:
        """Send a signal to the whole group, data workers too."""
        os.killpg(self.pids[0], number)

    def end(self, limit: float = 120.0) -> list[int]:
        """Wait for the end and return the exit code of each rank; kill what does not end, and
        say so.
        """
        deadline = time.monotonic() + limit
        while self.alive():
            if time.monotonic() > deadline:
                self.output += "HANGS"
                self.signal(signal.SIGKILL)
            time.sleep(0.005)
        os.close(self._read)
        return [self.codes[pid] for pid in self.pids]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _run(words: list[str], output: int, marks: mmap.mmap | None, arrange: Arrange) -> None:
    """Be one rank, in the fork, and never return."""
    code = 70
    try:
        # A parent in the background of a shell ignores Ctrl-C, and its children would.
        for number in ENDING:
            signal.signal(
                number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            )
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - until the end
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - until the end
        if marks is not None:
            _mark_phases(marks)
        trainkit.commands.session.write_report = _short_report
        arrange()
        app(words, prog_name="trainkit")
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        multiprocessing.util._exit_function()  # type: ignore[attr-defined]
        os._exit(code)


def _short_report(folder: Path, *_: object) -> Path:
    writes.write_text(folder / "report.html", "a report")
    return folder / "report.html"


def _mark_phases(marks: mmap.mmap) -> None:
    def marked(owner: Any, name: str, phase: str) -> None:
        function, number = getattr(owner, name), PHASES.index(phase)

        def inside(*args: Any, **kwargs: Any) -> Any:
            before, marks[0] = marks[0], number
            marks[1 + number] = min(255, marks[1 + number] + 1)
            try:
                return function(*args, **kwargs)
            finally:
                marks[0] = before

        setattr(owner, name, inside)

    marks[1] = 1
    marked(trainkit.commands.session, "fit", "training")
    marked(trainkit.training.loop, "train_step", "training")
    marked(trainkit.training.loop, "evaluate", "validating")
    marked(Checkpointer, "_write", "saving")
    marked(trainkit.commands.session, "finish", "finishing")


def full_disk(name: str, occurrence: int, room: int) -> Arrange:
    """Return what makes the disk full when a file is written for the n-th time; the kernel refuses,
    as it does then.

    Args:
        name: how the file's name begins.
        occurrence: which time, from 1.
        room: bytes that still fit.
    """
    count = 0

    def look(path: Path, size: int) -> None:
        nonlocal count
        count += path.name.strip(".").startswith(name)
        if count == occurrence:
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, most))

    def arrange() -> None:
        write, append = writes._write, writes.append

        def counted_write(part: Path, make: Callable[[Path], object]) -> None:
            look(part, 0)
            write(part, make)

        def counted_append(path: Path, text: str, size: int | None) -> int:
            look(path, size or 0)
            return append(path, text, size)

        writes._write = counted_write
        trainkit.log.records.append = counted_append

    return arrange
