"""What a plan says for people: everything that decides the run, whole words on narrow terminals,
defaults by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from trainkit import Terminal
from trainkit.commands.plan import make_plan
from trainkit.commands.plan_data import augmentation_words, loss_words, schedule_words
from trainkit.commands.plan_page import lines, show
from trainkit.config import bundled
from trainkit.config.optimizer import SchedulerSpec
from trainkit.config.recipe import LossSpec
from trainkit.data.images import AugmentSpec

Write = Callable[..., Path]
SMALL = "model: {name: test_resnet, in_chans: 1}\ndata: {name: digits, image_size: 32}\n"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("recipes_of_someone") / "with_a_rather_long_name.yaml"
    path.write_text(
        f"{SMALL}optimizer: {{lr: 2e-3}}\nplugins:\n  ema: {{}}\n  ghost_batch_norm: {{size: 16}}\n"
    )
    return make_plan(path, ["data.augment={auto_augment: rand-m9-mstd0.5-inc1}"])


def page(plan: dict[str, Any], width: int) -> list[str]:
    file = StringIO()
    show(plan, Terminal(file=file, width=width))
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 120, 200])
def test_no_word_and_no_reference_is_broken(plan: dict[str, Any], width: int) -> None:
    shown = page(plan, width)
    # A reference, and the path in the first line, may be longer than the room for it.
    alone = [line.strip() for line in shown[1:] if len(line) > width]
    assert set(alone) <= {"(command line `data.augment={auto_augment: rand-m9-mstd0.5-inc1}`)"}
    known = " ".join(" ".join(page(plan, 10_000)).split())
    assert " ".join(" ".join(shown).split()) == known
    assert sum("(with_a_rather_long_name.yaml:5)" in line for line in shown) >= 2


@pytest.mark.parametrize("name", ["digits", "meta_dropout_glyphs", "sparsity_norm_ratings"])
def test_bundled_recipes_fit_any_terminal(name: str) -> None:
    plan = make_plan(bundled.find(Path(name)), [])
    whole = page(plan, 10_000)
    for width in (80, 120):
        shown = page(plan, width)
        assert width - 10 < max(map(len, shown)) <= width
        assert " ".join(" ".join(shown).split()) == " ".join(" ".join(whole).split())
        for reference in re.findall(r"[\w.]+\.yaml:\d+", "\n".join(whole)):
            assert any(reference in line for line in shown)


def test_the_page_says_what_decides_a_run(plan: dict[str, Any]) -> None:
    rows = {line[2:20].strip(): line[20:] for line in page(plan, 10_000) if line[2:3].strip()}
    assert rows["weights"] == "random, from the seed (default)"
    assert rows["loss"] == "cross entropy (default)"
    assert rows["scheduler"] == "cosine, down to 0 (default)"
    assert rows["optimizer"] == "AdamW (with_a_rather_long_name.yaml:3)"
    assert rows["augmentation"].startswith("crop of 8% to 100% of the area")
    assert "policy rand-m9-mstd0.5-inc1" in rows["augmentation"]
    assert rows["augmentation"].endswith(
        "(command line `data.augment={auto_augment: rand-m9-mstd0.5-inc1}`)"
    )
    assert rows["steps"] == "10 epochs x 23 = 230; 64 examples a step (default)"
    assert rows["classes"].startswith("0 (142), 1 (146)")


def test_weights_from_a_file_are_named_with_their_line(write: Write, tmp_path: Path) -> None:
    import timm
    import torch

    file = tmp_path / "given.pth"
    torch.save(timm.create_model("test_resnet", in_chans=1, num_classes=10).state_dict(), file)
    path = write(SMALL.replace("in_chans: 1", f"in_chans: 1, checkpoint: {file}"))
    assert make_plan(path, [])["weights"] == {"is": f"from the file {file}", "from": f"{path}:1"}


def test_a_plugin_in_the_place_of_core_is_named(write: Write) -> None:
    path = write(f"{SMALL}plugins: {{radam: {{}}}}\n")
    assert make_plan(path, [])["optimizer"] == {"is": "RAdam", "from": f"{path}:3 (radam)"}


@pytest.mark.parametrize(
    ("row", "width", "wanted"),
    [
        (("data", "short", "r.yaml:1"), 80, ["  data              short (r.yaml:1)"]),
        (
            ("data", "x " * 30, "r.yaml:1"),
            80,
            [f"  data              {('x ' * 30).strip()}", f"{'':20}(r.yaml:1)"],
        ),
        (("data", "a\nb", ""), 80, ["  data              a", f"{'':20}b"]),
        (
            ("data", "w" * 90, "r.yaml:1"),
            60,
            [f"  data              {'w' * 90}", f"{'':20}(r.yaml:1)"],
        ),
        (("a_label_that_is_long", "word", ""), 80, ["  a_label_that_is_long", f"{'':20}word"]),
        (
            ("data", "a", "/d/r.yaml:1, /e/f.yaml:2"),
            80,
            ["  data              a (r.yaml:1, /e/f.yaml:2)"],
        ),
        (
            ("data", "a", "/d/a_long_name.yaml:1, /d/another_long_name.yaml:2 (x)"),
            60,
            [
                "  data              a",
                f"{'':20}(a_long_name.yaml:1,",
                f"{'':20}another_long_name.yaml:2 (x))",
            ],
        ),
        (
            ("data", "one two three and (1,234)", "command line `a={b: 1, c: 2}`, r.yaml:1"),
            44,
            [
                "  data              one two three",
                f"{'':20}and (1,234)",
                f"{'':20}(command line `a={{b: 1, c: 2}}`,",
                f"{'':20}r.yaml:1)",
            ],
        ),
    ],
)
def test_a_row_is_wrapped_between_words(
    row: tuple[str, str, str], width: int, wanted: list[str]
) -> None:
    assert list(lines(row, width, "/d")) == wanted


def test_words_for_augmentation_loss_and_schedule() -> None:
    assert augmentation_words(None).startswith("none")
    grey = AugmentSpec(scale=(0.5, 1.0), hflip=0, color_jitter=0, re_prob=0.25)
    words = augmentation_words(grey)
    assert "crop of 50% to 100% of the area" in words
    assert "erasing of a rectangle with probability 0.25" in words
    assert "flip" not in words
    assert "jitter" not in words
    assert "colour jitter of strength 0.4;" in augmentation_words(AugmentSpec())
    words = augmentation_words(
        AugmentSpec(
            crop_mode="rkrr",
            re_prob=0.25,
            re_mode="pixel",
            re_count=3,
            color_jitter_prob=0.8,
            gaussian_blur_prob=0.1,
            auto_augment="3a",
        )
    )
    assert words.startswith("the whole resized as for 8% to 100% of its area")
    assert "erasing of 1 to 3 rectangles with noise with probability 0.25; blur" in words
    assert "policy 3a; colour jitter of strength 0.4 with probability 0.8" in words
    assert (
        loss_words(LossSpec(name="bce", smoothing=0.1, target_threshold=0.2))
        == "bce, label smoothing 0.1, targets above 0.2 count as 1"
    )
    assert (
        schedule_words(SchedulerSpec(name="step", warmup_epochs=5, args={"decay_rate": 0.1}))
        == "step, 5 epochs of warm-up from 1e-06, down to 0, decay_rate 0.1"
    )
    assert schedule_words(SchedulerSpec(name="constant")) == "constant"
