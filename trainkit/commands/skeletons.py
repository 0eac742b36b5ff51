"""The skeleton of a technique, whose own tests say what is left to write."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from trainkit.errors import UserError
from trainkit.hooks.discovery import GROUP, installed
from trainkit.system.writes import write_text, writing

_ROOMS = Path("plugins") / "trainkit_plugins"
_TABLE = f'[project.entry-points."{GROUP}"]'
_CLASHES = ("Any", "ClassVar", "Field", "Plugin")  # what the skeleton imports by these names


@dataclass(frozen=True)
class Skeleton:
    """What was written.

    Attributes:
        files: that are new, or got a line.
        further: what to do next, one command or edit a line.
    """

    files: list[Path]
    further: list[str]


def new_plugin(name: str, folder: Path) -> Skeleton:
    """Write the skeleton of a plugin.

    Args:
        name: of the plugin, as a recipe names it.
        folder: in a checkout of trainkit the plugin becomes a room there; in any other folder, a
            distribution of its own.

    Raises:
        UserError: the name cannot be used, or something of that name exists.
        WriteError: a file cannot be written.
    """
    _check_name(name)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; make it first, or give another with --to")
    checkout = _checkout(folder.resolve())
    if checkout is None:
        return _distribution(name, folder / name)
    return _room(name, checkout)


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UserError(
            f"{name!r} cannot name a plugin: a name is small letters, digits and _, begins with a "
            "letter and is no word of Python, such as gradient_noise"
        )
    if len(name) > 30:
        raise UserError(f"{name!r} has {len(name)} letters; a plugin's name has at most 30")
    if _class_name(name) in _CLASHES:
        raise UserError(
            f"{name!r}: its class would be {_class_name(name)}, which trainkit's or "
            "pydantic's is called; choose another name"
        )
    points = installed()
    if name in points:
        raise UserError(
            f"a plugin {name!r} is installed ({points[name].value}); choose another "
            "name, or uninstall that one"
        )


def _class_name(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def _checkout(folder: Path) -> Path | None:
    """Return the checkout of trainkit in which a folder lies, if it lies in one."""
    for place in (folder, *folder.parents):
        if (place / _ROOMS / "__init__.py").is_file() and (place / "pyproject.toml").is_file():
            return place
    return None


def _room(name: str, root: Path) -> Skeleton:
    """Write a room in a checkout, with its tests, recipe and card, and the lines that name it."""
    room, tests, recipe = _ROOMS / name, Path("tests") / name, Path("recipes") / f"{name}.yaml"
    card = Path("docs") / "cards" / f"{name}.md"
    _check_absent(root / part for part in (room, tests, recipe, card))
    edited = {
        "pyproject.toml": _with_entry_point(root / "pyproject.toml", name),
        "mkdocs.yml": _with_card(root / "mkdocs.yml", name),
    }
    files = {
        room / "__init__.py": "init.py",
        room / "method.py": "method.py",
        room / "plugin.py": "plugin.py",
        room / "README.md": "card.md",
        recipe: "recipe.yaml",
        tests / "test_method.py": "test_method.py",
        tests / "test_plugin.py": "test_plugin.py",
    }
    values = {"room": True, "package": f"trainkit_plugins.{name}", "recipe": str(recipe)}
    texts = _render(name, files, values)
    texts[card] = f'--8<-- "{(room / "README.md").as_posix()}"\n'
    texts |= {Path(file): text for file, text in edited.items()}
    written = _write(root, texts)
    return Skeleton(
        written,
        [
            "pip install -e '.[test]'   so that the new entry point is known",
            f"pytest tests/{name}   fails, and says what to write",
            'CONTRIBUTING.md, "Add a technique", has the rest of the list',
        ],
    )


def _distribution(name: str, folder: Path) -> Skeleton:
    """Write a distribution with one package, which offers the plugin by an entry point."""
    _check_absent([folder])
    if name == "tests" or name in sys.stdlib_module_names or PathFinder.find_spec(name):
        raise UserError(f"a Python module {name!r} exists; choose another name for the package")
    package = Path(name)
    files = {
        package / "__init__.py": "init.py",
        package / "method.py": "method.py",
        package / "plugin.py": "plugin.py",
        Path("README.md"): "card.md",
        Path("pyproject.toml"): "pyproject.toml",
        Path(f"{name}.yaml"): "recipe.yaml",
        Path("tests") / "test_method.py": "test_method.py",
        Path("tests") / "test_plugin.py": "test_plugin.py",
    }
    values = {"room": False, "package": name, "recipe": f"{name}.yaml"}
    written = _write(folder, _render(name, files, values))
    return Skeleton(
        written,
        [
            f"cd {folder} && pip install -e '.[test]'",
            "pytest   fails, and says what to write",
        ],
    )


def _check_absent(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.exists():
            raise UserError(f"{path} exists; choose another name, or remove it")


def _with_entry_point(project: Path, name: str) -> str:
    """Return the text of pyproject.toml with the plugin among the entry points, in order."""
    lines = project.read_text(encoding="utf-8").splitlines()
    if _TABLE not in lines:
        raise UserError(f"{project}: has no table {_TABLE}; add it")
    place = lines.index(_TABLE) + 1
    while place < len(lines) and lines[place].strip():
        other = lines[place].partition("=")[0].strip()
        if other == name:
            raise UserError(f"{project}:{place + 1}: names a plugin {name!r}; choose another name")
        if other > name:
            break
        place += 1
    target = f"trainkit_plugins.{name}.plugin:{_class_name(name)}"
    lines.insert(place, f'{name} = "{target}"')
    return "\n".join(lines) + "\n"


def _with_card(menu: Path, name: str) -> str:
    """Return the text of mkdocs.yml with the plugin's card as the last of the cards."""
    lines = menu.read_text(encoding="utf-8").splitlines()
    cards = [number for number, line in enumerate(lines) if ": cards/" in line]
    if not cards:
        raise UserError(f"{menu}: its menu names no card (docs/cards/); add one")
    lines.insert(cards[-1] + 1, f"      - {name}: cards/{name}.md")
    return "\n".join(lines) + "\n"


def _render(name: str, files: Mapping[Path, str], values: Mapping[str, object]) -> dict[Path, str]:
    """Return the text of each file, made from the template named beside it."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("trainkit.commands", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Python, YAML and Markdown
    )
    written = [path.as_posix() for path in files if path.parts[0] != "tests"]
    values = {"name": name, "cls": _class_name(name), "written": written, **values}
    texts = {}
    for path, template in files.items():
        texts[path] = templates.get_template(f"{template}.j2").render(values)
    return texts


def _write(root: Path, texts: Mapping[Path, str]) -> list[Path]:
    for path, text in texts.items():
        with writing(root / path):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
        write_text(root / path, text)
    return [root / path for path in texts]
