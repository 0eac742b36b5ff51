"""What lies below a folder or in an archive: images by their endings, and what is left out, by its
reason.

What systems and programs leave behind (`Thumbs.db`, `__MACOSX`, resource forks `._x.jpg`) is passed
over. Hidden files and folders, files whose ending is none that is read, and links that lead back to
a folder around them are left out and named. An empty file and a link to nothing are errors.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from trainkit.data.image_files import endings
from trainkit.errors import UserError, one_line
from trainkit.system.foreign import foreign

_LEFT_BEHIND = frozenset(
    (
        "thumbs.db",
        "desktop.ini",
        ".ds_store",
        ".directory",
        "__macosx",
        "@eadir",
        "lost+found",
        "$recycle.bin",
    )
)
_SHOWN = 3  # names in one note


@dataclass
class Found:
    """What lies below a folder or in an archive.

    Attributes:
        images: paths of images, relative to where the search began.
        places: of an archive: where each image's bytes begin, and how many they are.
        hidden: left out because their names say so.
        loops: links to a folder around them, left out.
        others: what is neither file nor folder, left out.
        unread: files whose ending is none that is read, by ending.
        bare: folders right below the first one without an image anywhere below them.
    """

    images: list[str] = field(default_factory=list)
    places: list[tuple[str, int, int]] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    loops: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    unread: dict[str, list[str]] = field(default_factory=dict)
    bare: list[str] = field(default_factory=list)

    def notes(self, where: str) -> list[str]:
        """Return one line for each kind of thing that was left out."""
        lines = []
        for what, names in (
            ("hidden", self.hidden),
            ("links that lead back to a folder around them", self.loops),
            ("neither files nor folders", self.others),
        ):
            if names:
                lines.append(f"{where}: left out, as {what}: {some(names)}")
        if self.unread:
            kinds = ", ".join(
                f"{ending or 'no ending'} ({len(names)})"
                for ending, names in sorted(self.unread.items())
            )
            first = next(iter(sorted(self.unread.items())))[1]
            lines.append(
                f"{where}: left out, as no images by their endings: {kinds}; such as "
                f"{some(first, 1)}"
            )
        return lines


def some(names: Sequence[str], most: int = _SHOWN) -> str:
    """Return the first few names, and how many more there are."""
    shown = ", ".join(one_line(name) for name in names[:most])
    return shown + (f" and {len(names) - most:,} more" if len(names) > most and most > 1 else "")


def search(folder: Path) -> Found:
    """Return what lies below a folder.

    Raises:
        UserError: it cannot be looked through, or an image's file is empty or not there.
    """
    found = Found()
    _search(folder, "", (), found)
    return found


def _search(folder: Path, inside: str, around: tuple[tuple[int, int], ...], found: Found) -> int:
    """Look through one folder; return how many images lie below it."""
    try:
        own = os.stat(folder)
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it holds a NUL character"
        raise UserError(
            f"{one_line(str(folder))}: this folder cannot be looked through: {reason}"
        ) from None
    around = (*around, (own.st_dev, own.st_ino))
    count = 0
    for entry in entries:
        path = f"{inside}{entry.name}"
        if not _counts(entry.name, path, found):
            continue
        try:
            status = entry.stat()
        except OSError as error:
            wrong = (
                "is a link to nothing"
                if entry.is_symlink()
                else f"cannot be looked at: {error.strerror}"
            )
            raise UserError(f"{one_line(entry.path)}: {wrong}; mend it, or take it out") from None
        if stat.S_ISDIR(status.st_mode):
            if (status.st_dev, status.st_ino) in around:
                found.loops.append(path)
                continue
            below = _search(Path(entry.path), f"{path}/", around, found)
            if not below and not inside:
                found.bare.append(entry.name)
            count += below
        elif not stat.S_ISREG(status.st_mode):
            found.others.append(path)
        elif _is_image(path, found):
            if not status.st_size:
                raise UserError(f"{one_line(entry.path)}: is empty; mend it, or take it out")
            found.images.append(path)
            count += 1
    return count


def is_named(name: str) -> bool:
    """Return whether a file or a folder of this name is looked at: it is neither hidden nor left
    behind by a system.
    """
    return not name.startswith(".") and name.lower() not in _LEFT_BEHIND


def _counts(name: str, path: str, found: Found) -> bool:
    """Return whether a file or a folder is looked at, and note it where somebody hid it."""
    if not is_named(name):
        if name.lower() not in _LEFT_BEHIND and not name.startswith("._"):
            found.hidden.append(path)
        return False
    return True


def _is_image(path: str, found: Found) -> bool:
    ending = os.path.splitext(path)[1].lower()
    if ending not in endings():
        found.unread.setdefault(ending, []).append(path)
        return False
    return True


def search_archive(archive: Path) -> Found:
    """Return what is in a tar archive, and in those inside it, whose names then count as folders.

    Raises:
        UserError: it is no tar archive, is compressed or cut off, or an image in it is empty.
    """
    found = Found()
    try:
        with tarfile.open(archive, "r:") as opened:
            _search_archive(opened, "", 0, found)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        what = foreign(archive) or f"is no tar archive that can be read ({error})"
        raise UserError(f"{archive}: {what}") from None
    size = archive.stat().st_size
    for name, start, length in found.places:
        if not length or start + length > size:
            wrong = (
                "is empty"
                if not length
                else "is cut off, and the archive with it; get the archive anew"
            )
            raise UserError(f"{archive}: {one_line(name)} {wrong}")
    with_images = {path.split("/")[0] for path in found.images}
    others = (path for paths in found.unread.values() for path in paths)
    found.bare = sorted({path.split("/")[0] for path in others if "/" in path} - with_images)
    return found


def _search_archive(opened: tarfile.TarFile, inside: str, start: int, found: Found) -> None:
    places: dict[str, tuple[int, int]] = {}
    for member in opened:
        path = inside + member.name.removeprefix("./")
        if member.isdir() or not all(
            _counts(part, path, found) for part in PurePosixPath(path).parts
        ):
            continue
        if member.islnk() and member.linkname in places:
            place = places[member.linkname]  # a second name of a file before it
        elif member.isreg() and not member.issparse():
            place = places[member.name] = (start + member.offset_data, member.size)
        else:
            found.others.append(path)
            continue
        inner = opened.extractfile(member) if path.lower().endswith(".tar") else None
        if inner is not None:
            with inner, tarfile.open(fileobj=inner, mode="r:") as nested:
                _search_archive(nested, f"{path[:-4]}/", place[0], found)
        elif _is_image(path, found):
            found.images.append(path)
            found.places.append((path, *place))
