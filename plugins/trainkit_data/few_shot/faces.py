"""The scripts and the faces in which glyphs are rendered."""

from __future__ import annotations

from typing import Literal

SCRIPTS = ("latin", "greek", "cyrillic", "armenian", "georgian")
FACES = tuple(
    f"DejaVu{family}{style}"
    for family, italic in (("Sans", "Oblique"), ("SansMono", "Oblique"), ("Serif", "Italic"))
    for style in ("", "-Bold", f"-{italic}", f"-Bold{italic}")
)
"""The faces in which all glyphs are rendered, by the names of their font files."""

Script = Literal["latin", "greek", "cyrillic", "armenian", "georgian"]
