"""Images by class: the splits of each source, what a batch of them is, and clear words where
files are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from scipy.io import savemat
from trainkit_data.few_shot import ClassPool, class_pool, target_pool
from trainkit_data.few_shot.glyphs import load_glyphs

from trainkit import UserError
from trainkit.config.recipe import Recipe, read_recipe
from trainkit.errors import RecipeError
from trainkit.training.build import compose

Write = Callable[..., Path]
SPLITS = ("train", "validation", "test")
GLYPHS = "{name: glyphs, image_size: 12, variants: 1"


def recipe(write: Write, data: str, *overrides: str, chans: int = 1) -> Recipe:
    return compose(
        write(f"model: {{name: test_vit, in_chans: {chans}}}\ndata: {data}\n"), overrides
    ).recipe


def pools(write: Write, data: str, *overrides: str, chans: int = 1) -> list[ClassPool]:
    return [class_pool(recipe(write, data, *overrides, chans=chans), split) for split in SPLITS]


def refusal(write: Write, data: str, *overrides: str, split: Any = "train") -> str:
    with pytest.raises(UserError) as caught:
        class_pool(recipe(write, data, *overrides), split)
    return str(caught.value).split("recipe.yaml:")[-1]


def shade(path: Path, value: int | tuple[int, int, int], size: int = 20) -> None:
    """Write an image of one colour, its upper left quarter black."""
    image = Image.new("L" if isinstance(value, int) else "RGB", (size, size), value)
    image.paste(0 if isinstance(value, int) else (0, 0, 0), (0, 0, size // 2, size // 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def make_classes(folder: Path, names: Sequence[str], count: int = 3) -> None:
    """Write class folders; the grey of an image is 10 times its class plus its number."""
    for cls, name in enumerate(names):
        for number in range(count):
            shade(folder / name / f"{number}.png", 100 + 10 * cls + number)


def grey(pool: ClassPool, classes: Sequence[int], images: Sequence[Sequence[int]]) -> list[int]:
    """Return the grey in the lower right of some images."""
    batch = pool.batch(classes, images)
    return [round(255 * float(image[0, -2, -2])) for image in batch.inputs]


# Batches.


def test_a_batch_counts_classes_in_the_order_given_and_sets_may_be_ragged(write: Write) -> None:
    pool = class_pool(recipe(write, GLYPHS + "}"), "train")
    glyphs = load_glyphs(12, 1).of(("latin", "greek"))
    batch = pool.batch([700, 3], [[11, 0, 5], [2]])
    assert batch.targets.tolist() == [0, 0, 0, 1]
    assert batch.inputs.dtype == torch.float32
    shown = np.stack([*glyphs.images[700, [11, 0, 5], 0], glyphs.images[3, 2, 0]])
    assert torch.equal(batch.inputs[:, 0], torch.from_numpy(shown.astype(np.float32) / 255))
    assert pool.names[3] == glyphs.names[3]
    assert (len(pool), pool.sizes[0], pool.shape) == (991, 12, (1, 12, 12))


def test_pixels_are_scaled_as_the_recipe_says(write: Write) -> None:
    plain, scaled = (
        class_pool(recipe(write, GLYPHS + more + "}", chans=3), "test")
        for more in ("", ", mean: [0.5], std: [0.1, 0.2, 0.4]")
    )
    a, b = (pool.batch([0], [[0, 1]]).inputs for pool in (plain, scaled))
    assert a.shape == b.shape == (2, 3, 12, 12)
    assert (a.min(), a.max()) == (0, pytest.approx(1, abs=0.1))
    assert torch.equal(a[:, 0], a[:, 2])
    assert b == pytest.approx((a - 0.5) / torch.tensor([0.1, 0.2, 0.4]).view(3, 1, 1), abs=1e-5)


def test_rotated_classes_are_classes_of_their_own(write: Write) -> None:
    plain, turned = (
        class_pool(recipe(write, GLYPHS + f", rotations: {flag}}}"), "test")
        for flag in ("false", "true")
    )
    assert len(turned) == 4 * len(plain) == len(set(turned.names))
    assert turned.names[8:10] == (plain.names[2], f"{plain.names[2]}, 90 degrees")
    one = plain.batch([2, 3], [[4, 5], [6]]).inputs
    for turn in range(4):
        both = turned.batch([8 + turn, 12], [[4, 5], [6]]).inputs
        assert torch.equal(both[:2], torch.rot90(one[:2], turn, (2, 3)))
        assert torch.equal(both[2], one[2])


# Sources.


def test_glyphs_are_split_by_script(write: Write) -> None:
    found = pools(write, GLYPHS + "}")
    assert [len(pool) for pool in found] == [991, 112, 113]
    assert len({name for pool in found for name in pool.names}) == 991 + 112 + 113
    assert [{name.split()[0] for name in pool.names} for pool in found] == [
        {"LATIN", "GREEK"},
        {"CYRILLIC"},
        {"ARMENIAN", "GEORGIAN"},
    ]
    fewer = pools(write, GLYPHS + ", letters: 50}", "data.variants=2")
    assert [(len(pool), set(pool.sizes)) for pool in fewer] == [
        (50, {24}),
        (112, {24}),
        (113, {24}),
    ]


def test_a_script_in_two_splits_is_refused(write: Write) -> None:
    assert (
        refusal(write, GLYPHS + "}", "data.val_scripts=[georgian]", split="test")
        == "2: data: georgian is in more than one of scripts, val_scripts and test_scripts"
    )
    assert (
        refusal(write, GLYPHS + ", letters: 2000}")
        == "2: data.letters: asks for 2000 letters, and latin, greek have 991"
    )


def test_glyphs_larger_than_they_are_rendered_are_enlarged(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainkit_data.few_shot.glyphs.LARGEST", 12)
    pool = class_pool(recipe(write, GLYPHS + "}", "data.image_size=24"), "test")
    large, small = (
        pool.batch([0], [[0]]).inputs,
        class_pool(recipe(write, GLYPHS + "}"), "test").batch([0], [[0]]).inputs,
    )
    assert large.shape == (1, 1, 24, 24)
    assert torch.nn.functional.avg_pool2d(large, 2) == pytest.approx(small, abs=0.15)


def test_digits_are_split_for_practice_and_whole_as_a_target(write: Write) -> None:
    data = "{name: digits, image_size: 16}"
    found = pools(write, data)
    assert [pool.names[0] for pool in found] == ["digit 0", "digit 4", "digit 7"]
    assert [len(pool) for pool in found] == [4, 3, 3]
    whole = target_pool(
        recipe(write, GLYPHS + ", mean: [0.5]}"), {"name": "digits"}, "plugins", "x", "target"
    )
    assert (len(whole), sum(whole.sizes), whole.shape) == (10, 1797, (1, 12, 12))
    assert whole.batch([9], [[0]]).inputs.min() == -0.5


def make_omniglot(root: Path) -> None:
    for part, alphabets in (("images_background", 30), ("images_evaluation", 3)):
        for alphabet in range(alphabets):
            folder = root / "omniglot-py" / part / f"{part[7:10]}{alphabet:02}"
            make_classes(folder, [f"character{i:02}" for i in range(1 + alphabet % 2)], count=2)


def test_omniglot_is_split_by_alphabet_or_by_character(write: Write, tmp_path: Path) -> None:
    make_omniglot(tmp_path)
    data = f"{{name: omniglot, root: {tmp_path}, image_size: 10, rotations: false}}"
    found = pools(write, data)
    assert [len(pool) for pool in found] == [37, 8, 4]
    assert found[0].names[:3] == ("bac00/character00", "bac01/character00", "bac01/character01")
    assert found[2].names[0] == "eva00/character00"
    assert set(found[0].sizes) == {2}
    by_character = pools(write, data, "data.split=characters")
    names = [set(pool.names) for pool in by_character]
    assert set.union(*names) == {name for pool in found for name in pool.names}
    assert [len(name) for name in names] == [33, 3, 13]
    # Ink is dark in the files and light here; the paper's grey in these files is 100.
    assert grey(found[0], [0], [[0]]) == [155]
    assert found[0].batch([0], [[0]]).inputs[0, 0, 0, 0] == 1
    assert len(class_pool(recipe(write, data, "data.rotations=true"), "train")) == 4 * 37


def test_omniglot_says_where_it_looked(write: Write, tmp_path: Path) -> None:
    folder = tmp_path / "omniglot-py" / "images_background"
    data = f"{{name: omniglot, root: {tmp_path}}}"
    assert (
        refusal(write, data) == f"2: data: there are no alphabets in {folder}; expected images in"
        f" {folder}/<alphabet>/<character>/ as torchvision unpacks them, or data.download=true"
    )
    make_classes(folder / "One", ["a"], 1)
    make_classes(tmp_path / "omniglot-py" / "images_evaluation" / "Two", ["a"], 1)
    assert (
        refusal(write, data, split="validation")
        == f"2: data: there are too few alphabets in {tmp_path / 'omniglot-py'} for a validation"
        " split"
    )


def test_nothing_is_downloaded_unless_asked_for(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(self: Any, root: Any, **options: Any) -> None:
        asked.append(options)
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets.Omniglot, "__init__", download)
    data = f"{{name: omniglot, root: {tmp_path}}}"
    refusal(write, data)
    assert asked == []
    assert (
        refusal(write, data, "data.download=true")
        == "2: data: torchvision could not download Omniglot: no network"
    )
    assert asked == [{"background": True, "download": True}]


def test_cifar_fs_follows_its_authors_lists(write: Write, tmp_path: Path) -> None:
    make_classes(tmp_path / "data", ["apple", "boy", "cup", "dog"])
    lists = tmp_path / "splits" / "bertinetto"
    lists.mkdir(parents=True)
    for name, classes in (("train", "boy\napple\n"), ("val", "dog\n"), ("test", "cup")):
        (lists / f"{name}.txt").write_text(classes)
    found = pools(write, f"{{name: cifar_fs, root: {tmp_path}, image_size: 10}}")
    assert [pool.names for pool in found] == [("boy", "apple"), ("dog",), ("cup",)]
    assert grey(found[0], [0, 1], [[2, 0], [1]]) == [112, 110, 101]
    target = target_pool(
        recipe(write, "{name: digits, image_size: 10}"),
        {"name": "cifar_fs", "root": str(tmp_path)},
        "x",
    )
    assert target.names == ("cup",)
    (lists / "val.txt").write_text("dog\nemu\n")
    assert refusal(write, f"{{name: cifar_fs, root: {tmp_path}}}", split="validation").startswith(
        f"2: data: there are no images of class 'emu' in {tmp_path / 'data' / 'emu'}; expected "
        "images in "
    )
    (lists / "val.txt").unlink()
    assert refusal(write, f"{{name: cifar_fs, root: {tmp_path}}}", split="validation").startswith(
        f"2: data: there is no {lists / 'val.txt'}; expected images in {tmp_path}/data/<class>/"
    )


def test_class_folders_are_split_by_the_folder_they_are_in(write: Write, tmp_path: Path) -> None:
    for split, names in (("train", ["n01", "n02"]), ("val", ["n03"]), ("test", ["n04"])):
        make_classes(tmp_path / split, names)
    data = f"{{name: folder, root: {tmp_path}, image_size: 10, val_split: val}}"
    found = pools(write, data)
    assert [pool.names for pool in found] == [("n01", "n02"), ("n03",), ("n04",)]
    assert grey(found[0], [1], [[0, 1, 2]]) == [110, 111, 112]
    assert (
        refusal(write, data, "data.test_split=tests", split="test")
        == f"2: data: there are no class folders in {tmp_path / 'tests'}; expected images in"
        f" {tmp_path}/tests/<class>/"
    )
    make_classes(tmp_path / "test", ["n02"])
    assert (
        refusal(write, data, split="test")
        == "2: data: class 'n02' is in 'test' and in 'train'; the splits of few-shot data have no"
        " class in common"
    )
    (tmp_path / "train" / "n05").mkdir()
    (tmp_path / "test" / "n02").rename(tmp_path / "n02")
    assert "there are no images of class 'n05' in" in refusal(write, data)


def test_a_broken_image_is_named(write: Write, tmp_path: Path) -> None:
    make_classes(tmp_path / "train", ["a"])
    (tmp_path / "train" / "a" / "1.png").write_bytes(b"no image")
    pool = class_pool(recipe(write, f"{{name: folder, root: {tmp_path}, image_size: 10}}"), "train")
    assert grey(pool, [0], [[0, 2]]) == [100, 102]
    with pytest.raises(UserError, match=r"train/a/1.png: is no image that can be read"):
        pool.batch([0], [[1]])


def test_colour_images_keep_their_colours_and_are_read_once(write: Write, tmp_path: Path) -> None:
    shade(tmp_path / "train" / "red" / "0.png", (250, 0, 0))
    data = f"{{name: folder, root: {tmp_path}, image_size: 10}}"
    pool = class_pool(recipe(write, data, chans=3), "train")
    first = pool.batch([0], [[0]]).inputs
    assert first[0, :, -1, -1].tolist() == pytest.approx([250 / 255, 0, 0])
    (tmp_path / "train" / "red" / "0.png").unlink()
    assert torch.equal(pool.batch([0], [[0]]).inputs, first)


def test_svhn_is_a_target(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.zeros((32, 32, 3, 20), np.uint8)
    images[..., 0, :] = np.arange(20) * 10
    savemat(
        tmp_path / "test_32x32.mat", {"X": images, "y": np.tile(np.arange(1, 11), 2).reshape(-1, 1)}
    )
    monkeypatch.setattr(
        torchvision.datasets.SVHN, "_check_integrity", lambda self: True
    )  # no fake has the checksum
    run = recipe(write, "{name: digits, image_size: 32}", chans=3)
    pool = target_pool(run, {"name": "svhn", "root": str(tmp_path)}, "plugins", "x")
    assert (len(pool), set(pool.sizes)) == (10, {2})
    shown = pool.batch([0, 1], [[0, 1], [0]]).inputs  # SVHN labels the digit 0 as 10
    assert (255 * shown[:, 0, 0, 0]).round().tolist() == [90, 190, 0]
    assert shown[:, 1:].max() == 0
    assert "2: data: svhn has ten classes, too few to split" in refusal(
        write, f"{{name: svhn, root: {tmp_path}}}"
    )
    with pytest.raises(
        UserError,
        match=r"x: torchvision cannot read SVHN .*; expected .*test_32x32.mat, or x.download",
    ):
        target_pool(run, {"name": "svhn", "root": str(tmp_path / "none")}, "x")


# What is refused.


def test_a_wrong_target_is_refused_with_its_place(write: Write) -> None:
    text = (
        "model: {name: test_vit}\ndata: {name: digits}\nplugins:\n  x:\n    also: {name: glyphs,\n "
        "     letter: 3}\n"
    )
    found, source, _ = read_recipe(write(text))
    assert found is not None
    with pytest.raises(RecipeError) as caught:
        target_pool(
            found, source.data["plugins"]["x"]["also"] | {"variants": 0}, "plugins", "x", "also"
        )
    assert [
        str(problem).split("recipe.yaml:")[1].split(" (known")[0]
        for problem in caught.value.problems
    ] == [
        "5: plugins.x.also.variants: should be greater than or equal to 1; got 0",
        "6: plugins.x.also.letter: there is no such option; did you mean 'letters'?",
    ]


def test_augmented_tasks_are_refused(write: Write, tmp_path: Path) -> None:
    assert (
        refusal(write, GLYPHS + ", augment: {hflip: 0}}")
        == "2: data.augment: images of few-shot tasks are not augmented; set data.augment to null"
    )
    make_classes(tmp_path / "train", ["a"])
    data = (  # whose default for classification is to augment
        f"{{name: folder, root: {tmp_path}, image_size: 10}}"
    )
    assert len(class_pool(recipe(write, data), "train")) == 1
    assert "not augmented" in refusal(write, data, "data.augment={hflip: 0.1}")


def test_other_timm_data_cannot_be_split(write: Write, tmp_path: Path) -> None:
    assert (
        refusal(write, f"{{name: torch/cifar100, root: {tmp_path}}}")
        == "2: data: the classes of 'torch/cifar100' cannot be split for few-shot tasks; use"
        " folder, with the images of each split's classes in a folder of its own"
    )


@pytest.mark.parametrize("name", ["omniglot", "cifar_fs", "svhn"])
def test_few_shot_data_are_not_for_classification(write: Write, tmp_path: Path, name: str) -> None:
    from trainkit.data.build import build_source
    from trainkit.training.device import Device

    made = recipe(write, f"{{name: {name}, root: {tmp_path}}}")
    with pytest.raises(
        UserError, match=f"2: data: {name} has no class with both training and validation images"
    ):
        build_source(made, Device(made))
