"""One image file to pixels: what is read, and how every kind of image becomes grey or colour of 8
bits.

The rules:

- The content says what a file is, not its ending. Formats that run a program (PostScript) are not
  read.
- Of several frames the first counts. The orientation that a camera wrote into EXIF is applied.
- Grey of 16 bits is scaled as a whole, 65535 to 255; of TIFF files with 9 to 15 bits, their highest
  number to 255. Colour of 16 bits keeps its upper 8, as Pillow reads it. Numbers of 32 bits, whole
  or not, do not say which of them is white: they are refused.
- What is transparent is laid on white.
- A side more than 1,000 times the other is refused: with the shorter one resized, the longer would
  fill the memory.
- A file that cannot be read whole is an error that names it. Nothing stands in for it.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from trainkit.errors import UserError
from trainkit.system.foreign import foreign, no_file

Mode = Literal["L", "RGB"]

# Pillow's others are no images (GRIB, MPEG), need a program beside them (EPS), or do not say what
# is white (FITS).
_FORMATS = (
    *(
        "JPEG",
        "PNG",
        "WEBP",
        "TIFF",
        "BMP",
        "GIF",
        "PPM",
        "AVIF",
        "JPEG2000",
        "TGA",
        "DIB",
        "ICO",
        "ICNS",
        "PCX",
    ),
    *("QOI", "PSD", "SGI", "DDS", "SUN", "XBM", "XPM", "MSP"),
)
_LONGEST = 1000  # times the other side
_ORIENTATION = 0x0112  # the tag of EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS_PER_SAMPLE = 258  # the tag of TIFF
_SIXTEEN = ("I;16", "I;16L", "I;16B", "I;16N")
_TRANSPARENT = ("LA", "PA", "RGBA", "La", "RGBa")


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@cache
def endings() -> frozenset[str]:
    """Return the endings, in lower case and with their dot, of the files that are read as
    images.
    """
    known = {*_formats(), "MPO"}  # MPO, several JPEGs in one file, is opened as JPEG
    return frozenset(
        ending for ending, name in Image.registered_extensions().items() if name in known
    )


def read_image(path: str, mode: Mode) -> Image.Image:
    """Return the image in a file, grey or in colour.

    Raises:
        UserError: it cannot be read.
    """
    if (wrong := no_file(Path(path))) is not None:
        raise UserError(f"{path}: {wrong}")
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(f"{path}: cannot be opened: {error.strerror}") from None
    with file:
        return decode(file, mode, path)


def decode(file: IO[bytes], mode: Mode, name: str) -> Image.Image:
    """Return the image that a file holds, grey or in colour.

    Args:
        file: open for reading, at its beginning.
        mode: L for grey, RGB for colour.
        name: of the file, for messages.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with Image.open(file, formats=_formats()) as image:
            if max(image.size) > _LONGEST * min(image.size):
                raise ValueError(
                    f"it has {image.width:,} x {image.height:,} pixels, a side too long for the "
                    "other"
                )
            image.load()
            turn = _TURNS.get(
                _orientation(image)
            )  # of a TIFF, Pillow has already applied and removed it
            found = to_mode(image, mode)
        return found if turn is None else found.transpose(turn)
    except Exception as error:  # spoiled bytes may raise anything
        raise UserError(f"{name}: {_reason(error, file)}; mend it, or take it out") from None


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except (
        Exception
    ):  # spoiled EXIF says nothing; whether the image can be read is seen when its pixels are
        return 1


def _reason(error: Exception, file: IO[bytes]) -> str:
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return f"is no image that can be read (it has more than {most:,} pixels; make it smaller)"
    if isinstance(error, UnidentifiedImageError):
        try:
            file.seek(0)
            what = foreign(file.read(512))
        except (OSError, ValueError):
            what = None
        if what is not None and what.endswith(" image"):
            return f"{what} whose beginning is damaged"
        return what or "is no image that can be read (nothing in it says of which kind)"
    text = " ".join(str(error).split()) or type(error).__name__
    return f"is no image that can be read ({text[:160]})"


def to_mode(image: Image.Image, mode: Mode) -> Image.Image:
    """Return an opened image in grey or in colour of 8 bits, by this module's rules.

    Raises:
        ValueError: the image does not say which of its numbers is white, or its colours cannot be
            converted.
    """
    deep = image.mode in _SIXTEEN or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if deep:
        image = _eight_bits(image)
    elif image.mode in ("I", "F"):
        kind = "whole numbers" if image.mode == "I" else "fractions"
        raise ValueError(
            f"it holds {kind} of 32 bits, which do not say what is white; save it with 8 or 16 bits"
        )
    if image.mode in _TRANSPARENT or (not deep and "transparency" in image.info):
        image = _on_white(image)
    if image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")
    return image.copy() if image.mode == mode else image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    said: Any = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, 16)
    bits = int(said[0] if isinstance(said, tuple) else said)
    top = 2 ** (bits if 8 < bits < 16 else 16) - 1
    return Image.fromarray(((values.clip(0, top) * 255 + top // 2) // top).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    whole = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    if whole.getchannel("A").getextrema() == (255, 255):
        return whole.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")


class ImageFiles:
    """Images in files, and the class of each.

    Args:
        read: from the number of an image and the mode to the image; raises UserError with the
            file's name.
        targets: the class of each.
        mode: L for grey, RGB for colour.
    """

    def __init__(
        self, read: Callable[[int, Mode], Image.Image], targets: np.ndarray[Any, Any], mode: Mode
    ) -> None:
        self._read, self.targets, self._mode = read, targets, mode

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self._read(index, self._mode), int(self.targets[index])


class Paths:
    """Images in files of their own.

    Args:
        paths: of the files.
    """

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __call__(self, index: int, mode: Mode) -> Image.Image:
        """Return one image."""
        return read_image(self.paths[index], mode)


class Members:
    """Images in one archive that is not compressed.

    Args:
        archive: its path.
        places: of each image: its name, and where its bytes begin and how many they are.
    """

    def __init__(self, archive: str, places: list[tuple[str, int, int]]) -> None:
        self.archive, self.places = archive, places

    def __call__(self, index: int, mode: Mode) -> Image.Image:
        """Return one image."""
        name, start, size = self.places[index]
        try:
            # Opened anew each time: worker processes that shared a file would share its place, too.
            with open(self.archive, "rb") as file:
                file.seek(start)
                content = file.read(size)
        except OSError as error:
            raise UserError(f"{self.archive}: cannot be opened: {error.strerror}") from None
        return decode(io.BytesIO(content), mode, f"{self.archive}: {name}")
