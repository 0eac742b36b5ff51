"""Build hook: put `recipes/` inside the wheel, and only there."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class RecipesHook(BuildHookInterface):  # type: ignore[type-arg]
    """Copy the recipes into a real wheel; an editable install must never hold a stale copy of
    them.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before each build; `version` is `standard` or `editable`."""
        if version == "standard":
            build_data["force_include"]["recipes"] = "trainkit/recipes"
