"""Data sets that are opened by their names: files that are not whole, and labels that do not
fit, are named.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
from PIL import Image

from tests.test_sources import load, refusal
from trainkit.errors import UserError

Write = Callable[..., Path]
Bytes = np.ndarray[Any, Any]

IMAGES, LABELS = np.zeros((20, 28, 28), np.uint8), np.arange(20, dtype=np.uint8) % 10


def idx(array: Bytes) -> bytes:
    return (
        struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        + array.astype(np.uint8).tobytes()
    )


def mnist(
    root: Path, images: bytes = idx(IMAGES), labels: bytes = idx(LABELS), name: str = "MNIST"
) -> str:
    """Write a whole training split and a test split of these bytes; return the data section that
    names them.
    """
    raw = root / name / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for split, one, other in (("train", idx(IMAGES), idx(LABELS)), ("t10k", images, labels)):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(one)
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(other)
    kind = {"MNIST": "mnist", "KMNIST": "kmnist", "FashionMNIST": "fashion_mnist"}[name]
    return (
        f"{{name: torch/{kind}, root: {root}, image_size: 28, batch_size: 4, workers: 0, augment: "
        "null}"
    )


@pytest.mark.parametrize("name", ["MNIST", "KMNIST", "FashionMNIST"])
def test_idx_files_that_are_whole_are_read(write: Write, tmp_path: Path, name: str) -> None:
    data = load(write, mnist(tmp_path, name=name), "model.in_chans=1")
    assert len(data.class_names) == 10
    assert (data.train_counts, data.val_counts) == ((2,) * 10, (2,) * 10)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            idx(IMAGES)[:3000],
            idx(LABELS),
            "t10k-images-idx3-ubyte: is not whole: its header says 15,696 bytes, it has",
        ),
        (
            idx(IMAGES),
            idx(LABELS)[:12],
            "t10k-labels-idx1-ubyte: is not whole: its header says 28 bytes, it has 12",
        ),
        (idx(IMAGES), idx(LABELS) + b"more", "t10k-labels-idx1-ubyte: is not whole"),
        (b"<html>not found</html>", idx(LABELS), "t10k-images-idx3-ubyte: is a web page"),
        (idx(IMAGES), b"", "t10k-labels-idx1-ubyte: is empty"),
        (b"\1\2\3\4 and so on", idx(LABELS), "t10k-images-idx3-ubyte: is no IDX file of bytes"),
        (idx(IMAGES), idx(LABELS[:10]), "has 20 images and 10 labels; get its files anew"),
        (idx(IMAGES), idx(np.full(20, 77)), "image 0 has label 77, and there are 10 classes"),
    ],
)
def test_idx_files_that_are_not_whole_are_named(
    write: Write, tmp_path: Path, images: bytes, labels: bytes, message: str
) -> None:
    found = refusal(write, mnist(tmp_path, images, labels), "model.in_chans=1")
    assert message in found
    assert found.startswith("2: data: ")
    assert "\n" not in found


def test_an_image_without_a_label_is_named(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reader:
        def __init__(self) -> None:
            self.class_to_idx = {"a": 0, "b": 1}

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[Any, int]:
            Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
            return (tmp_path / "x.png").open("rb"), index % 2 if index < 3 else -1

        def filename(self, index: int) -> str:
            return f"{index}.png"

    monkeypatch.setattr(
        timm.data, "create_dataset", lambda *_, **__: timm.data.ImageDataset("", reader=Reader())
    )
    text = (
        f"{{name: hfds/some, root: {tmp_path}, image_size: 8, batch_size: 2, workers: 0, augment: "
        "null}"
    )
    data = load(write, text)
    with pytest.raises(
        UserError, match=r"image 3 of split 'validation' of 'hfds/some': has no label \(-1\)"
    ):
        list(data.val)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "names no class"),
        (b"<html>", "is a web page"),
        (b"\xff\xfea\0", "is no UTF-8 text"),
        (b"apple\napple\n", "names 'apple' twice"),
        (b"../../etc\n", "names '../../etc' which is no name of a folder"),
    ],
)
def test_a_listing_of_cifar_fs_that_is_none_is_named(
    write: Write, tmp_path: Path, content: bytes, message: str
) -> None:
    from trainkit_data.few_shot import class_pool

    from trainkit.training.build import compose

    listing = tmp_path / "splits" / "bertinetto" / "train.txt"
    listing.parent.mkdir(parents=True)
    listing.write_bytes(content)
    text = f"model: {{name: mlp}}\ndata: {{name: cifar_fs, root: {tmp_path}}}\n"
    with pytest.raises(UserError) as caught:
        class_pool(compose(write(text)).recipe, "train")
    assert f"data: {listing}: {message}" in str(caught.value)
