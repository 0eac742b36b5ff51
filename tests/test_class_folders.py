"""Class folders: which images they hold, in which order, and that nothing is left out without a
word.
"""

from __future__ import annotations

import gzip
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from trainkit_data.few_shot import class_pool

from tests.test_sources import PLAIN, load, make_folder, refusal
from trainkit.data.class_folders import (
    ClassImages,
    innermost,
    open_classes,
    outermost,
    read_class_map,
)
from trainkit.data.file_search import search
from trainkit.errors import UserError
from trainkit.training.build import compose

Write = Callable[..., Path]


def put(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)
    return path


def opened(root: Path) -> ClassImages:
    return open_classes(root, innermost, "RGB")


def wrong(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        opened(root)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{root}: ")


def test_hidden_folders_and_what_systems_leave_behind_are_no_classes(tmp_path: Path) -> None:
    for name in ("a", "b", ".git", ".ipynb_checkpoints", "__MACOSX", "@eaDir"):
        put(tmp_path / name / "0.png")
    put(tmp_path / "a" / ".hidden.png")
    for name in ("._0.png", "Thumbs.db", ".DS_Store", "desktop.ini"):
        (tmp_path / "a" / name).write_bytes(b"junk")
    found = opened(tmp_path)
    assert found.names == ("a", "b")
    assert found.counts == (1, 1)
    assert found.notes == (
        f"{tmp_path}: left out, as hidden: .git, .ipynb_checkpoints, a/.hidden.png",
    )


def test_every_ending_of_an_image_is_read_and_any_other_is_named(tmp_path: Path) -> None:
    for i, ending in enumerate(["webp", "tif", "TIFF", "bmp", "gif", "JPG", "png", "ppm"]):
        put(tmp_path / "a" / f"{i}.{ending}")
    (tmp_path / "a" / "labels.csv").write_text("0,1")
    for name in ("1.heic", "2.HEIC", "README"):
        (tmp_path / "a" / name).write_bytes(b"?")
    found = opened(tmp_path)
    assert found.counts == (8,)
    assert found.images[7][0].size == (8, 8)
    assert found.notes == (
        (
            f"{tmp_path}: left out, as no images by their endings: no ending (1), .csv (1), .heic "
            "(2); such as a/README"
        ),
    )


def test_a_class_without_an_image_is_an_error(tmp_path: Path) -> None:
    put(tmp_path / "a" / "0.png")
    (tmp_path / "b").mkdir()
    message = f"{tmp_path}/b: this class holds no image; put some in, or take the folder away"
    assert wrong(tmp_path) == message
    for name in ("0.heic", "1.dcm"):
        (tmp_path / "b" / name).write_bytes(b"?")
    assert (
        wrong(tmp_path)
        == f"{tmp_path}/b: this class holds no file that is read as an image, only .dcm, .heic;"
        " convert them to .png or .jpg"
    )


def test_empty_files_and_links_to_nothing_are_errors(tmp_path: Path) -> None:
    put(tmp_path / "a" / "0.png")
    (tmp_path / "a" / "1.png").touch()
    assert (
        wrong(tmp_path).removeprefix(f"{tmp_path}/") == "a/1.png: is empty; mend it, or take it out"
    )
    (tmp_path / "a" / "1.png").unlink()
    (tmp_path / "a" / "2.png").symlink_to(tmp_path / "gone.png")
    assert (
        wrong(tmp_path).removeprefix(f"{tmp_path}/")
        == "a/2.png: is a link to nothing; mend it, or take it out"
    )


def test_links_are_followed_once_and_pipes_are_not_read(tmp_path: Path) -> None:
    put(tmp_path / "a" / "0.png")
    put(tmp_path.parent / f"{tmp_path.name}-elsewhere" / "1.png")
    (tmp_path / "b").symlink_to(tmp_path.parent / f"{tmp_path.name}-elsewhere")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "a" / "pipe.png")
    found = opened(tmp_path)
    assert (found.names, found.counts) == (("a", "b"), (1, 1))
    assert found.notes == (
        f"{tmp_path}: left out, as links that lead back to a folder around them: a/again",
        f"{tmp_path}: left out, as neither files nor folders: a/pipe.png",
    )


def test_classes_are_in_natural_order_and_equal_ones_stay_apart(tmp_path: Path) -> None:
    for name in ("10", "2", "1", "01", "001", "Cat", "cat"):
        put(tmp_path / name / "0.png")
    found = opened(tmp_path)
    assert found.names == ("001", "01", "1", "2", "10", "Cat", "cat")
    assert found.images.targets.tolist() == list(range(7))
    assert open_classes(tmp_path, outermost, "RGB").names == (
        "001",
        "01",
        "1",
        "10",
        "2",
        "Cat",
        "cat",
    )


