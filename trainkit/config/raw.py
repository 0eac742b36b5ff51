"""The text of a recipe before it is typed: files that extend one another, overrides, and where
each value stands.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from trainkit.config.hints import fix, meant, options_at
from trainkit.config.locations import KeyPath, Locations, parse_value, read_yaml
from trainkit.config.mapping import FILE, load_mapping
from trainkit.errors import Location, Problem, RecipeError, UserError, printable, suggest
from trainkit.system.paths import is_file, whole

M = TypeVar("M", bound=BaseModel)
Given = Path | Mapping[str, Any]
"""A recipe as it may be given: a file, or nested mappings."""
_Loaded = tuple[dict[str, Any], Locations, list[Problem]]
_SHOWN = 60  # characters of a wrong value that a message repeats
_LONGEST_CHAIN = 20  # recipes that extend one another
_MOST_OVERRIDES = 1000
_DEEPEST_KEY = 50  # dots in the name of an override


@dataclass(frozen=True)
class RawRecipe:
    """Plain data of a recipe, where each value stands, and what was wrong with the text as such."""

    file: str = "recipe"
    data: dict[str, Any] = field(default_factory=dict)
    locations: Locations = field(default_factory=dict)
    problems: Sequence[Problem] = ()

    def nearest(self, *keys: str | int) -> Location:
        """Return where the value under `keys`, or the innermost written section around it,
        stands.
        """
        for end in range(len(keys), 0, -1):
            if keys[:end] in self.locations:
                return self.locations[keys[:end]]
        return self.locations.get((), Location(self.file, 1))

    def folder(self, *keys: str | int) -> Path:
        """Return the folder from which a path written under `keys` counts: that of the file
        which says it.
        """
        location = self.nearest(*keys)
        return Path(location.file if location.line else self.file).parent


def run_name(given: Given) -> str:
    """Return how the name of a fresh run's folder begins."""
    if isinstance(given, Path):
        return given.stem
    return "run"


def read_raw(given: Given | None, overrides: Sequence[str] = ()) -> RawRecipe:
    """Read a recipe, what it extends, and the overrides (`a.b=value` sets a key, `~a.b` removes
    one).

    Args:
        given: a file, or the recipe itself; None where the overrides are all there is.
        overrides: as on the command line.

    Raises:
        UserError: a file cannot be read, or is not YAML.
    """
    data, locations, problems = _load(given)
    if len(overrides) > _MOST_OVERRIDES:
        raise UserError(
            f"command line: {len(overrides):,} overrides are too many; write a recipe that extends "
            "this one"
        )
    for text in overrides:
        location = Location(f"command line `{text}`")
        try:
            _override(data, locations, text, location)
        except _WrongOverride as error:
            problems.append(Problem(location, error.key, str(error)))
    # `ema:` with nothing behind it switches a plugin on with its defaults.
    plugins = data.get("plugins", {})
    if plugins is None:
        del data["plugins"]
    elif isinstance(plugins, dict):
        data["plugins"] = {
            name: {} if options is None else options for name, options in plugins.items()
        }
    if isinstance(given, Mapping):
        name = FILE
    else:
        name = str(given or "command line")
    return RawRecipe(name, data, locations, problems)


def _load(given: Given | None) -> _Loaded:
    if given is None:
        return {}, {(): Location("command line")}, []
    if isinstance(given, Path):
        return _load_extended(given, ())
    return _with_base(Path(FILE), load_mapping(given), ())


def _load_extended(path: Path, seen: tuple[Path, ...]) -> _Loaded:
    return _with_base(path, read_yaml(path), seen)


