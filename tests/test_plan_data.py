"""What a plan says of the data: classes, counts, the share of the largest, and how images are
prepared.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from tests.test_sources import PLAIN, load, make_folder
from trainkit.commands.plan import make_plan
from trainkit.commands.plan_data import data_facts, data_rows
from trainkit.commands.plan_page import show
from trainkit.data.preparation import Preparation, explain
from trainkit.data.types import Data
from trainkit.system.terminal import Terminal
from trainkit.training.build import compose

Write = Callable[..., Path]


def data(names: tuple[str, ...] = (), counts: tuple[int, ...] = (), *preparation: str) -> Data:
    return Data(
        (), (), 2, (1,), "made up", class_names=names, train_counts=counts, preparation=preparation
    )  # type: ignore[arg-type]


def test_classes_are_listed_with_their_counts_and_the_share_of_the_largest() -> None:
    facts = data_facts(data(("cat", "dog"), (300, 100)))
    assert facts["largest"] == {"class": "cat", "share": 0.75}
    assert data_rows(facts) == [
        ("classes", "cat (300), dog (100); the largest, cat, is 75.0% of the training examples")
    ]
    many = data_rows(data_facts(data(tuple(f"c{i}" for i in range(1000)), (5, *[10] * 999))))
    assert many == [
        (
            "classes",
            (
                "c0 (5), c1 (10), c2 (10), c3 (10) … c999 (10); 1,000 in all, of 5 to 10 training "
                "examples; the largest, c1, is 0.1% of the training examples"
            ),
        )
    ]


def test_what_is_not_known_is_not_said() -> None:
    assert data_rows(data_facts(data())) == []
    assert data_rows(data_facts(data(("a", "b")))) == [("classes", "a, b")]
    assert data_rows(data_facts(data((), (), "one", "two"))) == [("validation images", "one\ntwo")]


@pytest.mark.parametrize("model", ["test_resnet", "test_vit", "test_mambaout"])
def test_the_preparation_that_a_model_was_made_for_is_compared(write: Write, model: str) -> None:
    recipe = compose(write(f"model: {{name: {model}}}\ndata: {{name: folder, root: x}}\n")).recipe
    cfg = timm.get_pretrained_cfg(model)
    size = cfg.input_size[-1]
    own = Preparation(
        size, cfg.crop_pct, cfg.crop_mode, cfg.interpolation, tuple(cfg.mean), tuple(cfg.std)
    )
    assert explain(own, recipe) == (own.describe(),)
    other = Preparation(32, 1.0, "squash", "nearest", (0.1, 0.2, 0.3), tuple(cfg.std))
    means = " ".join(f"{v:.3g}" for v in (cfg.mean if len(set(cfg.mean)) > 1 else cfg.mean[:1]))
    crop = "" if cfg.crop_pct == 1 else f"crop_pct {cfg.crop_pct:g} (here 1), "
    assert (
        explain(other, recipe)[1]
        == f"{model} was made for size {size} (here 32), {crop}crop_mode {cfg.crop_mode} (here"
        f" squash), interpolation {cfg.interpolation} (here nearest), mean {means} (here 0.1 0.2 "
        "0.3)"
    )


def test_the_preparation_that_is_said_is_the_one_that_is_done(write: Write, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images")
    for split in ("train", "validation"):
        Image.linear_gradient("L").resize((90, 60)).save(root / split / "red" / "0.png")
    done = load(
        write, f"{{{PLAIN}, root: {root}}}", "~data.mean", "~data.std", "data.image_size=48"
    )
    said, differs = done.preparation
    cfg = timm.get_pretrained_cfg("test_vit")
    assert said.startswith(
        "shorter side to 48 pixels (bicubic), no crop but to a square (crop_pct 1, center); "
        "mean 0.5"
    )
    assert differs == "test_vit was made for size 160 (here 48), crop_pct 0.95 (here 1)"
    transform = timm.data.create_transform(
        (3, 48, 48), interpolation="bicubic", crop_pct=1.0, mean=cfg.mean, std=cfg.std
    )
    with Image.open(root / "validation" / "red" / "0.png") as image:
        expected = transform(image.convert("RGB"))
    assert torch.equal(list(done.val)[2].inputs[0], expected)


def test_a_model_that_timm_says_nothing_of_is_not_compared(write: Write) -> None:
    recipe = compose(
        write("model: {name: mlp, in_chans: 1}\ndata: {name: digits, image_size: 8}\n")
    ).recipe
    one = Preparation(8, 0.5, "center", "bicubic", (0.5,), (0.25,))
    assert explain(one, recipe) == (
        (
            "shorter side to 16 pixels (bicubic), the middle 8 cut out (crop_pct 0.5, center); mean"
            " 0.5, std 0.25"
        ),
    )


def test_plan_shows_classes_preparation_and_notes(write: Write, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images")
    (root / "train" / "red" / "x.heic").write_bytes(b"?")
    recipe = write(
        f"model: {{name: test_vit}}\ndata: {{{PLAIN}, root: {root}}}\ntrain: {{device: cpu}}\n",
        "plan.yaml",
    )
    plan = make_plan(recipe, [])
    assert plan["data"]["classes"] == ["blue", "grey", "red"]
    assert plan["data"]["train_counts"] == plan["data"]["val_counts"] == [4, 4, 4]
    note = f"{root}/train: left out, as no images by their endings: .heic (1); such as red/x.heic"
    assert plan["notes"] == [note]
    console = Terminal(width=400, record=True, file=(tmp_path / "out").open("w"))
    show(plan, console)
    page = console.export_text()
    console.file.close()
    assert (
        "blue (4), grey (4), red (4); the largest, blue, is 33.3% of the training examples" in page
    )
    assert "no crop but to a square (crop_pct 1, center)" in page
    assert note in page
