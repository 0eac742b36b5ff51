"""The pages of all options and of all commands, made from the code at every build: a hook of
mkdocs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any

Schema = Mapping[str, Any]

_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_HEADER = "| option | type | default | meaning |\n|---|---|---|---|"


def on_files(files: Any, config: Any) -> Any:
    """Add the pages to those that mkdocs has found."""
    from mkdocs.structure.files import File

    for name, text in (("options.md", options_page()), ("commands.md", commands_page())):
        files.append(File.generated(config, name, content=text))
    return files


def options_page() -> str:
    """Return every section of a recipe and every installed plugin, each with a table of its
    options.
    """
    from trainkit.commands.schema import recipe_schema

    schema = recipe_schema()
    lines = [
        "# All options",
        (
            "What a recipe may say, made from the code that checks it. An option that is left out "
            "has its default."
        ),
        *_sections(schema),
        "## Plugins",
        "Each stands under `plugins:` by its name.",
    ]
    for name, option in schema["properties"]["plugins"]["properties"].items():
        (own,) = (part for part in option["anyOf"] if part.get("type") == "object")
        lines += [f"### {name}", _escape(own["description"]), _table(own)]
    return "\n\n".join(lines) + "\n"


def _sections(schema: Schema) -> Iterator[str]:
    """Yield the top of a recipe and then each section, once, under the path where it was met
    first.
    """
    waiting: list[tuple[str, Schema]] = [("A recipe", schema)]
    met: set[str] = set()
    while waiting:
        path, section = waiting.pop(0)
        yield f"## {path}"
        yield _escape(section["description"])
        yield _table(section)
        for name, option in section["properties"].items():
            for target in _targets(option):
                if target not in met:
                    met.add(target)
                    own = schema["$defs"][target]
                    place = name if section is schema else f"{path.partition(':')[0]}.{name}"
                    waiting.append((_heading(place, own), own))


def _heading(path: str, section: Schema) -> str:
    kind = section["properties"].get("name", {}) if path == "data" else None
    if kind is None:
        return f"{path}:"
    return f"{path}: {{name: {kind['const']}}}" if "const" in kind else f"{path}: any other name"


def _targets(option: Schema) -> list[str]:
    """Return the definitions that an option refers to."""
    parts = [option, *option.get("anyOf", []), *option.get("oneOf", [])]
    return [part["$ref"].rpartition("/")[2] for part in parts if "$ref" in part]


def _table(section: Schema) -> str:
    if not section["properties"]:
        return "No options."
    required = section.get("required", [])
    rows = []
    for name, option in section["properties"].items():
        default = "required" if name in required else _default(option)
        cells = f"`{name}`", _kind(option), default, _escape(option.get("description", ""))
        rows.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join([_HEADER, *rows])


def _default(option: Schema) -> str:
    if "$ref" in option:
        return "see below"
    return f"`{json.dumps(option['default'], ensure_ascii=False)}`" if "default" in option else ""


def _kind(option: Schema) -> str:
    """Return the type of an option and its range."""
    choices = option.get("anyOf", option.get("oneOf"))
    if choices:
        return " or ".join(dict.fromkeys(map(_kind, choices)))
    if "$ref" in option:
        return "a section"
    if "const" in option:
        return f"`{option['const']}`"
    if "enum" in option:
        return " or ".join(f"`{value}`" for value in option["enum"])
    kind = str(option.get("type", "any"))
    kind = {"null": "`null`", "object": "mapping"}.get(kind, kind)
    if kind == "array":
        inner = option.get("prefixItems") or [option.get("items", {})]
        kind = f"list of {' and '.join(dict.fromkeys(map(_kind, inner)))}"
    bounds = [f"{sign} {option[key]}" for key, sign in _BOUNDS.items() if key in option]
    return " ".join([kind, ", ".join(bounds)]).strip()


def commands_page() -> str:
    """Return the help of every command, those of installed plugins included."""
    from trainkit.commands.app import app

    lines = ["# All commands", "What `trainkit NAME --help` says."]
    for name in sorted(_names(app)):
        lines += [f"## {name}", f"```text\n{_help(app, name)}\n```"]
    for point in sorted(entry_points(group="trainkit.commands"), key=lambda point: point.name):
        lines += [
            f"## {point.name}",
            f"```text\n{_help(_alone(point), point.name, alone=True)}\n```",
        ]
    return "\n\n".join(lines) + "\n"


def _names(app: Any) -> Iterator[str]:
    from typer.main import get_command

    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        yield name
        yield from (f"{name} {inner}" for inner in getattr(command, "commands", {}))


def _alone(point: Any) -> Any:
    import typer

    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(point.name)(point.load())
    return app


def _help(app: Any, name: str, *, alone: bool = False) -> str:
    from typer.testing import CliRunner

    asked = ["--help"] if alone else [*name.split(), "--help"]
    program = f"trainkit {name}" if alone else "trainkit"
    done = CliRunner().invoke(app, asked, prog_name=program, env={"COLUMNS": "80", "NO_COLOR": "1"})
    assert done.exit_code == 0, done.output
    return "\n".join(line.rstrip() for line in done.output.strip().splitlines())


def _escape(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", "\\*")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