def _with_base(path: Path, loaded: _Loaded, seen: tuple[Path, ...]) -> _Loaded:
    """Put what was read from `path` over the recipe that it extends, if it does."""
    data, locations, problems = loaded
    base = data.pop("extends", None)
    if base is None:
        return data, locations, problems
    location = locations[("extends",)]
    if not isinstance(base, str):
        raise RecipeError(
            [
                *problems,
                Problem(location, "extends", "give the path of one recipe, relative to this file"),
            ]
        )
    target, here = whole(path.parent / base), whole(path)
    wrong = None
    if target in seen or target == here:
        wrong = f"{base} extends this file in turn; one of them must not"
    elif len(seen) >= _LONGEST_CHAIN:
        wrong = f"more than {_LONGEST_CHAIN} recipes extend one another; write the sections out"
    elif not is_file(target):
        wrong = f"there is no file {target}"
    if wrong:
        raise RecipeError([*problems, Problem(location, "extends", wrong)])
    under, under_locations, found = _load_extended(target, (*seen, here))
    return merge(under, data), {**under_locations, **locations}, [*found, *problems]


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `under` with the values of `over` put in, section by section; lists are replaced
    whole.
    """
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


class _WrongOverride(Exception):
    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def _override(data: dict[str, Any], locations: Locations, text: str, location: Location) -> None:
    remove = text.startswith("~")
    name, separator, value = text.removeprefix("~").partition("=")
    if name.startswith("-"):
        raise _WrongOverride(
            "", "there is no such option; a key is set without dashes, as in `optimizer.lr=0.1`"
        )
    if name.count(".") > _DEEPEST_KEY:
        raise _WrongOverride("", f"the name of a key has at most {_DEEPEST_KEY} dots")
    if printable(name) != name or "\n" in name:
        raise _WrongOverride("", "the name of a key has no control characters")
    keys = _split(name, data)
    if remove == bool(separator) or not all(keys):
        form = "an override is `a.b=value`; `~a.b` removes a key"
        if remove:
            form = "`~a.b` removes a key"
        raise _WrongOverride("", form)
    section = data
    for i, key in enumerate(keys[:-1]):
        if not remove and section.get(key) is None:
            section[key] = {}
            locations[keys[: i + 1]] = location
        if not isinstance(section.get(key), dict):
            raise _WrongOverride(".".join(keys[: i + 1]), "has no keys below it")
        section = section[key]
    paths: list[KeyPath] = []
    if not remove:
        try:
            section[keys[-1]], paths = parse_value(value)
        except ValueError as error:
            raise _WrongOverride(name, f"{value!r} is not a value: {error}") from None
    elif keys[-1] in section:
        del section[keys[-1]]
    else:
        known = suggest(keys[-1], list(section))
        raise _WrongOverride(name, f"there is nothing of that name to remove{known}")
    for path in [path for path in locations if path[: len(keys)] == keys]:
        del locations[path]  # what stood there in a file is gone
    for path in paths:
        locations[(*keys, *path)] = location


def _split(name: str, data: Any) -> tuple[str, ...]:
    """Split a name at its dots, but not inside a key that is there, such as `./trick.py:Trick`."""
    keys, parts = [], name.split(".")
    while parts:
        present = (
            e
            for e in range(len(parts), 0, -1)
            if isinstance(data, dict) and ".".join(parts[:e]) in data
        )
        end = next(present, 1)
        keys.append(".".join(parts[:end]))
        data = data.get(keys[-1]) if isinstance(data, dict) else None
        parts = parts[end:]
    return tuple(keys)


def validate(
    model: type[M], data: Any, raw: RawRecipe, prefix: KeyPath
) -> tuple[M | None, list[Problem]]:
    """Make a `model` of `data`, the part of `raw` under `prefix`, or say with file and line
    why not.
    """
    try:
        # JSON mode is strict about types (no "1" for 1) and still reads a list as a tuple, which
        # YAML needs.
        return model.model_validate_json(json.dumps(data), strict=True), []
    except ValidationError as error:
        return None, [_problem(item, model, data, raw, prefix) for item in error.errors()]
    except (
        ValueError
    ) as error:  # raised by a model's own `model_post_init`, which pydantic does not catch
        return None, [
            Problem(raw.nearest(*prefix), ".".join(map(str, prefix)), _sentence(str(error)))
        ]


def _problem(
    item: Any, model: type[BaseModel], data: Any, raw: RawRecipe, prefix: KeyPath
) -> Problem:
    path = (*prefix, *_real_path(data, item["loc"], item["type"]))
    if item["type"] == "extra_forbidden":
        known = options_at(model, item["loc"])
        near = meant(model, path[len(prefix) :], known, at_top=not prefix)
        message = f"there is no such option{near} (known: {', '.join(known) or 'none'})"
    elif item["type"] == "missing":
        message = "is required and not given"
    else:
        shown = json.dumps(item["input"], ensure_ascii=False)
        shown = f"; got {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '…'}"
        message = _sentence(item["msg"]) + ("" if isinstance(item["input"], dict) else shown)
        message += fix(model, item, path)
    return Problem(raw.nearest(*path), ".".join(map(str, path)), message)


def _sentence(message: str) -> str:
    message = message.removeprefix("Value error, ").removeprefix("Input ")
    message = message.replace("a valid dictionary", "a mapping").replace(
        "an object", "a mapping"
    )  # YAML's word
    if not message[:2].isupper():
        return message[:1].lower() + message[1:]
    return message


def _real_path(data: Any, loc: KeyPath, kind: str) -> KeyPath:
    """Leave out of pydantic's location the tags that it adds for unions: they are no keys of the
    recipe.

    A key that is not in the data is one only where it is what is missing.
    """
    path: list[str | int] = []
    for i, key in enumerate(loc):
        listed = isinstance(data, list) and isinstance(key, int) and key < len(data)
        if listed or (isinstance(data, dict) and key in data):
            data = data[key]
            path.append(key)
        elif i == len(loc) - 1 and kind == "missing":
            path.append(key)
    return tuple(path)
