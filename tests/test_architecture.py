"""The house rules that a machine can check: who may import whom, how long things are, what must
be there.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from importlib.util import resolve_name
from pathlib import Path

import pytest

import trainkit

ROOT = Path(__file__).parents[1]
PLUGINS = ROOT / "plugins" / "trainkit_plugins"
COMMON = PLUGINS / "common"  # what rooms share; it is no technique
ROOMS = sorted(path.parent for path in PLUGINS.glob("*/__init__.py") if path.parent != COMMON)
CODE = sorted(
    [
        *(ROOT / "trainkit").rglob("*.py"),
        *(ROOT / "plugins").rglob("*.py"),
        *(ROOT / "tests").rglob("*.py"),
    ]
)
ADAPTERS = (
    "plugin.py",
    "episodic.py",
    "hookspecs.py",
    "command.py",
    "options.py",
    "sections.py",
    "monitor.py",
)
CARD = (
    "What it does",
    "When it helps",
    "When it did nothing here",
    "Options and defaults",
    "Differences from",
    "Cost",
    "Cite",
)


def imports(path: Path) -> list[tuple[str, list[str]]]:
    """Return every import in a file as (module, names), a relative one by the whole name of its
    module.
    """
    found: list[tuple[str, list[str]]] = []
    package = ".".join(path.relative_to(ROOT).parent.parts).removeprefix("plugins.")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            found.append((module, [alias.name for alias in node.names]))
    return found


def test_there_are_rooms():
    assert len(ROOMS) >= 6


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_meets_trainkit_only_in_its_adapter_and_only_by_public_names(room):
    for path in room.rglob("*.py"):
        for module, names in imports(path):
            if module.split(".")[0] not in ("trainkit", "trainkit_data"):
                continue
            assert path.name in ADAPTERS, f"{path.relative_to(ROOT)} imports {module}"
            if module in ("trainkit_data.few_shot", "trainkit_data.tabular"):
                continue
            assert module == "trainkit", f"{path.relative_to(ROOT)} reaches into {module}"
            assert set(names) <= set(trainkit.__all__), f"{path.relative_to(ROOT)}: {names}"


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_rooms_do_not_import_one_another(room):
    for path in room.rglob("*.py"):
        for module, _ in imports(path):
            parts = module.split(".")
            if parts[0] == "trainkit_plugins" and (path.name, module) not in required(room):
                assert parts[1:2] in ([], [room.name], ["common"]), f"{path.name} imports {module}"


def required(room: Path) -> set[tuple[str, str]]:
    """Return what a room imports of the plugins that its own names in `requires`, for
    `run.plugin(Maml)`: the class, in plugin.py alone.
    """
    module = importlib.import_module(f"trainkit_plugins.{room.name}.plugin")
    found = set()
    for value in vars(module).values():
        for name in getattr(value, "requires", ()):
            found.add(("plugin.py", f"trainkit_plugins.{name}.plugin"))
    return found


@pytest.mark.parametrize(
    "door",
    [
        r"run\.log\s*=[^=]|,\s*run\.log\s*=[^=]",  # instead of run.untouched()
        r"def (isolated_streams|apart)\b",  # instead of on_evaluate_start and on_test_start
        r"run\.plugins\[",  # instead of run.plugin(Maml)
    ],
)
def test_no_room_takes_a_back_door(door):
    for path in PLUGINS.rglob("*.py"):
        assert not re.search(door, path.read_text()), path.relative_to(ROOT)


def test_what_rooms_share_is_small_needs_torch_alone_and_knows_no_room():
    lines = 0
    for path in COMMON.rglob("*.py"):
        lines += len(path.read_text().splitlines())
        for module, _ in imports(path):
            top = module.split(".")[0]
            own = module.startswith("trainkit_plugins.common")
            allowed = own or top == "torch" or top in sys.stdlib_module_names
            assert allowed, f"{path.relative_to(ROOT)} imports {module}"
    assert 0 < lines <= 200


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_maths_needs_torch_alone(room):
    for path in room.rglob("*.py"):
        if path.name in ADAPTERS:
            continue
        for module, _ in imports(path):
            top = module.split(".")[0]
            allowed = top in ("torch", "trainkit_plugins") or top in sys.stdlib_module_names
            assert allowed, f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_has_a_card_with_the_headings(room):
    card = (room / "README.md").read_text()
    headings = [line.lstrip("# ") for line in card.splitlines() if line.startswith("## ")]
    for wanted in CARD:
        assert any(heading.startswith(wanted) for heading in headings), (
            f"{room.name}: no heading {wanted!r}"
        )


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_long(path):
    limit = 300 if "tests" not in path.relative_to(ROOT).parts[:1] else 500
    assert len(path.read_text().splitlines()) <= limit


def test_every_entry_point_names_a_class_in_an_adapter():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, target in project["entry-points"]["trainkit.plugins"].items():
        module, _, cls = target.partition(":")
        path = ROOT / "plugins" / Path(*module.split(".")).with_suffix(".py")
        assert path.name in ADAPTERS, name
        assert any(
            isinstance(n, ast.ClassDef) and n.name == cls for n in ast.parse(path.read_text()).body
        ), name


def test_the_command_line_starts_without_torch():
    code = (
        "import sys, trainkit.commands.app; sys.exit('torch' in sys.modules or 'matplotlib' in "
        "sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sources_of_data_are_imported_without_torch():
    code = (
        "import sys; from pathlib import Path; from trainkit.config.find_source import *; "
        "[source_class(name.replace('*', 'x'), Path()) for name in installed_sources()]; "
        "sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
