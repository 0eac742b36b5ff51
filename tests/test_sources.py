"""Data by name: digits, folders and archives read through timm, and clear words where files are
missing.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import timm
import timm.data
import torch
from PIL import Image

from trainkit.data.build import build_source
from trainkit.data.types import Data
from trainkit.errors import RecipeError, UserError
from trainkit.training.build import compose
from trainkit.training.device import Device

Write = Callable[..., Path]

COLOURS = {"blue": (0, 0, 255), "grey": (128, 128, 128), "red": (255, 0, 0)}


def make_folder(
    root: Path,
    splits: Sequence[str] = ("train", "validation"),
    classes: Sequence[str] = tuple(COLOURS),
) -> Path:
    """Write four images of one colour for each class and split, half of them grey files."""
    for split in splits:
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                image = Image.new("RGB", (40, 40), COLOURS[name])
                (image if i % 2 else image.convert("L")).save(folder / f"{i}.png")
    return root


def load(write: Write, data: str, *overrides: str) -> Data:
    recipe = compose(write(f"model: {{name: test_vit}}\ndata: {data}\n"), overrides).recipe
    return build_source(recipe, Device(recipe))


def refusal(write: Write, data: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(write, data, *overrides)
    return str(caught.value).split("recipe.yaml:")[-1]


PLAIN = (
    "name: folder, image_size: 16, batch_size: 4, workers: 0, augment: null, mean: [0], std: [1]"
)


def colours(data: Data, count: int = 1) -> dict[int, set[tuple[float, ...]]]:
    """Return for each class the colours of the middle of its validation images."""
    found: dict[int, set[tuple[float, ...]]] = {}
    for batch in data.val:
        for image, target in zip(batch.inputs, batch.targets.tolist(), strict=True):
            found.setdefault(target, set()).add(tuple(round(x, 3) for x in image[:, 8, 8].tolist()))
    return found


# Digits.


def test_digits_are_split_the_same_for_every_seed_and_evenly_among_classes(write: Write) -> None:
    data = load(write, "{name: digits, image_size: 32}", "model.in_chans=1")
    assert data.summary == "digits: 1,437 training and 360 validation images, 10 classes"
    assert (data.num_classes, data.input_size) == (10, (1, 32, 32))
    batches = list(data.val)
    targets = torch.cat([batch.targets for batch in batches])
    assert targets.bincount().tolist() == pytest.approx([36] * 10, abs=1)
    other = load(write, "{name: digits, image_size: 32}", "model.in_chans=1", "seed=7")
    assert torch.equal(torch.cat([batch.targets for batch in other.val]), targets)
    first, second = (next(d.train.batches(0, 0)).targets for d in (data, other))
    assert not torch.equal(first, second)


def test_digits_are_normalised_by_their_own_mean_and_deviation(write: Write) -> None:
    data = load(write, "{name: digits, image_size: 8, batch_size: 1437}", "model.in_chans=1")
    inputs = next(data.train.batches(0, 0)).inputs
    assert abs(inputs.mean().item()) < 1e-5
    assert abs(inputs.std().item() - 1) < 1e-4


def test_digits_fill_three_channels_alike(write: Write) -> None:
    data = load(write, "{name: digits, image_size: 32, batch_size: 4}")
    inputs = next(iter(data.val)).inputs
    assert inputs.shape == (4, 3, 32, 32)
    assert torch.equal(inputs[:, 0], inputs[:, 1])
    grey = load(write, "{name: digits, image_size: 32, batch_size: 4}", "model.in_chans=1")
    assert torch.equal(next(iter(grey.val)).inputs[:, 0], inputs[:, 2])


def test_digits_are_augmented_when_asked_and_validated_plain(write: Write) -> None:
    text = "{name: digits, image_size: 16, batch_size: 8"
    plain = load(write, text + "}", "model.in_chans=1")
    augmented = load(write, text + ", augment: {color_jitter: 0, hflip: 0}}", "model.in_chans=1")
    one, two = (next(data.train.batches(0, 0)) for data in (plain, augmented))
    assert torch.equal(one.targets, two.targets)
    assert not torch.equal(one.inputs, two.inputs)
    assert torch.equal(next(iter(plain.val)).inputs, next(iter(augmented.val)).inputs)


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_a_share_too_small_for_every_class_is_refused(write: Write, fraction: float) -> None:
    with pytest.raises(
        UserError,
        match=rf"data\.val_fraction: {fraction} of 1797 images leaves less than one of each",
    ):
        load(
            write, f"{{name: digits, image_size: 8, val_fraction: {fraction}}}", "model.in_chans=1"
        )


def test_the_share_held_out_is_the_recipes(write: Write) -> None:
    data = load(write, "{name: digits, image_size: 8, val_fraction: 0.5}", "model.in_chans=1")
    assert data.summary == "digits: 898 training and 899 validation images, 10 classes"


# Folders and archives.


def test_a_folder_of_images_is_read_through_timm(write: Write, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images")
    data = load(write, f"{{{PLAIN}, root: {root}}}")
    assert data.summary == "folder: 12 training and 12 validation images, 3 classes"
    assert (data.num_classes, data.input_size) == (3, (3, 16, 16))
    grey = {
        name: np.asarray(Image.new("RGB", (1, 1), c).convert("L"))[0, 0] / 255
        for name, c in COLOURS.items()
    }
    expected = {
        i: {tuple(round(x / 255, 3) for x in colour), (round(float(grey[name]), 3),) * 3}
        for i, (name, colour) in enumerate(COLOURS.items())
    }
    assert colours(data) == expected
    seen = torch.cat([batch.targets for batch in data.train.batches(0, 0)])
    assert sorted(seen.tolist()) == [0] * 4 + [1] * 4 + [2] * 4


def test_a_model_of_one_channel_sees_grey(write: Write, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images")
    data = load(write, f"{{{PLAIN}, root: {root}}}", "model.in_chans=1")
    assert data.input_size == (1, 16, 16)
    assert {target: len(values) for target, values in colours(data).items()} == {0: 1, 1: 1, 2: 1}


def test_mean_and_deviation_are_the_recipes_or_the_models(write: Write, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images", classes=["grey", "red"])
    value = 128 / 255
    given = load(
        write, f"{{{PLAIN}, root: {root}}}", "data.mean=[0.5, 0.25, 0]", "data.std=[0.5, 1, 2]"
    )
    expected = [(value - 0.5) / 0.5, value - 0.25, value / 2]
    assert sorted(colours(given)[0])[0] == pytest.approx(expected, abs=1e-3)
    own = load(write, f"{{{PLAIN}, root: {root}}}", "~data.mean", "~data.std")
    cfg = timm.models.get_pretrained_cfg("test_vit")
    assert sorted(colours(own)[0])[0] == pytest.approx(
        [(value - m) / s for m, s in zip(cfg.mean, cfg.std, strict=True)], abs=1e-3
    )


def test_an_archive_is_read_as_a_folder_is(write: Write, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images")
    for split in ("train", "validation"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as archive:
            archive.add(root / split, arcname=".")
    text = f"{{{PLAIN}, root: {tmp_path}}}"
    assert colours(load(write, text, "data.name=tar")) == colours(
        load(write, f"{{{PLAIN}, root: {root}}}")
    )


def test_augmented_folders_do_not_depend_on_workers(write: Write, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images")
    augment = "{re_prob: 0.5, auto_augment: rand-m9}"
    text = f"{{name: folder, root: {root}, image_size: 16, batch_size: 4, augment: {augment}}}"
    alone, two = (list(load(write, text, f"data.workers={n}").train.batches(1, 0)) for n in (0, 2))
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(alone, two, strict=True))
    assert len({batch.inputs.mean().item() for batch in alone}) == 3


@pytest.mark.parametrize("name", ["folder", "torch/image_folder"])
@pytest.mark.parametrize("missing", ["train", "validation"])
def test_a_missing_split_is_never_replaced_by_the_whole_root(
    write: Write, tmp_path: Path, name: str, missing: str
) -> None:
    root = make_folder(
        tmp_path / "images", [split for split in ("train", "validation") if split != missing]
    )
    assert (
        refusal(write, f"{{{PLAIN}, root: {root}}}", f"data.name={name}")
        == f"command line `data.name={name}`: data: cannot open split '{missing}' of '{name}' (it"
        f" is not there); expected images in {root}/train/<class>/ and "
        f"{root}/validation/<class>/"
    )


def test_a_missing_root_says_what_to_put_there(write: Write) -> None:
    assert (
        refusal(write, f"{{{PLAIN}, root: /nowhere}}")
        == "2: data: cannot open split 'train' of 'folder' (there is no /nowhere); "
        "expected images in /nowhere/train/<class>/ and /nowhere/validation/<class>/"
    )
    expected = "archives /nowhere/train.tar and /nowhere/validation.tar with a folder per class"
    message = refusal(write, f"{{{PLAIN}, root: /nowhere}}", "data.name=tar")
    assert message.endswith(f"(there is no /nowhere); expected {expected}")


def test_a_data_set_of_torchvision_that_is_not_there_says_how_to_get_it(
    write: Write, tmp_path: Path
) -> None:
    message = refusal(write, f"{{name: torch/cifar10, root: {tmp_path}}}")
    assert message.startswith(
        "2: data: cannot open split 'train' of 'torch/cifar10' (Dataset not found or corrupted"
    )
    assert message.endswith(
        f"; expected the extracted folder cifar-10-batches-py in {tmp_path}, or set "
        "data.download=true"
    )
    assert "(Unknown torchvision dataset cifar11)" in refusal(
        write, f"{{name: torch/cifar11, root: {tmp_path}}}"
    )


def test_an_empty_folder_is_refused(write: Write, tmp_path: Path) -> None:
    root = tmp_path / "images"
    for split in ("train", "validation"):
        (root / split).mkdir(parents=True)
    message = refusal(write, f"{{{PLAIN}, root: {root}}}")
    assert message == f"2: data: {root}/train: holds no image that can be read"


def test_splits_with_different_classes_are_refused(write: Write, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images", ["train"])
    make_folder(root, ["validation"], ["blue", "red"])
    text = f"{{{PLAIN}, root: {root}}}"
    assert (
        refusal(write, text)
        == "2: data: the splits differ in their classes: 'grey' is in 'train' only; give both the"
        " same, or a class_map"
    )
    (root / "classes.txt").write_text("blue\ngrey\nred\n")
    data = load(write, text, f"data.class_map={root / 'classes.txt'}")
    assert data.num_classes == 3
    assert colours(data).keys() == {0, 2}


def test_an_unknown_data_set_gets_a_suggestion(write: Write) -> None:
    with pytest.raises(RecipeError) as caught:
        load(write, "{name: dgits, root: x}")
    assert str(caught.value).endswith(
        "recipe.yaml:2: data.name: no data set has this name; did you mean 'digits'? (there are: "
        "cifar_fs, digits, folder, glyphs, hfds/…, hfids/…, omniglot, ratings, svhn, table, tar, "
        'tfds/…, torch/…, wds/…); got "dgits"'
    )


def test_streams_are_refused(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reader:
        pass

    stream = timm.data.IterableImageDataset("", reader=Reader())
    monkeypatch.setattr(timm.data, "create_dataset", lambda *_, **__: stream)
    assert (
        "(it is a stream, whose order and place cannot be restored; use one with random access)"
        in refusal(write, f"{{name: wds/some, root: {tmp_path}}}")
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.in_chans=4",
            "model.in_chans: images have 1 (grey) or 3 (colour) channels, the model takes 4",
        ),
        ("data.mean=[0.5, 0.5]", "data.mean: has 2 values; give one, or one for each of 3"),
        ("data.std=[1, 1, 1, 1]", "data.std: has 4 values; give one, or one for each of 3"),
        ("data.batch_size=2000", None),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    write: Write, override: str, message: str | None
) -> None:
    text = "{name: digits, image_size: 8, drop_last: true}"
    if message is None:
        assert (
            refusal(write, text, override)
            == "2: data: 1437 training examples do not fill one batch of 2000 on each of 1 rank(s)"
        )
    else:
        assert refusal(write, text, override) == f"command line `{override}`: {message}"
