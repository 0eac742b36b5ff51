"""A JSON schema of recipes for editors, made from the same models that check them."""

from __future__ import annotations

from typing import Any

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


def plugin_schema(cls: type[Plugin]) -> dict[str, Any]:
    """Return the schema of one plugin's options."""
    return cls.model_json_schema()
