"""`benchmarks/house.py` counts what it says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "house.py"
PROJECT = """
[[tool.importlinter.contracts]]
ignore_imports = ["trainkit.config.recipe -> trainkit.data.spec"]
"""
FILES = {
    "trainkit/__init__.py": "from trainkit.training.loop import fit",
    "trainkit/errors.py": "class UserError(Exception):\n    pass",
    "trainkit/config/__init__.py": "",
    "trainkit/config/recipe.py": "from trainkit.data.spec import Spec\nimport trainkit.errors",
    "trainkit/data/__init__.py": "",
    "trainkit/data/spec.py": "from ..config import recipe\nimport torch",
    "trainkit/training/__init__.py": "",
    "trainkit/training/loop.py": (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from trainkit import missing\n    import trainkit.errors\n"
        "def fit():\n    from trainkit import data\n    return data\n"
    ),
}


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("house", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "house", script)
    spec.loader.exec_module(script)
    return script


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    return tmp_path


def test_lines_ternaries_and_comprehensions_are_counted(house: ModuleType, tmp_path: Path) -> None:
    wide = f"x = [{'1, ' * 40}]"
    lines = ['"""Two lines', 'of text."""', "", "# a comment", wide, "y = 1 if x else 2  # why"]
    lines += ["z = {a: [b for b in x] for a in x}", "w = sum(a for a in x)"]
    (tmp_path / "some.py").write_text("\n".join(lines))
    counts = house.count(tmp_path, tmp_path)
    assert (counts.files, counts.lines, counts.code, counts.wide) == (1, 8, 6, 1)
    assert (counts.ternaries, counts.comprehensions) == (1, 3)
    assert counts.per_100(counts.comprehensions) == 50.0


def test_long_files_and_long_functions_are_named(house: ModuleType, tmp_path: Path) -> None:
    body = '    """It does much."""\n' + "    pass\n" * 39
    inner = "    def inner(): pass\n"  # two statements
    text = f"def short():\n{body}    pass\ndef long():\n{body}{inner}" + "\n" * 230
    (tmp_path / "some.py").write_text(text)
    counts = house.count(tmp_path, tmp_path)
    assert counts.long_files == ["some.py: 314 lines"]
    assert counts.long_functions == ["some.py:43: long: 41 statements"]


def test_wings_arrows_and_floors(
    house: ModuleType, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    house.print_graph(checkout)
    assert capsys.readouterr().out.splitlines()[1:] == [
        "4 wings, 3 arrows, 4 floors, from the top down:",
        "  4  training -> data",
        "  3  data -> config",
        "  2  config -> errors",
        "  1  errors -> nothing",
        "  not counted: trainkit.config.recipe -> trainkit.data.spec",
    ]


def test_a_circle_is_named(house: ModuleType, checkout: Path) -> None:
    (checkout / "pyproject.toml").write_text("[tool.importlinter]\ncontracts = []")
    with pytest.raises(SystemExit, match="in a circle: config -> data -> config"):
        house.print_graph(checkout)
