"""YAML with line numbers: plain values, and for every key and value the line on which it stands.

YAML 1.2 scalars, as people write them: `1e-3` is a number, `on` and `yes` are strings. Duplicate
keys are refused. Only plain data can be read; nothing in a file can run code.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from trainkit.errors import Location, Problem, RecipeError
from trainkit.system.paths import read_small

KeyPath = tuple[str | int, ...]
Locations = dict[KeyPath, Location]

_RESOLVERS: list[tuple[str, str, str]] = [
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL", "~nN"),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
]


# Values in one file: no recipe has as many, but a few aliases inside aliases make billions.
MOST_VALUES = 10_000
DEEPEST = 100  # levels: none has as many, and Python itself gives up at a thousand
_LARGEST = (
    256 * 1024
)  # bytes: a recipe has a few thousand, and the parser takes a second for a million
LARGEST_INT = 10**100  # Python itself writes no number of more than 4,300 digits
NO_TEXT = re.compile("[\x00\ud800-\udfff]")
_PLAIN = {
    f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")
}


class _TooDeep(yaml.MarkedYAMLError):
    """It nests too deeply."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2, which stops where a text is out of all
    proportion.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Make the next node, counting: what is refused only when all is made has cost its time
        already.
        """
        self._nodes += 1
        self._depth += 1
        if self._nodes > 2 * MOST_VALUES or self._depth > DEEPEST:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            if self._depth > DEEPEST:
                raise _TooDeep(None, None, None, mark)
            raise yaml.MarkedYAMLError(
                "no recipe has so many", None, f"more than {MOST_VALUES:,} values", mark
            )
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list(_first))
# An empty scalar is null and has no first character: PyYAML looks it up under "".
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^$"), [""])


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    # Base 10 unless marked: 010 is ten in YAML 1.2, eight in PyYAML.
    text = node.value.lower()
    value = int(text, 0) if text.startswith(("0x", "0o")) else int(text)
    if abs(value) >= LARGEST_INT:
        raise ValueError("it has more than a hundred digits")
    return value


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    value: float = loader.construct_yaml_float(node)
    if math.isinf(value) and "inf" not in node.value.lower():
        raise ValueError("1e999 is not meant to be infinity")
    return value


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, made to quote also the strings that only YAML 1.2 takes for numbers,
    such as "1e-3".
    """


for _tag, _pattern, _first in _RESOLVERS:
    _Dumper.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list(_first))


def dump(data: dict[str, Any]) -> str:
    """Return plain data as YAML which `read_yaml` reads back as the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> tuple[dict[str, Any], Locations, list[Problem]]:
    """Read a YAML file whose top level is a mapping.

    Returns:
        The plain data; the location of every value under its path of keys and indices; the mistakes
        that leave the rest readable, such as repeated keys.

    Raises:
        UserError: the file cannot be read.
        RecipeError: it is not valid YAML, or holds something else than a mapping.
    """
    text = read_small(path, _LARGEST, "; `trainkit recipes` lists the ones that come with trainkit")
    data, reader = _parse(text, str(path))
    if data is None and not reader.locations:
        return {}, {}, []
    if not isinstance(data, dict):
        raise RecipeError(
            [
                Problem(
                    Location(str(path), 1), "", "a recipe is a mapping of sections such as `model:`"
                )
            ]
        )
    return data, reader.locations, reader.problems


def parse_value(text: str) -> tuple[Any, list[KeyPath]]:
    """Read what `key=text` on the command line sets.

    Returns:
        The value that `text` has in a recipe, and the path of every value in it (at least its own,
        the empty one).

    Raises:
        ValueError: it is not one plain value; the message says why.
    """
    try:
        value, reader = _parse(text, "")
    except RecipeError as error:
        raise ValueError(error.problems[0].message) from None
    if reader.problems:
        raise ValueError(reader.problems[0].message)
    return value, list(reader.locations) or [()]


def _parse(text: str, file: str) -> tuple[Any, _Reader]:
    """Return the data of one YAML document, None if it is empty, and its reader.

    The reader has the locations of the values, and the problems.
    """
    line = 1
    try:
        loader = _Loader(text)
        reader = _Reader(loader, file)
        node = loader.get_single_node()
        return (None if node is None else reader.read(node, ())), reader
    except _TooDeep as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        message = "not valid YAML: it nests too deeply"
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        fix = "indent with spaces, not tabs" if "'\\t'" in str(error.problem) else error.context
        message = f"not valid YAML: {error.problem}; {fix or 'check indentation and quotes here'}"
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = (
            f"not valid YAML: it has the character U+{error.character:04X}; is this a text file?"
        )
    raise RecipeError([Problem(Location(file, line), "", message)])


class _Reader:
    """Turns YAML nodes into plain data while noting where each stands."""

    def __init__(self, loader: _Loader, file: str) -> None:
        self.loader = loader
        self.file = file
        self.locations: Locations = {}
        self.problems: list[Problem] = []
        self._around: list[yaml.Node] = []

    def read(self, node: yaml.Node, path: KeyPath) -> Any:
        if any(node is outer for outer in self._around):
            raise yaml.MarkedYAMLError(
                "write the value out", None, "an alias that contains itself", node.start_mark
            )
        if len(path) > DEEPEST:
            raise _TooDeep(None, None, None, node.start_mark)
        if len(self.locations) > MOST_VALUES:
            many = f"more than {MOST_VALUES:,} values"
            raise yaml.MarkedYAMLError(
                "do aliases stand inside aliases?", None, many, node.start_mark
            )
        location = self.locations[path] = Location(self.file, node.start_mark.line + 1)
        if node.tag not in _PLAIN:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            self._refuse(location, path, f"a recipe holds plain values only; remove the tag {tag}")
            return None
        self._around.append(node)
        try:
            if isinstance(node, yaml.SequenceNode):
                found = []
                for i, child in enumerate(node.value):
                    found.append(self.read(child, (*path, i)))
                return found
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            value = self.loader.construct_object(node)
            if isinstance(value, str):
                self._check_text(value, location, path)
            return value
        except (
            ValueError,
            LookupError,
        ):  # an explicit tag that the text does not fit, or thousands of digits
            self._refuse(location, path, f"{node.value[:40]!r} is not a value that can be read")
            return None
        finally:
            self._around.pop()

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            location = Location(self.file, key_node.start_mark.line + 1)
            if not isinstance(key_node, yaml.ScalarNode):
                self._refuse(location, path, "a key must be a plain word, not a list or a mapping")
                continue
            key = str(key_node.value)
            if not self._check_text(key, location, path):
                continue
            if key in data:
                first = self.locations[(*path, key)].line
                self._refuse(
                    location,
                    (*path, key),
                    f"this key is already on line {first}; remove one of them",
                )
                continue
            data[key] = self.read(value_node, (*path, key))
            self.locations[(*path, key)] = (
                location  # point at the key: a nested value may start a line later
            )
        return data

    def _check_text(self, text: str, location: Location, path: KeyPath) -> bool:
        """Refuse characters that no file's name and no text may hold; escapes can put them in."""
        found = NO_TEXT.search(text)
        if found:
            self._refuse(
                location,
                path,
                f"it has the character U+{ord(found[0]):04X}, which is no text; remove it",
            )
        return found is None

    def _refuse(self, location: Location, path: KeyPath, message: str) -> None:
        self.problems.append(Problem(location, ".".join(map(str, path)), message))
