"""One plugin under examination: which class, with which options, in which recipe, and what it
did there.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import sys
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainkit.config.raw import RawRecipe, merge, read_raw, validate
from trainkit.config.recipe import Recipe
from trainkit.errors import Location, Problem, UserError
from trainkit.hooks.discovery import installed, load_class
from trainkit.hooks.entries import instantiate
from trainkit.hooks.order import Entry, arrange
from trainkit.hooks.plugin import Plugin
from trainkit.testing.training import TINY, Trace, train
from trainkit.training.build import Setup
from trainkit.training.defaults import check_names

Options = Mapping[str, Any]
# Traces, of a few MB each: what the checks of one plugin look at again, and what all are compared
# with.
_KEPT = 24
_traces: OrderedDict[Hashable, Trace] = OrderedDict()


class CheckError(AssertionError):
    """What a plugin does is not what a plugin should do."""


class NotApplicableError(Exception):
    """The check is not about such a plugin; the message says why."""


class Case:
    """A plugin with the options and the recipe under which it is checked. Making one imports
    nothing.

    Args:
        target: an installed plugin's name, a subclass of `Plugin`, or `path/to/file.py:Class` (from
            the working directory).
        options: example options, as in a recipe; default: what `recipe` gives the plugin, else the
            class's defaults.
        recipe: what the recipe of the checks (`TINY`) should have differently, as nested mappings,
            or the path of a recipe file. What it leaves out, `TINY` says. Plugins that it names are
            on in every run, with and without the examined one; those that the plugin `requires` are
            added.
    """

    def __init__(
        self,
        target: str | type[Plugin],
        options: Options | None = None,
        *,
        recipe: Mapping[str, Any] | Path | str | None = None,
    ) -> None:
        self.target = target
        self._options = options
        self._recipe = recipe
        self.name = _name(target)

    def __repr__(self) -> str:
        return f"Case({self.name!r})"

    @functools.cached_property
    def cls(self) -> type[Plugin]:
        """The plugin's class.

        Raises:
            CheckError: it cannot be found or imported.
        """
        if isinstance(self.target, type):
            return self.target
        try:
            return load_class(self.target, Path())[1]
        except UserError as error:
            raise CheckError(f"{self.target}: {error}") from error

    @functools.cached_property
    def _read(self) -> tuple[RawRecipe, Options | None]:
        """The recipe without the examined plugin, and the options that it gives it."""
        if isinstance(self._recipe, Path | str):
            file, given = str(self._recipe), read_raw(Path(self._recipe)).data
        else:
            file, given = "recipe", dict(self._recipe or {})
        data = merge(TINY, given)
        data["plugins"] = {
            key: {} if value is None else value
            for key, value in (data.get("plugins") or {}).items()
        }
        own = next((key for key in data["plugins"] if _name(key) == self.name), None)
        return RawRecipe(file, data), None if own is None else data["plugins"].pop(own)

    @property
    def raw(self) -> RawRecipe:
        """The recipe without the examined plugin."""
        return self._read[0]

    @property
    def options(self) -> dict[str, Any]:
        """The example options."""
        return dict(self._read[1] or {}) if self._options is None else dict(self._options)

    def plugin(self, options: Options | None = None, seed: int = 0) -> Plugin:
        """Make the plugin as a recipe would.

        Raises:
            CheckError: the options are refused.
        """
        options = self.options if options is None else options
        raw = RawRecipe(self.raw.file, {"plugins": {self.name: options}})
        plugin, problems = validate(self.cls, options, raw, ("plugins", self.name))
        if plugin is None:
            raise CheckError(
                "the options are refused; give others as example (`options=`)\n" + _lines(problems)
            )
        plugin.bind(self.name, seed)
        return plugin

    def setup(
        self, *, on: bool = True, options: Options | None = None, over: Options | None = None
    ) -> Setup:
        """Return a checked recipe with fresh plugins.

        Args:
            on: whether the examined plugin is on.
            options: its options; default: the example's.
            over: what the recipe has differently.

        Raises:
            CheckError: the recipe or the plugins in it are refused.
        """
        data = merge(self.raw.data, over or {})
        examined = (
            [Entry(self.name, self.plugin(options, data["seed"]), Location(self.raw.file))]
            if on
            else []
        )
        companions, problems = self._companions(data)
        entries, found = arrange([*companions, *examined])
        for entry in examined:
            data["plugins"] = data["plugins"] | {entry.name: entry.plugin.model_dump(mode="json")}
        raw = RawRecipe(self.raw.file, data)
        recipe, mistakes = validate(Recipe, data, raw, ())
        problems += [*found, *mistakes, *check_names(raw)]
        if recipe is None or problems:
            raise CheckError("the recipe of the checks is refused\n" + _lines(problems))
        recipe._raw = raw
        return Setup(recipe, entries)

    def _companions(self, data: dict[str, Any]) -> tuple[list[Entry], list[Problem]]:
        """Make the recipe's own plugins, with those added that they or the examined one require."""
        while True:
            entries, problems = instantiate(RawRecipe(self.raw.file, data))
            needed = (
                *self.cls.requires,
                *(name for entry in entries for name in entry.plugin.requires),
            )
            known = {self.name, *data["plugins"], *(entry.name for entry in entries)}
            missing = [name for name in needed if name not in known]
            if not missing:
                return entries, problems
            data["plugins"] = {name: {} for name in missing} | data["plugins"]

    def train(
        self,
        *,
        on: bool = True,
        options: Options | None = None,
        over: Options | None = None,
        **further: Any,
    ) -> Trace:
        """Train once; the arguments are those of `setup` and `trainkit.testing.training.train`."""
        return train(lambda: self.setup(on=on, options=options, over=over), **further)

    def trained(
        self, *, on: bool = True, options: Options | None = None, over: Options | None = None
    ) -> Trace:
        """Train, or return what came of it the last time."""
        key: Hashable
        if on:
            self.trained(
                on=False, over=over
            )  # before the plugin can have left anything behind in the process
            key = (self, json.dumps([options, over]))
        else:
            setup = self.setup(on=False, over=over)
            key = (setup.recipe.model_dump_json(), *(type(entry.plugin) for entry in setup.entries))
        if key not in _traces:
            _traces[key] = self.train(on=on, options=options, over=over)
        _traces.move_to_end(key)
        while len(_traces) > _KEPT:
            _traces.popitem(last=False)
        return _traces[key]

    def anew(self) -> Case:
        """Return this case with the plugin's file run once more: what its module or class keeps
        is not there yet.
        """
        module = sys.modules[self.cls.__module__]
        file = getattr(module, "__file__", None)
        twin = copy.copy(self)
        if file is None or module.__name__ == "__main__" or "<locals>" in self.cls.__qualname__:
            return twin
        name = (  # beside the other, so that relative imports find the same package
            f"{module.__name__}_anew"
        )
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is not None and spec.loader is not None:
            sys.modules[name] = fresh = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(fresh)
                twin.cls = getattr(fresh, self.cls.__qualname__)
            except (
                Exception
            ):  # a file that cannot be run twice, because it registers something, say
                del sys.modules[name]
        return twin

    def forget(self) -> None:
        """Train everything anew that is asked for from now on."""
        _traces.clear()


def _name(target: str | type[Plugin]) -> str:
    """Return the name that a plugin has in a recipe, without importing it."""
    if isinstance(target, str):
        return target.rpartition(":")[2] if ".py:" in target else target
    value = f"{target.__module__}:{target.__qualname__}"
    return next(
        (name for name, point in installed().items() if point.value == value), target.__name__
    )


def _lines(problems: Sequence[Problem]) -> str:
    return "\n".join(f"  {problem.key}: {problem.message}" for problem in problems)
