"""The pages of options and commands hold all of them, and docstrings are written as the
reference page reads them.
"""

from __future__ import annotations

import ast
import pkgutil
import re
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import docs_pages
import trainkit
import trainkit.testing
from trainkit.commands.app import app
from trainkit.config.recipe import Recipe
from trainkit.hooks.discovery import installed

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def options() -> str:
    return docs_pages.options_page()


def section(page: str, heading: str) -> str:
    (found,) = re.findall(
        rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", page, re.DOTALL | re.MULTILINE
    )
    return found


def test_every_option_of_every_plugin_has_its_row(options: str) -> None:
    for name, point in installed().items():
        own = section(options, name)
        for option, field in point.load().model_fields.items():
            (row,) = (line for line in own.splitlines() if line.startswith(f"| `{option}` |"))
            assert row.count("|") - row.count("\\|") == 5, row
            assert (
                field.description is None
                or field.description.split("|")[0][:20].replace("<", "&lt;") in row
            )


def test_every_section_of_a_recipe_has_its_table(options: str) -> None:
    top = section(options, "A recipe")
    assert all(f"| `{name}` |" in top for name in Recipe.model_fields)
    for heading in (
        "model:",
        "data: {name: table}",
        "data: any other name",
        "data.missing:",
        "train.loss:",
    ):
        assert "| option | type |" in section(options, heading), heading


@pytest.mark.parametrize(
    ("heading", "option", "kind", "default"),
    [
        ("train:", "precision", "`fp32` or `bf16` or `fp16`", '`"fp32"`'),
        ("train.loss:", "smoothing", "number ≥ 0, < 1", "`0.0`"),
        ("model:", "name", "string", "required"),
        ("model:", "num_classes", "integer ≥ 0 or `null`", "`null`"),
        ("train:", "loss", "a section", "see below"),
        ("maml", "steps", "integer ≥ 0, ≤ 10000", "`5`"),
    ],
)
def test_a_row_says_type_range_and_default(
    options: str, heading: str, option: str, kind: str, default: str
) -> None:
    assert f"| `{option}` | {kind} | {default} |" in section(options, heading)


def test_every_command_has_its_help() -> None:
    page = docs_pages.commands_page()
    own = [
        (c.name or c.callback.__name__).replace("_", "-")
        for c in app.registered_commands
        if c.callback
    ]
    for name in [
        *own,
        "recipes copy",
        *(point.name for point in entry_points(group="trainkit.commands")),
    ]:
        assert f"Usage: trainkit {name} [OPTIONS]" in section(page, name)
        assert "\x1b" not in section(page, name)
    assert "--run-dir" in section(page, "train")


def test_every_page_is_in_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text()
    named = set(re.findall(r"[\w/]+\.md", menu[menu.index("\nnav:") :]))
    assert yaml.safe_load(menu[menu.index("\nnav:") :])
    written = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert named == written | {"options.md", "commands.md"}


@pytest.mark.parametrize("module", [trainkit, trainkit.testing], ids=lambda module: module.__name__)
def test_the_reference_has_every_public_name(module: ModuleType) -> None:
    page = (ROOT / "docs" / "reference.md").read_text()
    shown = set(re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE))
    for name in module.__all__:
        home = getattr(getattr(module, name), "__module__", "")  # a page may show a whole module
        assert f"{module.__name__}.{name}" in shown or home in shown or name == "Hooks", name


def test_what_the_reference_shows_exists() -> None:
    page = (ROOT / "docs" / "reference.md").read_text()
    for shown in re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE):
        assert pkgutil.resolve_name(shown) is not None, shown


def entries() -> Iterator[tuple[str, str]]:
    """Yield each line of an `Args:` or `Attributes:` section that begins an entry, and where it
    stands.
    """
    for path in [*ROOT.glob("trainkit/**/*.py"), *ROOT.glob("plugins/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef | ast.Module):
                doc = ast.get_docstring(node) or ""
                for part in re.findall(r"^(?:Args|Attributes):\n((?: .*\n?)+)", doc, re.MULTILINE):
                    yield from (
                        (f"{path.name}: {line.strip()}", line) for line in part.splitlines()
                    )


def test_an_entry_of_a_docstring_has_one_name() -> None:
    found = list(entries())
    assert len(found) > 300
    assert not [
        where for where, line in found if re.match(r"    \*{0,2}\w+(, \*{0,2}\w+)+: ", line)
    ]
