"""Image files to pixels: every kind of image is converted by a stated rule, and what cannot be
read is named.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from trainkit.data.image_files import endings, read_image
from trainkit.errors import UserError
from trainkit.system.foreign import foreign, no_file

RAMP = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
"""Grey of 16 bits whose values are those of 8 bits, spread evenly."""


def pixels(path: Path, mode: Any = "RGB") -> np.ndarray[Any, Any]:
    image = read_image(str(path), mode)
    assert image.mode == mode
    return np.asarray(image)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_image(str(path), "RGB")
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_grey_of_sixteen_bits_is_scaled_as_a_whole(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x.{ending}"
    Image.fromarray(RAMP).save(path)
    assert pixels(path, "L").ravel().tolist() == list(range(256))
    assert (pixels(path) == pixels(path, "L")[..., None]).all()


def test_dark_images_of_sixteen_bits_stay_dark_and_are_rounded(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 128, 129, 385, 386, 65406, 65407]], np.uint16)).save(
        tmp_path / "x.png"
    )
    assert pixels(tmp_path / "x.png", "L").tolist() == [[0, 0, 1, 1, 2, 254, 255]]


def test_a_tiff_of_twelve_bits_is_scaled_by_its_own_highest_number(tmp_path: Path) -> None:
    fields = {256: 4, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 6}
    numbers = bytes.fromhex("000800fff000")  # four numbers of 12 bits: 0, 2048, 4095, 0
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    directory = struct.pack("<H", len(fields)) + entries + bytes(4)
    (tmp_path / "x.tif").write_bytes(b"II*\0" + struct.pack("<I", 14) + numbers + directory)
    assert pixels(tmp_path / "x.tif", "L").tolist() == [[0, 128, 255, 0]]


def test_colour_of_sixteen_bits_keeps_its_upper_eight(tmp_path: Path) -> None:
    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    row = b"\0" + struct.pack(">6H", 0x1234, 0x80FF, 0xFFFF, 0, 0x0100, 0x00FF)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    assert pixels(tmp_path / "x.png").tolist() == [[[0x12, 0x80, 0xFF], [0, 1, 0]]]


@pytest.mark.parametrize(("mode", "kind"), [("F", "fractions"), ("I", "whole numbers")])
def test_numbers_of_32_bits_do_not_say_what_is_white(tmp_path: Path, mode: str, kind: str) -> None:
    Image.new(mode, (4, 4), 1).save(tmp_path / "x.tiff")
    assert (
        refusal(tmp_path / "x.tiff")
        == f"is no image that can be read (it holds {kind} of 32 bits, which do not say what is"
        " white; save it with 8 or 16 bits); mend it, or take it out"
    )


def palette(transparent: Any) -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putdata([0, 1])
    image.info["transparency"] = transparent
    return image


HALF = (10, 20, 30, 127)
ON_WHITE = [133, 138, 143]  # half of HALF's colour and half white


@pytest.mark.parametrize(
    ("image", "ending", "expected"),
    [
        (Image.new("RGBA", (1, 1), HALF), "png", [[ON_WHITE]]),
        (Image.new("RGBA", (1, 1), (0, 0, 0, 0)), "webp", [[[255, 255, 255]]]),
        (Image.new("LA", (1, 1), (100, 0)), "png", [[[255, 255, 255]]]),
        (Image.new("RGBA", (1, 1), (7, 8, 9, 255)), "png", [[[7, 8, 9]]]),
        (palette(0), "png", [[[255, 255, 255], [200, 100, 0]]]),
        (palette(bytes([255, 0])), "png", [[[10, 20, 30], [255, 255, 255]]]),
        (palette(1), "gif", [[[10, 20, 30], [255, 255, 255]]]),
        (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "tif", [[[255, 0, 0]]]),
        (Image.new("1", (1, 1), 1), "bmp", [[[255, 255, 255]]]),
        (Image.new("L", (1, 1), 77), "pgm", [[[77, 77, 77]]]),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else None,
)
def test_every_mode_becomes_colour_and_what_is_transparent_lies_on_white(
    tmp_path: Path, image: Image.Image, ending: str, expected: list[Any]
) -> None:
    path = tmp_path / f"x.{ending}"
    image.save(path, **({"lossless": True} if ending == "webp" else {}))
    assert pixels(path).tolist() == expected
    grey = np.asarray(Image.fromarray(np.array(expected, np.uint8)).convert("L"))
    assert pixels(path, "L").tolist() == grey.tolist()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(
    "ending", ["png", "tif"]
)  # Pillow itself applies that of a TIFF, while it loads it
def test_the_orientation_that_a_camera_wrote_is_applied(
    tmp_path: Path, orientation: int, deep: bool, ending: str
) -> None:
    grey = np.arange(6, dtype=np.uint16 if deep else np.uint8).reshape(2, 3) * (257 if deep else 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(grey).save(tmp_path / f"x.{ending}", exif=exif)
    plain = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    plain.save(tmp_path / "plain.png", exif=exif)
    with Image.open(tmp_path / "plain.png") as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    assert pixels(tmp_path / f"x.{ending}", "L").tolist() == expected.tolist()


def test_spoiled_exif_does_not_spoil_the_image(tmp_path: Path) -> None:
    Image.new("RGB", (4, 2), (9, 9, 9)).save(
        tmp_path / "x.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"
    )
    assert pixels(tmp_path / "x.png").shape == (2, 4, 3)


def test_the_first_of_several_frames_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    for ending in ("gif", "tiff", "webp", "png"):
        kind = {"lossless": True} if ending == "webp" else {}
        file, more = tmp_path / f"x.{ending}", frames[1:]
        frames[0].save(file, save_all=True, append_images=more, **kind)  # type: ignore[arg-type]
        assert pixels(file).tolist() == [[[255, 0, 0]] * 2] * 2


def test_the_content_says_what_a_file_is(tmp_path: Path) -> None:
    image = Image.new("RGB", (3, 3), (1, 2, 3))
    image.save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / "x.jpg")
    assert pixels(tmp_path / "x.jpg").tolist() == np.asarray(image).tolist()


def test_endings_are_those_of_images() -> None:
    assert {
        ".jpg",
        ".jpeg",
        ".png",
        ".webp",
        ".tif",
        ".tiff",
        ".bmp",
        ".gif",
        ".ppm",
        ".jp2",
    } <= endings()
    assert not {".eps", ".ps", ".pdf", ".mpg", ".h5", ".txt", ".heic", ""} & endings()


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "gif", "bmp", "tif", "ppm", "jp2"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.02])
def test_a_file_that_is_cut_off_is_an_error(tmp_path: Path, ending: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    path = tmp_path / f"x.{ending}"
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert refusal(path).endswith("; mend it, or take it out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (
            b"<!DOCTYPE html>\n<html>404</html>",
            "is a web page, not the file that it should be; download it again",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "is only the pointer to a file in Git LFS; fetch it with",
        ),
        (bytes(4096), "begins with nothing but zeros: a copy or a download that did not end"),
        (b"\x89PNG\r\n\x1a\nnothing", "is a PNG image whose beginning is damaged"),
        (b"PK\x03\x04 and more", "is a zip archive"),
        (b"just words", "is no image that can be read (nothing in it says of which kind)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no image that can be read"),
    ],
)
def test_a_file_of_another_kind_is_named_for_what_it_is(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    assert refusal(tmp_path / "x.jpg").startswith(message)


def test_an_image_that_would_fill_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", (100, 100)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert refusal(tmp_path / "x.png").startswith(
        "is no image that can be read (it has more than 2,000 pixels"
    )


@pytest.mark.parametrize(
    ("size", "read"), [((1, 1000), True), ((1, 1001), False), ((1001, 1), False)]
)
def test_a_side_that_would_fill_the_memory_once_resized_is_refused(
    tmp_path: Path, size: tuple[int, int], read: bool
) -> None:
    path = tmp_path / "x.png"
    Image.new("L", size).save(path)
    if read:
        assert pixels(path).shape == (1000, 1, 3)
    else:
        assert refusal(path).endswith(
            "pixels, a side too long for the other); mend it, or take it out"
        )


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    assert refusal(tmp_path / "x.png") == "is no file but a device, a pipe or a socket"
    assert refusal(tmp_path / "gone.png") == "there is no such file"


def test_what_is_no_file_is_told_without_opening_it(tmp_path: Path) -> None:
    (tmp_path / "round").symlink_to(tmp_path / "round")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    found = [no_file(tmp_path / name) for name in ("", "round", "nowhere", "a\0b", "x" * 300)]
    assert found[0] == "is a folder"
    assert str(found[1]).startswith("cannot be opened: ")
    assert found[2] == "is a link to nothing"
    assert found[3] == "is no path: it holds a NUL character"
    assert str(found[4]).startswith("cannot be opened: ")
    assert no_file(Path("/dev/zero")) == "is no file but a device, a pipe or a socket"
    assert foreign(Path("/dev/zero")) == "is no file but a device, a pipe or a socket"
    assert foreign(io.BytesIO(b"\x1f\x8bxyz").read()) == "is compressed with gzip; unpack it"
    assert foreign(b"a,b\n1,2\n") is None
