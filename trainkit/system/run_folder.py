"""The folder of a run: made for a new one, and held by one process at a time.

The lock is the kernel's (flock), so it ends with the process, however that ends. Nothing here needs
torch: who comes second is told so within a second.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from trainkit.errors import UserError
from trainkit.system.paths import is_file, is_there
from trainkit.system.writes import writing

LOCK = ".lock"
"""The file in a run folder whose lock says that a process writes there."""

_held: dict[Path, int] = {}
"""The folders that this process holds, each with its open lock file."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)


def _let_go() -> None:
    """Close what a forked process (a data worker) has from its parent: it would hold on to the
    lock after the end.
    """
    for handle in _held.values():
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from writing in `folder` while the block runs. A block inside another
    changes nothing.

    Raises:
        UserError: another process is writing there.
        WriteError: the folder cannot be written.
    """
    key = folder.resolve()
    if key in _held:
        yield
        return
    _held[key] = _lock(folder)
    try:
        yield
    finally:
        handle = _held.pop(key, None)
        if handle is not None:  # a forked process has let go of it
            _release(handle, folder / LOCK)


def _lock(folder: Path) -> int:
    path = folder / LOCK
    while True:
        with writing(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if (
                error.errno not in _NO_LOCKS
            ):  # there the file system has none, and nobody can be told apart
                who = os.pread(handle, 200, 0).decode(errors="replace").strip()
                os.close(handle)
                raise UserError(
                    f"{folder}: is in use: another process{who and f' ({who})'} writes there; wait "
                    "for its end, or end it"
                ) from None
        if _is(handle, path):
            break
        os.close(handle)  # who held it has removed it this moment
    with suppress(OSError):  # on a full disk the lock holds all the same
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"pid {os.getpid()} on {platform.node()}\n".encode(), 0)
    return handle


def _release(handle: int, path: Path) -> None:
    with suppress(OSError):
        if _is(handle, path):  # the folder may have been moved, and another made in its place
            path.unlink()
    os.close(handle)


def _is(handle: int, path: Path) -> bool:
    """Return whether the open file is the one that has this path now."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


def writes() -> bool:
    """Return whether this process is the rank that writes files; torchrun says which rank it is."""
    return os.environ.get("RANK", "0") == "0"


def check_is_run(folder: Path) -> None:
    """Raise a UserError where a folder is not that of a run."""
    if not is_file(folder / "recipe.yaml"):
        raise UserError(f"{folder}: is no run folder (there is no recipe.yaml in it)")


@contextmanager
def begun(wanted: Path | None, name: str) -> Iterator[Path]:
    """Make the folder of a new run and hold it while the block runs.

    Args:
        wanted: a folder that is empty or not there yet; None: a fresh one under `runs/`.
        name: how a fresh one's name begins.

    Raises:
        UserError: the folder has files in it, is in use, or cannot be written.
    """
    new = wanted is None or not is_there(wanted)
    folder = new_folder(wanted, name)
    try:
        with held(folder):
            if any(path.name != LOCK for path in folder.iterdir()):
                raise UserError(
                    f"{folder}: is not empty; name another folder, or go on with `--resume "
                    f"{folder}`"
                )
            yield folder
    except BaseException:
        with suppress(OSError):
            if new:
                folder.rmdir()  # only where nothing was written: leave no empty folder behind
        raise


def new_folder(wanted: Path | None, name: str) -> Path:
    """Return the folder `wanted`, or a fresh one under `runs/`, having made it and seen that it can
    be written.

    Raises:
        UserError: it cannot be.
    """
    folder = wanted
    try:
        if folder is None:
            return _fresh(name)
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".write"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may be trying the same
        return folder
    except OSError as error:
        raise UserError(
            f"{folder or 'runs'}: cannot be written: {error.strerror}; choose another --run-dir"
        ) from None


def _fresh(name: str) -> Path:
    stem = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    for suffix in ("", *(f"-{i}" for i in range(2, 100))):
        folder = Path("runs") / f"{stem}{suffix}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise UserError(f"runs/{stem}: too many runs began in this second")
