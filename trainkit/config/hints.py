"""What a person may have meant by a key or value that a recipe cannot have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, Tag

from trainkit.config.locations import KeyPath
from trainkit.errors import one_line, suggest

_YES, _NO = ("yes", "on", "y"), ("no", "off", "n")


def meant(model: type[BaseModel], path: KeyPath, known: Sequence[str], at_top: bool) -> str:
    """Return `; did you mean …?` for a key that is not known where it stands, or nothing.

    Args:
        model: of the whole recipe, or of a plugin's options.
        path: of the key under that model, as it was written.
        known: the options that there are in its place.
        at_top: whether `model` is that of the whole recipe, whose sections are searched too.
    """
    key = str(path[-1])
    others = [(name, field) for name, field in model.model_fields.items() if name not in path[:-1]]
    elsewhere = [f"{name}.{key}" for name, field in others if key in _any_options(field.annotation)]
    if at_top and elsewhere:
        return f"; did you mean {' or '.join(elsewhere)}?"
    sections = list(known)
    if at_top and "model" in known:
        sections.append("extends")
    return suggest(key, sections)


def _any_options(annotation: Any) -> set[str]:
    """Return the options that a section may have, whatever it is called by name."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return set(annotation.model_fields)
    found: set[str] = set()
    for member in get_args(annotation):
        for option in _any_options(member):
            found.add(option)
    return found


def fix(model: type[BaseModel], item: Any, path: KeyPath) -> str:
    """Return what to write instead of a value of another kind, where that can be told; else
    nothing.

    Args:
        model: of the whole recipe, or of a plugin's options.
        item: an error of pydantic.
        path: of the value in the recipe.
    """
    value, kind = item["input"], item["type"]
    if kind in ("model_type", "model_attributes_type", "dict_type") and path:
        return _as_section(model, value, item["loc"], path)
    if not isinstance(value, str):
        return ""
    if kind == "bool_type" and value.lower() in (*_YES, *_NO):
        return f"; write {'true' if value.lower() in _YES else 'false'}"
    if kind in ("int_type", "float_type") and _is_number(value):
        return "; leave the quotes out"
    return ""


def _as_section(model: type[BaseModel], value: Any, loc: KeyPath, path: KeyPath) -> str:
    name = path[-1]
    if path == ("plugins",) and isinstance(value, list | str):
        if isinstance(value, str):
            first = value
        else:
            first = next((v for v in value if isinstance(v, str)), "radam")
        return f"; write `plugins: {{{one_line(first, 40)}: {{}}}}`"
    if path[0] == "plugins" and len(path) == 2:
        return f"; `{one_line(str(name), 40)}:` with nothing behind it switches the plugin on"
    if isinstance(value, str) and "name" in options_at(model, (*loc, "")):
        return f"; did you mean {'.'.join(map(str, path))}.name?"
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def options_at(model: type[BaseModel], loc: KeyPath) -> list[str]:
    """Return the options that the section at `loc` knows, by walking the models along it."""
    known: Any = model
    for key in loc[:-1]:
        if isinstance(known, type) and issubclass(known, BaseModel):
            field = known.model_fields.get(str(key))
            known = None
            if field:
                known = field.annotation
        else:
            known = _member(known, key)
        if not isinstance(known, type) and type(None) in get_args(known):
            known = _member(known, None)
    if isinstance(known, type) and issubclass(known, BaseModel):
        return list(known.model_fields)
    return []


def _member(union: Any, tag: str | int | None) -> Any:
    """Return the member of a union that carries `tag`; its only model where the tag is None."""
    for member in get_args(union):
        inner = get_args(member) or (member,)
        if any(isinstance(note, Tag) and note.tag == tag for note in inner[1:]):
            return inner[0]
        if tag is None and isinstance(member, type) and issubclass(member, BaseModel):
            return member
    return None
