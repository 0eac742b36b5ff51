"""Every script in `benchmarks/` runs, at the smallest setting that goes through all of it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
GLYPHS = ROOT / "recipes" / "maml_glyphs.yaml"
FEW_TASKS = [
    f"plugins.maml.{o}"
    for o in ("steps_per_epoch=1", "val_episodes=2", "test_episodes=2", "queries=2")
]
FEW_TASKS += [
    "plugins.maml.steps=1",
    "plugins.maml.tasks=1",
    "data.letters=40",
    "data.variants=1",
    "train.epochs=1",
]
SHORT = ["train.epochs=1", "data.batch_size=512", "scheduler.warmup_epochs=0"]
STUDY = """
seed: {seed}
model: {{name: test_resnet, in_chans: 1}}
data: {{name: digits, image_size: 32, batch_size: 512}}
train: {{epochs: {epochs}}}
optimizer: {{name: adamw, lr: 3e-3}}
scheduler: {{name: {schedule}}}
"""


@dataclass
class Smallest:
    """How little a script can do.

    Attributes:
        arguments: of the command line; files are in a folder of their own.
        constants: of the script, where its arguments leave too much.
        further: command lines to run afterwards, on the same files.
        alone: run in a process of its own, for it forks before torch has computed anything.
    """

    arguments: list[str] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)
    further: list[list[str]] = field(default_factory=list)
    alone: bool = False


SCRIPTS = {
    "batch_norm": Smallest(
        ["--seconds", "0", "--threads", "1"],
        {"SHAPES": ((8, 4, 2, 2),), "MODELS": (("test_resnet", (8, 3, 32, 32)),)},
    ),
    "batch_norm_coverage": Smallest(["--models", "test_efficientnet", "--json", "rows.jsonl"]),
    "batch_norm_exposure": Smallest(["rows.jsonl", "--models", "test_resnet"]),
    "batch_norm_study": Smallest(
        ["rows.jsonl"],
        {
            "SEEDS": range(1),
            "TABLES": {
                "weighing": lambda: {
                    "plain": ("example_weighing", ["~plugins.example_weighing", *SHORT])
                }
            },
        },
    ),
    "crashes": Smallest(["--signals", "1", "--kills", "1", "--full", "1"], alone=True),
    "empty_step": Smallest(["--epochs", "1"], {"WARM_UP": 0}),
    "few_shot_baselines": Smallest(
        [
            str(GLYPHS),
            *FEW_TASKS,
            "--task",
            "1",
            "1.jsonl",
            "--seeds",
            "0",
            "--epochs",
            "1",
            "--val-episodes",
            "1",
        ]
    ),
    "few_shot_study": Smallest(
        [
            "rows.jsonl",
            f"maml={GLYPHS}",
            "--seeds",
            "0",
            *(word for o in FEW_TASKS for word in ("--set", o)),
        ],
        further=[["rows.jsonl"]],
    ),
    "glyph_sheet": Smallest(["sheet.png"]),
    "grad_clip": Smallest(["--rounds", "1"], {"resnet50_shapes": lambda: [(8, 8), (8,)]}),
    "grad_clip_study": Smallest(["lstm", "--seeds", "1"]),
    "house": Smallest(),
    "learning_to_balance": Smallest(["--rounds", "1"]),
    "long_run": Smallest(["--steps", "2000"]),
    "maml": Smallest(
        ["--rounds", "1", "--threads", "1"], {"SETTINGS": {"4 filters, 1 shot": (4, 1)}}
    ),
    "maml_sine": Smallest(["--iterations", "1"]),
    "meta_dropout": Smallest(["--rounds", "1"], {"SETTINGS": {"16 px": (16, 8, 1, 2, 1)}}),
    "norm_bias": Smallest(
        ["--rounds", "1"],
        {"PUSHED": (("test_resnet", torch.bfloat16),), "PROJECTED": ("test_resnet",)},
    ),
    "norm_bias_study": Smallest(
        ["local_minimum", "--seeds", "1", "--out", "rows.jsonl"],
        {
            "STUDIES": {
                "local_minimum": (
                    "local_minimum.yaml",
                    {"plain": ["train.epochs=1", "scheduler.warmup_epochs=0"]},
                )
            }
        },
        [["--tables", "rows.jsonl"]],
    ),
    "radam": Smallest(["--rounds", "1"], {"resnet50_shapes": lambda: [(8, 8), (8,)]}),
    "radam_robustness": Smallest(["--seeds", "1", "--steps", "2"]),
    "random_recipes": Smallest(["--count", "3", "--only", "random", "--limit", "60"], alone=True),
    "sparsity_norm": Smallest(["--rounds", "1"]),
    "sparsity_norm_study": Smallest(
        ["rows.jsonl"],
        {
            "SETTINGS": {"images": ("sparsity_norm_images.yaml", SHORT, 2)},
            "METHODS": {"zero": {"method": "zero"}},
        },
        [["rows.jsonl", "--table"]],
    ),
    "training_aids": Smallest(["test_resnet", "32", "--rounds", "1"], {"WARM_UP": 0}),
    "training_aids_study": Smallest(["--seeds", "2", "--epochs", "1"], {"RECIPE": STUDY}),
}
PARTS = {
    "crash_jobs",
    "maml_contenders",
    "pairs_page",
    "recipe_cases",
    "recipe_trial",
    "spread",
}
"""What the scripts import from one another."""
ELSEWHERE = {"pairs"}
"""What has a test file of its own."""


@pytest.fixture
def as_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a process of its own would give a script: its folder to import from, and a place for
    its files.
    """
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_every_script_is_listed() -> None:
    written = {path.stem for path in FOLDER.glob("[!_]*.py")}
    assert not written - SCRIPTS.keys() - PARTS - ELSEWHERE, "say here how little each can do"


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.usefixtures("as_started")
def test_it_runs(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    smallest, path = SCRIPTS[name], FOLDER / f"{name}.py"
    if smallest.alone:
        subprocess.run([sys.executable, path, *smallest.arguments], check=True, timeout=1800)
        return
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, script)
    spec.loader.exec_module(script)
    for constant, value in smallest.constants.items():
        monkeypatch.setattr(script, constant, value)
    for arguments in (smallest.arguments, *smallest.further):
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        assert not script.main()
        assert capsys.readouterr().out or name == "glyph_sheet"
