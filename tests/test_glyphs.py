"""Glyphs: which letters there are, what an image is a function of, the cache, and the recipe's
`data:` section.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from trainkit_data.few_shot import cache, glyphs
from trainkit_data.few_shot.cache import cache_folder, cached
from trainkit_data.few_shot.faces import FACES, SCRIPTS
from trainkit_data.few_shot.glyphs import (
    Glyphs,
    distinct_letters,
    load_glyphs,
    script_of,
    shared_letters,
)

from trainkit.data.build import build_source
from trainkit.data.types import Data
from trainkit.errors import RecipeError, UserError
from trainkit.training.build import compose
from trainkit.training.device import Device

Write = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "trainkit"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Render three letters instead of all."""
    monkeypatch.setattr(glyphs, "distinct_letters", lambda: ["A", "b", "Ω"])


# Letters.


def test_five_scripts_share_1357_letters_of_which_1216_are_distinct() -> None:
    shared, distinct = shared_letters(), distinct_letters()
    assert len(FACES) == len(set(FACES)) == 12
    assert (len(shared), len(set(shared)), len(distinct)) == (1357, 1357, 1216)
    assert Counter(map(script_of, distinct)) == {
        "latin": 728,
        "greek": 263,
        "cyrillic": 112,
        "armenian": 70,
        "georgian": 43,
    }
    assert set(distinct) < set(shared)
    # Greek Alpha and Cyrillic A are drawn as the Latin A is, Armenian Oh as O.
    assert "A" in distinct
    assert not {"\N{GREEK CAPITAL LETTER ALPHA}", "\N{CYRILLIC CAPITAL LETTER A}"} & set(distinct)
    assert "\N{ARMENIAN CAPITAL LETTER OH}" not in distinct


def test_scripts_have_no_letter_in_common() -> None:
    found = load_glyphs(12, 1)
    parts = [set(found.of((script,)).letters) for script in SCRIPTS]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(found.letters)
    assert found.of(("armenian", "georgian")).names[0] == "ARMENIAN CAPITAL LETTER AYB"
    assert script_of("1") == "digit"


def test_every_letter_shows_in_every_face_and_no_two_images_are_equal() -> None:
    images = load_glyphs(12, 1).images
    assert images.shape == (1216, 12, 1, 12, 12)
    assert images.dtype == np.uint8
    assert images.max((-1, -2)).min() > 40
    assert images.mean((-1, -2)).max() < 140
    assert len({image.tobytes() for image in images.reshape(-1, 12, 12)}) > 0.99 * 1216 * 12


def test_a_number_of_letters_is_spread_evenly() -> None:
    found = Glyphs(np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1, 1), tuple("abcdeф"))
    assert found.of(("latin",), 2).letters == ("a", "c")
    assert found.of(("latin",), 5).letters == found.of(("latin",)).letters == tuple("abcde")
    assert found.of(("cyrillic", "latin"), 6).images.ravel().tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="asks for 6 letters, and latin have 5"):
        found.of(("latin",), 6)


# Rendering.


@pytest.mark.usefixtures("folder", "few")
def test_an_image_is_a_function_of_letter_face_and_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    three, two = load_glyphs(20, 3), load_glyphs(20, 2)
    assert np.array_equal(three.images[:, :, :2], two.images)
    monkeypatch.setattr(glyphs, "distinct_letters", lambda: ["ж", "b"])
    cache_folder().joinpath(next(cache_folder().glob("glyphs-20-2-*")).name).unlink()
    other = load_glyphs(20, 2)
    assert other.letters == ("ж", "b")
    assert np.array_equal(other.images[1], two.images[1])


def test_distortion_stays_within_its_bounds() -> None:
    side = 56
    centre = np.array([side / 2, side / 2])
    generator = np.random.default_rng(0)
    for draw in [*generator.uniform(-1, 1, (50, 5)).tolist(), [1.0] * 5, [-1.0] * 5]:
        a, b, c, d, e, f = glyphs._backwards(draw, 1.0, side)
        forwards = np.linalg.inv(np.array([[a, b], [d, e]]))
        scale = np.sqrt(np.linalg.det(forwards))  # a shear keeps areas
        assert 0.8 - 1e-9 <= scale <= 1.15 + 1e-9
        first = forwards[:, 0] / scale  # a horizontal shear leaves this direction to the turn alone
        assert abs(np.degrees(np.arctan2(first[1], first[0]))) <= 15 + 1e-9
        turn = np.array([[first[0], -first[1]], [first[1], first[0]]])
        assert abs((turn.T @ forwards / scale)[0, 1]) <= 0.15 + 1e-9
        shift = forwards @ (centre - np.array([c, f])) - centre
        moved = np.array([[a, b], [d, e]]) @ (centre + side / 14 * np.array(draw[3:])) + np.array(
            [c, f]
        )
        assert moved == pytest.approx(centre)  # the centre goes to where the shift says
        assert np.isfinite(shift).all()
    assert glyphs._backwards([0, 0, 1 / 7, 0, 0], 1.0, side) == pytest.approx((1, 0, 0, 0, 1, 0))


# The cache.


