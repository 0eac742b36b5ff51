"""Checks of what a plugin declares: nothing is trained here."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainkit.commands.schema import plugin_schema
from trainkit.commands.verify import differences
from trainkit.config.raw import RawRecipe, validate
from trainkit.config.recipe import Recipe, read_recipe
from trainkit.hooks.discovery import describe, installed
from trainkit.hooks.manager import check_plugins
from trainkit.testing.case import Case, CheckError
from trainkit.testing.ranges import violations
from trainkit.testing.training import TINY


def check_found(case: Case) -> None:
    """A recipe can name it, and `trainkit plugins` has a sentence on it."""
    if not (vars(case.cls).get("__doc__") or "").strip():
        raise CheckError(
            f"{case.cls.__name__} has no docstring; its first line is what `trainkit plugins` shows"
        )
    if isinstance(case.target, str) and case.target in installed():
        listing = describe(installed()[case.target])
        if not listing.summary or listing.summary.startswith("("):
            raise CheckError(
                "`trainkit plugins` reads source text without importing it, and finds no docstring "
                f"of {case.cls.__name__} there: let the entry point name the module in which the "
                "class is written"
            )


def check_options(case: Case) -> None:
    """Its options survive being written to a recipe and read again, and equal options do not
    make plugins equal.
    """
    plugin = case.plugin()
    plugin_schema(type(plugin))
    if plugin == case.plugin():
        raise CheckError(
            "two plugins with equal options must still be two: leave `__eq__` as Plugin has it"
        )
    written = Recipe.model_validate(TINY | {"plugins": {case.name: plugin.model_dump(mode="json")}})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(written.dump(), encoding="utf-8")
        recipe, _, problems = read_recipe(path)
    if recipe is None or problems:
        raise CheckError(
            f"the resolved recipe cannot be read again: {'; '.join(map(str, problems))}"
        )
    again = case.plugin(recipe.plugins[case.name])
    found = next(differences(plugin.model_dump(mode="json"), again.model_dump(mode="json")), None)
    if found:
        raise CheckError(f"option {found} after writing the resolved recipe and reading it again")


def check_descriptions(case: Case) -> None:
    """Every option has a description."""
    silent = [
        name
        for name, option in case.cls.model_fields.items()
        if not (option.description or "").strip()
    ]
    if silent:
        raise CheckError(f"no description: {', '.join(silent)}; write Field(…, description=…)")


def check_ranges(case: Case) -> None:
    """Every number among its options has a range, and a value outside is refused by the option's
    name.
    """
    wrong = []
    for place, tried, wanted in violations(
        plugin_schema(case.cls), case.plugin().model_dump(mode="json")
    ):
        refused = [_refuses(case, options, place.split(".")[0]) for options in tried]
        if wanted and not all(refused):
            wrong.append(f"{place}: takes {wanted}, or refuses it without naming the option")
        elif not any(refused):
            wrong.append(
                f"{place}: takes any number; declare its range (gt, ge, lt, le or "
                "allow_inf_nan=False)"
            )
    if wrong:
        raise CheckError("\n".join(wrong))


def _refuses(case: Case, options: dict[str, Any], option: str) -> bool:
    section = ("plugins", case.name)
    _, problems = validate(
        case.cls, options, RawRecipe(data={"plugins": {case.name: options}}), section
    )
    named = (
        f"{problem.key.removeprefix('.'.join(section))} {problem.message}" for problem in problems
    )
    return any(option in re.findall(r"\w+", text) for text in named)


def check_citation(case: Case) -> None:
    """It names its paper in BibTeX, or says that there is none with `citation = \"\"` of its
    own.
    """
    own = [vars(cls)["citation"] for cls in case.cls.__mro__ if "citation" in vars(cls)]
    if len(own) == 1:
        raise CheckError(
            'declare `citation: ClassVar[str]`: the paper in BibTeX, or "" for an aid without a'
            " paper"
        )
    text = own[0].strip()
    if text and not (text.startswith("@") and "{" in text and text.count("{") == text.count("}")):
        raise CheckError(f"citation is not BibTeX: {text[:60]!r}")


def check_hooks(case: Case) -> None:
    """The manager takes its hooks, and it names other plugins in tuples and mappings."""
    for name in ("before", "after", "requires"):
        value = getattr(case.cls, name)
        if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
            raise CheckError(f"{name} must be a tuple of names, such as ('ema',); it is {value!r}")
    for name in ("conflicts", "known_failures"):
        value = getattr(case.cls, name)
        if not isinstance(value, Mapping) or not all(
            isinstance(v, str) and v.strip() for v in value.values()
        ):
            raise CheckError(f"{name} must map names to reasons; it is {value!r}")
    setup = case.setup()
    if problems := check_plugins(setup.entries):
        raise CheckError("\n".join(problem.message for problem in problems))
