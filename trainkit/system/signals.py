"""What a job's signals do. The first asks a run to stop; where there is nothing to save it ends the
process at once.

A scheduler, `timeout` or a closed terminal signals a whole process group. Only the main process may
act on it: a data worker that dies of the signal takes the batch with it that the step under way
waits for.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU)
"""Ctrl-C, a scheduler or `kill`, a terminal that closes, and a limit on processor time: all ask
for the end.
"""


@contextmanager
def _handled(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Let `handler` take every signal that asks for the end, while the block runs."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python gives signals to the main thread alone
        return
    # `nohup` has SIGHUP ignored, and means it.
    taken = []
    for n in ENDING:
        if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN:
            taken.append(n)
    before = {number: signal.signal(number, handler) for number in taken}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Let any of these signals end the block as Ctrl-C does, with KeyboardInterrupt: what is
    half made is put away.
    """

    def end(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    with _handled(end):
        yield


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first such signal into a flag that the loop asks for; a second Ctrl-C stops at once.

    Another second signal does not: torchrun and schedulers send theirs to a process more than once.
    """
    asked = False

    def ask(signum: int, frame: object) -> None:
        nonlocal asked
        if asked and signum == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    with _handled(ask):
        yield lambda: asked


@contextmanager
def held_back() -> Iterator[None]:
    """Hold these signals back while the block starts processes: a new one is born deaf to them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_parent_only(worker: int) -> None:
    """Make this process, started under `held_back`, deaf to these signals but for a SIGTERM from
    its parent.

    Args:
        worker: its number, as torch's loader gives it.
    """
    for number in ENDING:
        if number != signal.SIGTERM or sys.platform != "linux":
            signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, set(ENDING) - {signal.SIGTERM})
    if sys.platform == "linux":
        # Only this call says who sent a signal.
        threading.Thread(target=_await_parent, args=(os.getppid(),), daemon=True).start()


def _await_parent(parent: int) -> None:
    while sys.platform == "linux":  # mypy knows that macOS has no such call
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == parent:
            os._exit(0)
