"""`trainkit new plugin` writes a skeleton that is well made, and says what is left to write."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from typer.testing import CliRunner

from trainkit import UserError
from trainkit.commands.app import app
from trainkit.commands.skeletons import new_plugin
from trainkit.config.recipe import read_recipe
from trainkit.testing import run_checks

ROOT = Path(__file__).parents[1]
HEALTHY = Path(__file__).parent / "testing" / "healthy.py"
SMALL = {"data": {"image_size": 8}, "plugins": {f"{HEALTHY}:TinyNet": {}}}
FILES = ("__init__.py", "method.py", "plugin.py")
Install = Callable[[str], Path]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of trainkit, as far as the command looks at one."""
    for package in ("trainkit", "trainkit/testing", "plugins/trainkit_plugins"):
        (tmp_path / package).mkdir(parents=True)
        (tmp_path / package / "__init__.py").write_text('"""A package."""\n')
    for file in ("pyproject.toml", "mkdocs.yml"):
        shutil.copy(ROOT / file, tmp_path)
    return tmp_path


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return a function that writes a distribution and installs it as far as pip would."""

    def make(name: str) -> Path:
        new_plugin(name, tmp_path)
        folder = tmp_path / name
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        entries = project["entry-points"]["trainkit.plugins"]
        lines = [f"{key} = {value}" for key, value in entries.items()]
        metadata = folder / f"{name}-{project['version']}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Name: {project['name']}\nVersion: 0.1.0\n")
        (metadata / "entry_points.txt").write_text("\n".join(["[trainkit.plugins]", *lines]))
        monkeypatch.syspath_prepend(str(folder))
        return folder

    return make


def lint(folder: Path) -> None:
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "."],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"skeleton_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["my_trick", "a" * 30])
def test_a_room_is_written_as_the_house_writes(checkout: Path, name: str) -> None:
    skeleton = new_plugin(name, checkout / "plugins")  # from any folder of the checkout
    room = checkout / "plugins" / "trainkit_plugins" / name
    assert {room / file for file in (*FILES, "README.md")} < set(skeleton.files)
    assert all(file.is_file() for file in skeleton.files)
    lint(checkout)

    project = tomllib.loads((checkout / "pyproject.toml").read_text())
    points = project["project"]["entry-points"]["trainkit.plugins"]
    cls = {"my_trick": "MyTrick"}.get(name, name.capitalize())
    assert points.pop(name) == f"trainkit_plugins.{name}.plugin:{cls}"
    before = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project == before
    assert list(points) == list(before["project"]["entry-points"]["trainkit.plugins"])

    menu = (checkout / "mkdocs.yml").read_text().splitlines()
    (line,) = set(menu) - set((ROOT / "mkdocs.yml").read_text().splitlines())
    assert line == f"      - {name}: cards/{name}.md"
    assert ": cards/" in menu[menu.index(line) - 1]
    included = (checkout / "docs" / "cards" / f"{name}.md").read_text().split('"')[1]
    assert (checkout / included).samefile(room / "README.md")


def test_a_rooms_card_and_recipe_have_what_the_house_asks_for(checkout: Path) -> None:
    new_plugin("my_trick", checkout)
    card = (checkout / "plugins/trainkit_plugins/my_trick/README.md").read_text()
    headings = [line.removeprefix("## ") for line in card.splitlines() if line.startswith("## ")]
    wanted = ["What it does", "When it helps", "When it did nothing here"]
    wanted += ["Options and defaults", "Differences from the authors' code", "Cost", "Cite"]
    assert headings == wanted
    recipe = (checkout / "recipes" / "my_trick.yaml").read_text()
    assert recipe.startswith("# TODO")
    assert "# Run: trainkit train recipes/my_trick.yaml" in recipe
    assert yaml.safe_load(recipe)["plugins"] == {"my_trick": {"strength": 0.5}}


def test_elsewhere_a_distribution_is_written(tmp_path: Path) -> None:
    skeleton = new_plugin("my_trick", tmp_path)
    folder = tmp_path / "my_trick"
    assert {folder / "my_trick" / file for file in FILES} < set(skeleton.files)
    assert {file for file in folder.rglob("*.*") if file.is_file()} == set(skeleton.files)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == "my-trick"
    assert project["entry-points"]["trainkit.plugins"] == {"my_trick": "my_trick.plugin:MyTrick"}
    (folder / "ruff.toml").write_text("lint.select = ['E', 'F', 'I', 'W', 'UP', 'B', 'PT', 'RUF']")
    lint(folder)


def test_the_skeletons_own_tests_say_what_to_write(install: Install) -> None:
    folder = install("new_and_empty")
    failed = {
        outcome.check: outcome.message
        for outcome in run_checks("new_and_empty", {"strength": 0.5}, recipe=SMALL)
        if outcome.status == "failed"
    }
    assert failed.keys() == {"check_citation", "check_trains"}
    assert "TODO: write change_ in method.py (plugin.py:" in failed["check_trains"]

    maths = load(folder / "tests" / "test_method.py")
    with pytest.raises(pytest.fail.Exception, match="golden numbers"):
        maths.test_it_gives_the_authors_numbers()
    kit = load(folder / "tests" / "test_plugin.py")
    assert set(kit.WRITTEN) >= {"README.md", "new_and_empty.yaml", "new_and_empty/plugin.py"}
    for file in kit.WRITTEN:
        with pytest.raises(AssertionError, match=f"{file}:[0-9]+: .*TODO"):
            kit.test_nothing_is_left_to_write(file)


def test_filled_in_it_conforms(install: Install) -> None:
    folder = install("new_and_filled")
    method, plugin = (folder / "new_and_filled" / file for file in ("method.py", "plugin.py"))
    body, missing = "for gradient in gradients:\n        gradient.mul_(1 - strength)", "raise Not"
    lines = method.read_text().splitlines()
    kept = [line if missing not in line else f"    {body}" for line in lines]
    method.write_text("\n".join(kept))
    plugin.write_text(
        plugin.read_text().replace("# TODO: citation: ClassVar[str] = ", 'citation = ""  # ')
    )
    recipe, _, problems = read_recipe(folder / "new_and_filled.yaml")
    assert recipe is not None
    assert not problems
    outcomes = run_checks("new_and_filled", recipe.plugins["new_and_filled"], recipe=SMALL)
    assert [str(o) for o in outcomes if o.status not in ("passed", "does not apply")] == []


@pytest.mark.parametrize("name", ["", "My_trick", "my-trick", "2nd", "class", "trück", "../up"])
def test_a_name_that_python_cannot_import_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"cannot name a plugin: .* such as gradient_noise"):
        new_plugin(name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("radam", r"is installed \(trainkit_plugins.radam.plugin:RAdam\)"),
        ("class_var", "its class would be ClassVar"),
        ("a" * 31, "has 31 letters; a plugin's name has at most 30"),
        ("torch", "a Python module 'torch' exists"),
        ("json", "a Python module 'json' exists"),
        ("tests", "a Python module 'tests' exists"),
    ],
)
def test_a_name_that_is_taken_is_refused(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        new_plugin(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    new_plugin("my_trick", checkout)
    with pytest.raises(UserError, match="my_trick exists; choose another name, or remove it"):
        new_plugin("my_trick", checkout)
    (checkout / "tests" / "other").mkdir()
    with pytest.raises(UserError, match="tests/other exists"):
        new_plugin("other", checkout)
    assert not (checkout / "plugins" / "trainkit_plugins" / "other").exists()

    shutil.rmtree(checkout / "plugins" / "trainkit_plugins" / "my_trick")
    for left in ("tests/my_trick", "recipes/my_trick.yaml", "docs/cards/my_trick.md"):
        with pytest.raises(UserError, match=f"{left} exists"):
            new_plugin("my_trick", checkout)
        path = checkout / left
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=r"pyproject.toml:\d+: names a plugin 'my_trick'"):
        new_plugin("my_trick", checkout)

    elsewhere = tmp_path_factory.mktemp("elsewhere")
    new_plugin("my_trick", elsewhere)
    with pytest.raises(UserError, match="my_trick exists"):
        new_plugin("my_trick", elsewhere)
    with pytest.raises(UserError, match="missing: no such folder"):
        new_plugin("my_trick", elsewhere / "missing")


def test_the_command_prints_the_files_and_what_is_next(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["new", "plugin", "my_trick", "--to", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert f"{tmp_path}/my_trick/my_trick/plugin.py\n" in done.output
    assert done.output.splitlines()[-3:] == [
        "next:",
        f"  cd {tmp_path}/my_trick && pip install -e '.[test]'",
        "  pytest   fails, and says what to write",
    ]
    again = CliRunner().invoke(app, ["new", "plugin", "my_trick", "--to", str(tmp_path)])
    assert again.exit_code == 2
    assert again.output.startswith(f"error: {tmp_path}/my_trick exists; choose another name")
