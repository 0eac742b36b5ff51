"""`glyphs`: letters of five scripts, rendered from the DejaVu fonts that come with matplotlib.

A class is a letter; its images show it in each of 12 faces (sans, mono and serif; regular, bold,
oblique and both), a little turned, scaled, sheared and shifted. Light strokes on black, as in
Omniglot read for few-shot learning.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import PIL
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont, features

from trainkit_data.few_shot.cache import Arrays, cached
from trainkit_data.few_shot.faces import FACES, SCRIPTS

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

LARGEST = 64
"""Side in pixels above which letters are not rendered but enlarged: they have no more detail to
show.
"""

# Font size as a share of the image's side: a capital is then a little more than half as tall.
_EM = 0.75
# Share of the image's side that a letter may fill before it is distorted; larger ones are shrunk to
# it.
_ROOM = 0.8
_TURN, _SCALE, _SHEAR, _SHIFT = (
    math.radians(15),
    (0.8, 1.15),
    0.15,
    2 / 28,
)  # the shift is a share of the side
_FINER = 2  # letters are drawn and distorted at this many times the resolution


@dataclass(frozen=True)
class Glyphs:
    """Rendered letters.

    Attributes:
        images: bytes [letters, faces, variants, size, size].
        letters: the letter of each class.
    """

    images: Bytes
    letters: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The Unicode name of each class."""
        return tuple(unicodedata.name(letter) for letter in self.letters)

    def of(self, scripts: tuple[str, ...], letters: int | None = None) -> Glyphs:
        """Return the letters of some scripts only; of those `letters`, evenly spread, where it is
        given.

        Raises:
            ValueError: there are fewer than that.
        """
        chosen = [i for i, letter in enumerate(self.letters) if script_of(letter) in scripts]
        if letters is not None:
            if letters > len(chosen):
                raise ValueError(
                    f"asks for {letters} letters, and {', '.join(scripts)} have {len(chosen)}"
                )
            chosen = [chosen[i * len(chosen) // letters] for i in range(letters)]
        return Glyphs(self.images[chosen], tuple(self.letters[i] for i in chosen))


def script_of(letter: str) -> str:
    """Return the script of a letter, in lower case; for one that is not named after any, its
    name's first word.
    """
    return unicodedata.name(letter, "unnamed").split()[0].lower()


def load_glyphs(size: int, variants: int) -> Glyphs:
    """Return all letters, rendered on the first call on a machine and read from the cache folder
    afterwards.

    Every image is a fixed function of letter, face and number of the variant, for one release of
    FreeType and Pillow.

    Args:
        size: side in pixels, at most `LARGEST`.
        variants: images of each letter in each face.
    """
    key = hashlib.blake2b(digest_size=8)
    key.update(f"{features.version('freetype2')} {PIL.__version__}".encode())
    for path in (Path(__file__), *_fonts()):  # what is rendered changes with this file too
        key.update(path.read_bytes())
    arrays = cached(
        f"glyphs-{size}-{variants}-{key.hexdigest()}", lambda: _render_all(size, variants)
    )
    return Glyphs(arrays["images"], tuple(map(chr, arrays["codes"].tolist())))


def _fonts() -> list[Path]:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return [folder / f"{face}.ttf" for face in FACES]


def shared_letters() -> list[str]:
    """Return the letters that all faces have, of the five scripts, in the order of scripts and code
    points.

    Modifier letters, small marks most of them, are no classes.
    """
    codes = set.intersection(*(set(FT2Font(str(path)).get_charmap()) for path in _fonts()))
    letters = [
        letter
        for letter in map(chr, codes)
        if unicodedata.category(letter) in ("Lu", "Ll", "Lt", "Lo")
    ]
    return sorted(
        (letter for letter in letters if script_of(letter) in SCRIPTS),
        key=lambda letter: (SCRIPTS.index(script_of(letter)), letter),
    )


def distinct_letters() -> list[str]:
    """Return the shared letters without those that look, in any face, exactly like an earlier one.

    A Greek capital Alpha is a Latin A. Left in, it would be a class that nobody can tell from
    another, and the Cyrillic one would bring a training class into the validation split.
    """
    fonts = [
        ImageFont.truetype(path, LARGEST, layout_engine=ImageFont.Layout.BASIC) for path in _fonts()
    ]
    seen: list[set[tuple[Any, ...]]] = [set() for _ in fonts]
    kept = []
    for letter in shared_letters():
        looks = [_look(letter, font) for font in fonts]
        if not any(look in known for look, known in zip(looks, seen, strict=True)):
            kept.append(letter)
            for look, known in zip(looks, seen, strict=True):
                known.add(look)
    return kept


def _look(letter: str, font: Any) -> tuple[tuple[int, int], bytes]:
    left, top, right, bottom = map(int, font.getbbox(letter))
    image = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(image).text((-left, -top), letter, fill=255, font=font)
    return image.size, image.tobytes()


def _render_all(size: int, variants: int) -> Arrays:
    letters = distinct_letters()
    images = np.empty((len(letters), len(FACES), variants, size, size), np.uint8)
    fonts = [
        ImageFont.truetype(path, round(_EM * size * _FINER), layout_engine=ImageFont.Layout.BASIC)
        for path in _fonts()
    ]
    for index, letter in enumerate(letters):
        # A stream for each variant of a letter: more variants, or other letters, leave it as it is.
        draws = [
            np.random.default_rng((ord(letter), i)).uniform(-1, 1, (len(FACES), 5))
            for i in range(variants)
        ]
        for face, font in enumerate(fonts):
            images[index, face] = _render(
                letter, font, size, [numbers[face].tolist() for numbers in draws]
            )
    return {"images": images, "codes": np.array([ord(letter) for letter in letters], np.int32)}


def _render(letter: str, font: Any, size: int, draws: list[list[float]]) -> Bytes:
    """Return a letter in one face [draws, size, size], once for each five numbers in [-1, 1]
    that distort it.
    """
    side = size * _FINER
    left, top, right, bottom = font.getbbox(letter)
    width, height = right - left, bottom - top
    canvas = Image.new("L", (side, side))
    ImageDraw.Draw(canvas).text(
        ((side - width) // 2 - left, (side - height) // 2 - top), letter, fill=255, font=font
    )
    fit = min(1.0, _ROOM * side / max(width, height))
    distorted = (
        canvas.transform(
            (side, side),
            Image.Transform.AFFINE,
            _backwards(draw, fit, side),
            Image.Resampling.BILINEAR,
        )
        for draw in draws
    )
    return np.stack([np.asarray(image.reduce(_FINER)) for image in distorted])


def _backwards(draw: list[float], fit: float, side: int) -> tuple[float, ...]:
    """Return the first two rows of the map from a place in the output to its place in the input.

    Forwards, a letter is sheared, scaled and turned about the centre c, and then shifted: q = A (p
    - c) + c + t.
    """
    turn, shear, scale = (
        _TURN * draw[0],
        _SHEAR * draw[1],
        fit * (_SCALE[0] + (_SCALE[1] - _SCALE[0]) * (draw[2] + 1) / 2),
    )
    cos, sin = math.cos(turn) / scale, math.sin(turn) / scale
    # The inverse of A = scale * turn * [[1, shear], [0, 1]].
    (a, b), (d, e) = (cos + shear * sin, sin - shear * cos), (-sin, cos)
    x, y = (side / 2 + _SHIFT * side * shift for shift in draw[3:])
    return (a, b, side / 2 - a * x - b * y, d, e, side / 2 - d * x - e * y)
