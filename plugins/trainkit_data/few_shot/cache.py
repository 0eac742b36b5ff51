"""Arrays that take seconds to make, kept between runs in the user's cache folder and checked
when they are read.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray[Any, Any]]

_CHECKSUM = "checksum"


def cache_folder() -> Path:
    """Return where this platform keeps what programs can make again; `XDG_CACHE_HOME` is obeyed
    everywhere.
    """
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "trainkit"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "trainkit"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "trainkit" / "Cache"
    return Path.home() / ".cache" / "trainkit"


def cached(name: str, make: Callable[[], Arrays]) -> Arrays:
    """Return the arrays that `make` returns, from the cache folder where they already are.

    A file that is damaged, cut short or not ours is made again. Where the folder cannot be written,
    nothing is kept.

    Args:
        name: of the file, without its ending; must say everything that the arrays depend on.
        make: makes them; they hold numbers, not objects.
    """
    try:
        path = cache_folder() / f"{name}.npz"
    except RuntimeError:  # there is no home folder
        return make()
    found = _read(path)
    if found is None:
        found = make()
        with suppress(OSError):
            _write(path, found)
    return found


def _read(path: Path) -> Arrays | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        checksum = arrays.pop(_CHECKSUM)
    except (OSError, EOFError, ValueError, KeyError, AttributeError, TypeError, zipfile.BadZipFile):
        return None
    return arrays if np.array_equal(checksum, _checksum(arrays)) else None


def _write(path: Path, arrays: Arrays) -> None:
    """Write beside the target, then move: whoever reads at that moment, or another rank, sees a
    whole file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}-", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            contents: dict[str, Any] = {**arrays, _CHECKSUM: _checksum(arrays)}
            np.savez(file, **contents)
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise


def _checksum(arrays: Arrays) -> np.ndarray[Any, Any]:
    digest = hashlib.blake2b(digest_size=32)
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        digest.update(f"{key} {array.dtype.str} {array.shape}".encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    return np.frombuffer(digest.digest(), np.uint8)