def test_a_class_is_the_innermost_folder_or_the_outermost(tmp_path: Path) -> None:
    for name in ("cat/tabby", "cat/siamese", "dog/beagle"):
        put(tmp_path / name / "0.png")
    assert opened(tmp_path).names == ("beagle", "siamese", "tabby")
    assert open_classes(tmp_path, outermost, "RGB").counts == (2, 1)
    put(tmp_path / "dog" / "tabby" / "0.png")
    assert (
        wrong(tmp_path)
        == "cat/tabby and dog/tabby would both be class 'tabby'; rename one, or set data.name to"
        " torch/folder, whose classes are the outermost folders"
    )


def test_images_outside_any_class_are_named(tmp_path: Path) -> None:
    put(tmp_path / "preview.png")
    assert wrong(tmp_path) == "holds images, but outside any class folder"
    put(tmp_path / "a" / "0.png")
    assert opened(tmp_path).notes == (f"{tmp_path}: left out, as in no class folder: preview.png",)


def test_a_class_map_is_checked(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        put(tmp_path / "images" / name / "0.png")
    listing = tmp_path / "map.txt"
    listing.write_text("\ufeffb\r\na\r\n\n")
    index = read_class_map(listing)
    assert index == {"b": 0, "a": 1}
    found = open_classes(tmp_path / "images", innermost, "RGB", index)
    assert (found.names, found.counts) == (("b", "a"), (1, 1))
    assert found.notes == (f"{tmp_path}/images: left out, as not in the class map: c",)
    for text, message in (
        ("a\nb\na\n", "3: class 'a' is already on line 1"),
        ("a\n\nb\n", "2: names no class"),
    ):
        listing.write_text(text)
        with pytest.raises(UserError, match=message):
            read_class_map(listing)
    listing.write_bytes(b"K\xf6ln\n")
    with pytest.raises(UserError, match=r"map.txt: is no UTF-8 text"):
        read_class_map(listing)
    (tmp_path / "map.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UserError, match=r"map.pkl: is no class map that can be read"):
        read_class_map(tmp_path / "map.pkl")


def archive(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as file:
        file.add(folder, arcname=".")
    return path


def test_an_archive_obeys_the_same_rules(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for name in ("01/0.png", "1/0.webp", "1/._0.png", ".git/0.png", "2/0.png"):
        put(folder / name, "blue" if name == "2/0.png" else "red")
    (folder / "2" / "notes.txt").write_text("x")
    os.link(folder / "2" / "0.png", folder / "2" / "1.png")
    found, plain = opened(archive(folder, tmp_path / "x.tar")), opened(folder)
    assert (
        (found.names, found.counts) == (plain.names, plain.counts) == (("01", "1", "2"), (1, 1, 2))
    )
    assert [found.images[i][0].getpixel((0, 0)) for i in (0, 2, 3)] == [
        (255, 0, 0),
        (0, 0, 255),
        (0, 0, 255),
    ]
    assert len(found.notes) == 2


def test_an_archive_in_an_archive_is_a_folder(tmp_path: Path) -> None:
    for name, colour in (("a", "red"), ("b", "blue")):
        put(tmp_path / name / "0.png", colour)
        (tmp_path / "outer").mkdir(exist_ok=True)
        archive(tmp_path / name, tmp_path / "outer" / f"{name}.tar")
    found = opened(archive(tmp_path / "outer", tmp_path / "x.tar"))
    assert found.names == ("a", "b")
    assert [found.images[i][0].getpixel((0, 0)) for i in range(2)] == [(255, 0, 0), (0, 0, 255)]


def test_an_archive_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = archive(put(tmp_path / "images" / "a" / "0.png").parent.parent, tmp_path / "x.tar")
    content = path.read_bytes()
    start = content.index(b"\x89PNG")
    for damaged, message in (
        (
            content[: start + 20],
            "x.tar: is no tar archive that can be read .unexpected end of data",
        ),
        (gzip.compress(content), "is compressed with gzip; unpack it"),
        (b"", "is empty"),
        (b"<html>", "is a web page"),
        (
            content[:start] + b"\0" * 30 + content[start + 30 :],
            "x.tar: a/0.png: is no image that can be read",
        ),
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=message):
            opened(path).images[0]


def test_names_are_shown_as_text_that_every_terminal_takes(tmp_path: Path) -> None:
    put(tmp_path / "a" / "0.png")
    put(tmp_path / ".b\x1b[31m\n" / "0.png")
    assert opened(tmp_path).notes == (f"{tmp_path}: left out, as hidden: .b\\x1b[31m",)


# Through a recipe.


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_damaged_image_ends_the_run_and_is_named_in_one_line(
    write: Write, tmp_path: Path, split: str, workers: int
) -> None:
    root = make_folder(tmp_path / "images")
    path = root / split / "blue" / "3.png"
    path.write_bytes(path.read_bytes()[:60])
    data = load(write, f"{{{PLAIN}, root: {root}}}", f"data.workers={workers}")
    with pytest.raises(UserError) as caught:
        list(data.train.batches(0, 0) if split == "train" else data.val)
    assert str(caught.value).startswith(f"{path}: is no image that can be read (")
    assert len(str(caught.value).splitlines()) == 1


def test_a_damaged_image_of_a_few_shot_task_is_named(write: Write, tmp_path: Path) -> None:
    for split, names in (("train", "ab"), ("validation", "cd"), ("test", "ef")):
        for name in names:
            put(tmp_path / split / name / "0.png")
    put(tmp_path / "train" / ".trash" / "0.png")
    (tmp_path / "train" / "a" / "1.png").write_bytes(b"<html>")
    text = (
        f"model: {{name: mlp}}\ndata: {{name: folder, root: {tmp_path}, image_size: 8, augment: "
        "null}\n"
    )
    pool = class_pool(compose(write(text)).recipe, "train")
    assert (pool.names, pool.sizes) == (("a", "b"), (2, 1))
    with pytest.raises(UserError, match=r"a/1\.png: is a web page"):
        pool.batch([0], [[1]])


def test_data_say_their_classes_and_what_was_left_out(write: Write, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images")
    put(root / "train" / "red" / "more.webp")
    put(root / "validation" / ".cache" / "0.png")
    data = load(write, f"{{{PLAIN}, root: {root}}}")
    assert data.class_names == ("blue", "grey", "red")
    assert (data.train_counts, data.val_counts) == ((4, 4, 5), (4, 4, 4))
    assert data.notes == (f"{root}/validation: left out, as hidden: .cache",)
    digits = load(write, "{name: digits, image_size: 8}", "model.in_chans=1")
    assert digits.class_names == tuple("0123456789")
    assert (sum(digits.train_counts), sum(digits.val_counts)) == (1437, 360)


def test_folders_of_torchvision_are_read_by_the_same_rules(write: Write, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images")
    put(root / "train" / "red" / "deeper" / "more.webp")
    put(root / "train" / ".git" / "0.png")
    data = load(write, f"{{{PLAIN}, root: {root}}}", "data.name=torch/image_folder")
    assert data.class_names == ("blue", "grey", "red")
    assert data.train_counts == (4, 4, 5)
    assert (
        sum(len(batch.targets) for batch in data.train.batches(0, 0)) == 12
    )  # one is too few for a batch


@pytest.mark.parametrize("root", ["/dev/zero", "x"])
@pytest.mark.parametrize("name", ["folder", "tar", "torch/folder"])
def test_a_root_that_is_no_folder_is_refused_in_one_line(
    write: Write, name: str, root: str
) -> None:
    message = refusal(write, f"{{name: {name}, root: {root}}}")
    assert message.startswith("2: data: cannot open split 'train")
    assert "\n" not in message


def test_a_folder_that_is_a_file_or_leads_round_is_refused(write: Write, tmp_path: Path) -> None:
    (tmp_path / "train").write_text("no folder")
    assert "(it is no folder)" in refusal(write, f"{{name: folder, root: {tmp_path}}}")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    assert "cannot open split 'train'" in refusal(
        write, f"{{name: folder, root: {tmp_path}/round}}"
    )


def test_more_classes_than_the_recipe_says_are_refused(write: Write, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images")
    message = refusal(write, f"{{{PLAIN}, root: {root}, num_classes: 2}}")
    assert message == "2: data: data.num_classes is 2, and there are 3 classes; leave it out"


def test_timms_reader_never_stands_in_for_an_image(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm.data

    root = make_folder(tmp_path / "images")
    (root / "train" / "blue" / "0.png").write_bytes(b"")

    def create(name: str, *, root: str, split: str, **_: object) -> timm.data.ImageDataset:
        return timm.data.ImageDataset(f"{root}/{split}")

    monkeypatch.setattr(timm.data, "create_dataset", create)
    data = load(write, f"{{{PLAIN}, root: {root}}}", "data.name=hfds/colours")
    assert data.class_names == ("blue", "grey", "red")
    with pytest.raises(UserError, match=r"0\.png: is empty; mend it"):
        list(data.train.batches(0, 0))


def test_torchvisions_files_are_decoded_by_the_same_rules(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm.data
    from torchvision.datasets import ImageFolder

    root = make_folder(tmp_path / "images", classes=["blue", "grey"])
    Image.new("I;16", (40, 40), 65535 // 3).save(root / "validation" / "grey" / "1.png")
    monkeypatch.setattr(
        timm.data, "create_dataset", lambda _, *, root, split, **__: ImageFolder(f"{root}/{split}")
    )
    data = load(write, f"{{{PLAIN}, root: {root}}}", "data.name=torch/imagenet")
    values = torch.cat([batch.inputs for batch in data.val])[5]
    assert values.unique().tolist() == pytest.approx([1 / 3])
    (root / "train" / "blue" / "2.png").write_bytes(b"GIF89a")
    with pytest.raises(UserError, match=r"blue/2\.png: is a GIF image whose beginning is damaged"):
        list(data.train.batches(0, 0))


def test_searching_names_the_folder_that_cannot_be_looked_through(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone: this folder cannot be looked through: No such file"):
        search(tmp_path / "gone")
