"""YAML with line numbers: plain values, and for every key and value the line on which it stands.

YAML 1.2 scalars, as people write them: `1e-3` is a number, `on` and `yes` are strings. Duplicate keys are refused.
Only plain data can be read; nothing in a file can run code.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from trainkit.errors import Mark, Problem, RecipeError, UserError

KeyPath = tuple[str | int, ...]
Marks = dict[KeyPath, Mark]

_RESOLVERS: list[tuple[str, str, str]] = [
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN\0"),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
]


_DEEPEST = 32  # no recipe nests as deep; an alias inside its own anchor would nest for ever


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _RESOLVERS:
    # An empty scalar is null and has no first character: PyYAML looks it up under "".
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), [c if c != "\0" else "" for c in _first])


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    # Base 10 unless marked: 010 is ten in YAML 1.2, eight in PyYAML.
    text = node.value.lower()
    return int(text, 0) if text.startswith(("0x", "0o")) else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def parse_scalar(text: str) -> Any:
    """Return the value that `text` has in a recipe (used for `key=value` on the command line)."""
    return yaml.load(text, Loader=_Loader)


def load_marked(path: Path) -> tuple[dict[str, Any], Marks]:
    """Read a YAML file whose top level is a mapping.

    Returns:
        The plain data, and the mark of every value under its path of keys and indices.

    Raises:
        UserError: the file cannot be read.
        RecipeError: it is not valid YAML, repeats a key, or holds something else than a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `trainkit recipes` lists the ones that come with trainkit") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return {}, {}
        reader = _Reader(loader, str(path))
        data = reader.read(node, ())
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        message = f"not valid YAML: {error.problem}; {error.context or 'check indentation and quotes here'}"
        raise RecipeError([Problem(Mark(str(path), line), "", message)]) from None
    except yaml.YAMLError as error:
        raise RecipeError([Problem(Mark(str(path), 1), "", f"not valid YAML: {error}")]) from None
    finally:
        loader.dispose()
    if not isinstance(data, dict):
        reader.problems.append(Problem(Mark(str(path), 1), "", "a recipe is a mapping of sections such as `model:`"))
    if reader.problems:
        raise RecipeError(reader.problems)
    return data, reader.marks


class _Reader:
    """Turns YAML nodes into plain data while noting where each stands."""

    def __init__(self, loader: _Loader, file: str) -> None:
        self.loader = loader
        self.file = file
        self.marks: Marks = {}
        self.problems: list[Problem] = []

    def read(self, node: yaml.Node, path: KeyPath) -> Any:
        if len(path) > _DEEPEST:
            raise yaml.MarkedYAMLError(problem="an alias that contains itself", problem_mark=node.start_mark)
        self.marks[path] = Mark(self.file, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(child, (*path, i)) for i, child in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        return self.loader.construct_object(node)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            mark = Mark(self.file, key_node.start_mark.line + 1)
            if key in data:
                first = self.marks[(*path, key)].line
                dotted = ".".join(map(str, (*path, key)))
                self.problems.append(Problem(mark, dotted, f"this key is already on line {first}; remove one of them"))
                continue
            data[key] = self.read(value_node, (*path, key))
            self.marks[(*path, key)] = mark  # point at the key: a nested value may start a line later
        return data
