"""What a file is that was taken for another kind: told by its first bytes, for messages that
name the thing itself.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

_HEAD = 512  # bytes that tell
_PAGE = "is a web page, not the file that it should be; download it again"
_TEXTS = ((b"<!doctype html", _PAGE), (b"<html", _PAGE))  # in small letters
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs",
        "is only the pointer to a file in Git LFS; fetch it with `git lfs pull`",
    ),
    (b"<?xml", "is XML, not the file that it should be; download it again"),
    (b"%PDF-", "is a PDF document"),
    (b"\x1f\x8b", "is compressed with gzip; unpack it"),
    (b"BZh91AY&SY", "is compressed with bzip2; unpack it"),
    (b"\xfd7zXZ", "is compressed with xz; unpack it"),
    (b"(\xb5/\xfd", "is compressed with zstd; unpack it"),
    (b"PK\x03\x04", "is a zip archive (an Excel workbook is one, too)"),
    (b"\xd0\xcf\x11\xe0", "is an old Microsoft Office document"),
    (b"PAR1\x15", "is a Parquet file"),
    (b"\x89HDF", "is an HDF5 file"),
    (b"\x89PNG", "is a PNG image"),
    (b"\xff\xd8\xff", "is a JPEG image"),
    (b"GIF89a", "is a GIF image"),
    (b"GIF87a", "is a GIF image"),
    (b"\x93NUMPY", "is an array of NumPy"),
    (b"SQLite format 3\0", "is an SQLite database"),
)


def foreign(file: Path | bytes) -> str | None:
    """Return what a file is in place of what it should be, as the end of a sentence; None where
    that is not clear.

    Args:
        file: a path, or the first bytes of a file.
    """
    if isinstance(file, Path):
        if (wrong := no_file(file)) is not None:
            return wrong
        try:
            with file.open("rb") as opened:
                head = opened.read(_HEAD)
        except OSError as error:
            return f"cannot be opened: {error.strerror}"
    else:
        head = file[:_HEAD]
    if not head:
        return "is empty"
    if not head.strip(b"\0"):
        return "begins with nothing but zeros: a copy or a download that did not end"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for beginning, what in _BEGINNINGS:
        if start.startswith(beginning):
            return what
    for beginning, what in _TEXTS:
        if start.lower().startswith(beginning):
            return what
    return None


def no_file(path: Path) -> str | None:
    """Return why a path is not that of a regular file; None where it is one. Nothing is opened:
    a pipe would wait.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError:
        return "is no path: it holds a NUL character"
    except FileNotFoundError:
        if os.path.islink(path):
            return "is a link to nothing"
        return "there is no such file"
    except OSError as error:  # a loop of links, a name that is too long, no permission
        return f"cannot be opened: {error.strerror}"
    if stat.S_ISREG(mode):
        return None
    if stat.S_ISDIR(mode):
        return "is a folder"
    return "is no file but a device, a pipe or a socket"


def ends_in_name(name: str, file: Path) -> bool:
    """Return whether a file ends within the name of a class or function, `module.name`."""
    module, _, own = name.rpartition(".")
    with file.open("rb") as opened:
        opened.seek(-min(file.stat().st_size, 500), os.SEEK_END)
        end = opened.read()
    # torch takes the last character for the end of a line, and drops it.
    read = (f"{module}\n{own}",) if own else (module, f"{module}\n")
    return end[:-1].endswith(tuple(text.encode() for text in read))
