"""Every file that a run leaves is written here: whole or not at all, and where it cannot be, one
line says so.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainkit.errors import WriteError

_FIXES = {
    errno.ENOSPC: "make room on its disk",
    errno.EDQUOT: "make room in your quota",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EROFS: "mount its disk for writing",
    errno.EACCES: "make its folder and itself writable",
    errno.EPERM: "make its folder and itself writable",
    errno.ENOENT: "it or its folder was removed meanwhile; put it back",
    errno.ENOTDIR: "it or its folder was removed meanwhile; put it back",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}
_PROBE = (
    1 << 20
)  # bytes; a library that stops at a full disk leaves less room than one of its blocks


def refused(path: Path, reason: OSError) -> WriteError:
    """Return the error that says in one line why a file could not be written, and what to do."""
    fix = _FIXES.get(reason.errno or 0)
    return WriteError(
        f"{path}: cannot be written: {reason.strerror or reason}{f'; {fix}' if fix else ''}"
    )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Run a block that writes `path`; what the system refuses there becomes a WriteError."""
    try:
        yield
    except OSError as error:
        raise refused(path, error) from None


def atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make the file `path` so that a crash leaves the old one or the new one, never
    half of one.

    Raises:
        WriteError: there is no room, say; the old file is whole, and nothing else is left.
    """
    part = path.with_name(f".{path.name}.part")
    with writing(path):
        try:
            part.touch()
            mode = (
                part.stat().st_mode
            )  # what the user's umask allows; safetensors would let nobody else read
            _write(part, write)
            part.chmod(mode)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:  # a second Ctrl-C too
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name too must reach the disk
        finally:
            os.close(folder)


def _write(part: Path, write: Callable[[Path], object]) -> None:
    try:
        write(part)
    except OSError:
        raise
    except (
        Exception
    ):  # torch and safetensors have errors of their own, and torch's does not say the reason
        _ask_system(part)
        raise


def _ask_system(part: Path) -> None:
    """Raise the OSError with which the system refuses to let a file grow, if it does."""
    with part.open("ab", buffering=0) as file:
        left = _PROBE
        while left:
            left -= file.write(bytes(left))
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically."""
    atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def append(path: Path, text: str, size: int | None) -> int:
    """Add text to the end of a file and return its new size; where that fails the file is as it
    was.

    Args:
        path: the file; it is made where it must not be there yet.
        text: what to add.
        size: how many bytes the file must have; None: as many as it has.

    Raises:
        WriteError: it cannot be written, or has another size: somebody else writes it.
    """
    left = memoryview(text.encode())
    with writing(path), path.open("r+b" if size else "ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        if size is not None and before != size:
            raise WriteError(
                f"{path}: has {before} bytes where this run wrote {size}: something else writes in "
                "its folder; start a new run in a folder of its own"
            )
        after = before + len(left)
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            with suppress(OSError):
                file.truncate(before)
            raise
    return after