def test_the_cache_folder_follows_the_platform(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_folder() == tmp_path / ".cache" / "trainkit"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == tmp_path / "Library" / "Caches" / "trainkit"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_folder() == tmp_path / "local" / "trainkit" / "Cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "chosen"))
    assert cache_folder() == tmp_path / "chosen" / "trainkit"


class Maker:
    """Makes arrays, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> cache.Arrays:
        self.calls += 1
        return {
            "images": np.arange(600, dtype=np.uint8).reshape(2, 300),
            "codes": np.array([1, 2], np.int32),
        }


def test_what_was_made_is_read_afterwards(folder: Path) -> None:
    make = Maker()
    first, second = cached("some", make), cached("some", make)
    assert make.calls == 1
    assert first.keys() == second.keys() == {"images", "codes"}
    assert all(np.array_equal(first[key], second[key]) for key in first)
    assert [path.name for path in folder.iterdir()] == ["some.npz"]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text", "foreign", "swapped", "object"])
def test_a_damaged_file_is_made_again(folder: Path, damage: str) -> None:
    make = Maker()
    whole = cached("some", make)
    path = folder / "some.npz"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[400] ^= 1
    elif damage == "cut":
        del content[len(content) // 2 :]
    elif damage in ("empty", "text"):
        content = bytearray(b"" if damage == "empty" else b"no archive")
    path.write_bytes(content)
    if damage == "foreign":
        np.savez(path, images=np.zeros(3, np.uint8))
    elif damage == "swapped":  # a sound archive whose content is not what the checksum was made of
        with np.load(path) as file:
            arrays = dict(file)
        np.savez(path, **(arrays | {"images": arrays["images"][::-1].copy()}))
    elif damage == "object":
        np.savez(path, images=np.array([{}], object), checksum=np.zeros(32, np.uint8))
    again = cached("some", make)
    assert make.calls == 2
    assert all(np.array_equal(whole[key], again[key]) for key in whole)
    cached("some", make)
    assert make.calls == 2  # the sound file has replaced it


def test_where_nothing_can_be_written_the_arrays_are_made_each_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.parent.joinpath("trainkit").write_text("a file where the folder should be")
    make = Maker()
    assert (
        cached("some", make)["codes"].tolist() == cached("some", make)["codes"].tolist() == [1, 2]
    )
    assert make.calls == 2

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(cache, "cache_folder", homeless)
    assert cached("some", make)["codes"].tolist() == [1, 2]


def test_a_failed_write_leaves_nothing_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(cache.os, "replace", full)
    assert cached("some", Maker())["codes"].tolist() == [1, 2]
    assert list(folder.iterdir()) == []


# Recipes.


def load(write: Write, data: str, *overrides: str) -> Data:
    recipe = compose(
        write(f"model: {{name: test_vit, in_chans: 1}}\ndata: {data}\n"), overrides
    ).recipe
    return build_source(recipe, Device(recipe))


SMALL = "{name: glyphs, image_size: 12, variants: 1, batch_size: 90, scripts: [latin], letters: 10}"


def test_faces_are_held_out_for_validation(write: Write) -> None:
    data = load(write, SMALL)
    assert data.summary == "glyphs: 90 training and 30 validation images, 10 classes"
    assert (data.num_classes, data.input_size) == (10, (1, 12, 12))
    train, val = next(data.train.batches(0, 0)), next(iter(data.val))
    assert train.targets.bincount().tolist() == [9] * 10
    assert val.targets.bincount().tolist() == [3] * 10
    assert abs(train.inputs.mean().item()) < 1e-5
    assert abs(train.inputs.std().item() - 1) < 1e-4
    bold = load(write, SMALL, "data.val_faces=[DejaVuSans-Bold]")
    images = load_glyphs(12, 1).of(("latin",), 10).images[:, FACES.index("DejaVuSans-Bold"), 0]
    shown = next(iter(bold.val)).inputs[:, 0]
    assert torch.equal(shown.argmax(0), torch.from_numpy(images / np.float32(255)).argmax(0))


def test_letters_are_enlarged_where_the_model_is_larger_than_they_are_rendered(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glyphs, "LARGEST", 12)
    assert load(write, SMALL, "data.image_size=null").input_size == (1, 160, 160)
    assert next(iter(load(write, SMALL, "data.image_size=40").val)).inputs.shape == (30, 1, 40, 40)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.scripts=[latn]", "data.scripts.0"),
        ("data.scripts=[]", "data.scripts"),
        ("data.scripts=[latin, latin]", "data.scripts: names one twice"),
        (
            "data.val_faces=[DejaVuSans-Bld]",
            "'DejaVuSans-Bld' is no face; did you mean 'DejaVuSans-Bold'?",
        ),
        (
            f"data.val_faces=[{', '.join(FACES)}]",
            "data.val_faces: holds out every face; leave some for training",
        ),
        ("data.letters=1", "data.letters"),
        ("data.root=x", "data.root"),
    ],
)
def test_wrong_options_are_refused(write: Write, override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(write, SMALL, override)
    assert message in str(caught.value)
    assert "command line" in str(caught.value)


def test_more_letters_than_there_are_is_refused(write: Write) -> None:
    with pytest.raises(UserError) as caught:
        load(write, SMALL, "data.scripts=[georgian]", "data.letters=50")
    assert (
        str(caught.value)
        == "command line `data.letters=50`: data.letters: asks for 50 letters, and georgian have 43"
    )
