"""A JSON schema of recipes for editors, made from the same models that check them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainkit.config.data_source import DataSource
from trainkit.config.find_source import installed_sources, source_class
from trainkit.config.recipe import Recipe
from trainkit.errors import UserError
from trainkit.hooks.discovery import installed
from trainkit.hooks.plugin import Plugin


def recipe_schema() -> dict[str, Any]:
    """Return the schema of a whole recipe, the options of every installed plugin included.

    Raises:
        UserError: an installed plugin cannot be imported.
    """
    schema = Recipe.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    options: dict[str, Any] = {}
    for name, point in installed().items():
        try:
            cls = point.load()
        except Exception as error:
            raise UserError(f"plugin {name} cannot be imported: {error}") from None
        own = plugin_schema(cls)
        definitions.update(own.pop("$defs", {}))
        # `ema:` with nothing behind it means its defaults.
        options[name] = {
            "anyOf": [own, {"type": "null"}],
            "description": own.get("description", ""),
        }
    schema["properties"]["data"] = _data(definitions)
    definitions.pop("DataSource", None)
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "a recipe to start from, relative to this one",
    }
    schema["properties"]["plugins"] = {
        "type": "object",
        "description": "the plugins that are on, in order",
        "properties": options,
        "patternProperties": {r"\.py:": {"type": ["object", "null"]}},
        "additionalProperties": False,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "trainkit recipe",
        **schema,
    }


def _data(definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of the data section, and add that of each source to the definitions."""
    names: dict[type[DataSource], list[str]] = {}
    for name in installed_sources():
        try:
            names.setdefault(source_class(name, Path()), []).append(name)
        except UserError as error:
            raise UserError(f"data source {name}: {error}") from None
    local = {"type": "object", "properties": {"name": {"type": "string", "pattern": r"\.py:"}}}
    choices: list[dict[str, Any]] = []
    for cls, offered in names.items():
        own = source_schema(cls)
        if len(offered) == 1:
            own["properties"]["name"] = {"const": offered[0], "type": "string"}
        definitions.update(own.pop("$defs", {}))
        definitions[cls.__name__] = own
        choices.append({"$ref": f"#/$defs/{cls.__name__}"})
    return {"description": "the data", "anyOf": [*choices, {**local, "required": ["name"]}]}


def source_schema(cls: type[DataSource]) -> dict[str, Any]:
    """Return the schema of the options of one source of data."""
    return cls.model_json_schema()


def plugin_schema(cls: type[Plugin]) -> dict[str, Any]:
    """Return the schema of one plugin's options."""
    return cls.model_json_schema()
