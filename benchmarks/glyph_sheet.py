"""A picture of what the glyphs look like: some letters of each script, in every face.

Run: python benchmarks/glyph_sheet.py sheet.png
"""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image
from trainkit_data.few_shot.faces import SCRIPTS
from trainkit_data.few_shot.glyphs import load_glyphs

PER_SCRIPT, SIZE = 3, 28


def main() -> None:
    """Write the picture: a row is a letter, and shows it in each face, distorted."""
    glyphs = load_glyphs(SIZE, 2)
    rows = []
    for script in SCRIPTS:
        found = glyphs.of((script,), PER_SCRIPT + 2)
        for images in found.images[1:-1, :, 0]:
            framed = np.pad(images, ((0, 0), (1, 1), (1, 1)), constant_values=70)
            rows.append(np.concatenate(list(framed), 1))
    sheet = Image.fromarray(np.concatenate(rows))
    sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST).save(
        sys.argv[1], optimize=True
    )


if __name__ == "__main__":
    main()
