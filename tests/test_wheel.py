"""What an installation holds: exactly three packages, and the recipes only in a real wheel."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def build(kind: str, folder: Path) -> list[str]:
    # In a process of its own, because hatchling's entry points act on the current folder.
    code = f"import sys, hatchling.build as b; print(b.build_{kind}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, folder], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return zipfile.ZipFile(folder / done.stdout.split()[-1]).namelist()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


def test_a_wheel_has_exactly_three_top_level_packages(wheel):
    tops = {name.split("/")[0] for name in wheel if ".dist-info" not in name.split("/")[0]}
    assert tops == {"trainkit", "trainkit_data", "trainkit_plugins"}


def test_a_wheel_carries_every_recipe_and_the_files_that_are_not_code(wheel):
    recipes = {path.name for path in (ROOT / "recipes").glob("*.yaml")}
    assert {
        name.split("/")[-1] for name in wheel if name.startswith("trainkit/recipes/")
    } == recipes
    assert {
        "trainkit/py.typed",
        "trainkit_data/py.typed",
        "trainkit_plugins/py.typed",
        "trainkit_plugins/common/norm.py",
        "trainkit/report/templates/report.html.j2",
    } <= set(wheel)
    skeleton = {path.name for path in (ROOT / "trainkit/commands/templates").iterdir()}
    assert "plugin.py.j2" in skeleton
    assert {f"trainkit/commands/templates/{name}" for name in skeleton} <= set(wheel)


def test_an_editable_install_holds_no_copy_of_anything(tmp_path):
    names = build("editable", tmp_path)
    assert not [name for name in names if name.endswith((".py", ".yaml"))]
