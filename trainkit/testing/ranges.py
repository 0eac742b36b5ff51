"""Values outside the ranges that a plugin's options declare, found from the JSON schema of the
options.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]
Path = tuple[str | int, ...]


def violations(
    schema: Schema, example: dict[str, Any]
) -> Iterator[tuple[str, list[dict[str, Any]], str]]:
    """Yield for every number in a plugin's options what must be refused.

    Args:
        schema: of the options.
        example: options that are accepted, every default written out.

    Yields:
        The number's place (`betas.0`); options that put something else there; and what that is, in
        words. For a number without a range in the schema the words are empty, and at least one of
        the options must be refused: a validator may know the range.
    """
    for path, node in _numbers(schema, schema, example, ()):
        place = ".".join(map(str, path))
        bounds = [(key, node[key]) for key in _BEYOND if key in node]
        for key, bound in bounds:
            value = _BEYOND[key](bound, node["type"] == "integer")
            yield (
                place,
                [_put(example, path, value)],
                f"{value!r} although its range says {_WORDS[key]} {bound!r}",
            )
        if not bounds:
            far = (-(10**12), 10**12) if node["type"] == "integer" else (-math.inf, math.inf)
            yield place, [_put(example, path, value) for value in far], ""


_WORDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}
_BEYOND: dict[str, Callable[[float, bool], float]] = {
    "minimum": lambda bound, whole: bound - 1 if whole else math.nextafter(bound, -math.inf),
    "exclusiveMinimum": lambda bound, whole: bound,
    "maximum": lambda bound, whole: bound + 1 if whole else math.nextafter(bound, math.inf),
    "exclusiveMaximum": lambda bound, whole: bound,
}


def _numbers(node: Schema, whole: Schema, value: Any, path: Path) -> Iterator[tuple[Path, Schema]]:
    """Walk along the schema and the example value together; yield each number with its part of
    the schema.
    """
    if "$ref" in node:
        node = whole["$defs"][node["$ref"].rpartition("/")[2]]
    for inner in node.get("anyOf", node.get("oneOf", ())):
        yield from _numbers(inner, whole, value, path)
    if node.get("type") in ("number", "integer") and "enum" not in node and "const" not in node:
        yield path, node
    elif node.get("type") == "array" and isinstance(value, list):
        fixed = node.get("prefixItems", [])
        for i, item in enumerate(value):
            inner = fixed[i] if i < len(fixed) else node.get("items", {})
            if isinstance(inner, Mapping):
                yield from _numbers(inner, whole, item, (*path, i))
    elif node.get("type") == "object" and isinstance(value, dict):
        for key, item in value.items():
            inner = node.get("properties", {}).get(key, node.get("additionalProperties", {}))
            if isinstance(inner, Mapping):
                yield from _numbers(inner, whole, item, (*path, key))


def _put(example: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    options = copy.deepcopy(example)
    inner: Any = options
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return options
