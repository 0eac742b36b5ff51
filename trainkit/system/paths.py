"""Paths that people write: asked about without surprises, and read only where an ordinary file
stands.

`Path.is_file` and its like raise for a path that is too long, has a NUL byte in it, or leads
through a folder that may not be read. Here such a path is simply no file.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from trainkit.errors import UserError


def is_file(path: str | Path) -> bool:
    """Return whether an ordinary file stands here; a device or a pipe is none."""
    return os.path.isfile(path)


def is_folder(path: str | Path) -> bool:
    """Return whether a folder stands here."""
    return os.path.isdir(path)


def is_there(path: str | Path) -> bool:
    """Return whether anything stands here."""
    return os.path.exists(path)


def whole(path: Path) -> Path:
    """Return the absolute path without links, or as it is where no file can have such a name."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):
        return path


def read_small(path: Path, most: int, missing: str) -> str:
    """Return the text of a file that people write.

    Args:
        path: the file.
        most: bytes that such a file has at most.
        missing: what to add to the message where there is no file.

    Raises:
        UserError: there is none, it is no ordinary file (a device may have no end, a pipe may never
            speak), it is larger, or it is not UTF-8.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            kind = "it is a device or a pipe, not a file"
            if stat.S_ISDIR(found.st_mode):
                kind = "Is a directory"
            raise UserError(f"{path}: cannot be read: {kind}")
        if found.st_size > most:
            raise UserError(
                f"{path}: cannot be read: it has {found.st_size:,} bytes, and at most {most:,} are "
                "read"
            )
        with open(path, "rb") as file:
            return file.read(most).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{missing}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: cannot be read: not UTF-8 text") from None
    except ValueError:
        raise UserError(f"{path}: cannot be read: a path has no NUL character") from None
