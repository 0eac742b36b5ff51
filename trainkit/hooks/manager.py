"""The plugins of one run, checked and registered with pluggy.

A fresh manager per run; no globals. Everything that could go wrong with a plugin's shape is refused
here, all of it at once, with the recipe's line.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import pluggy

from trainkit.errors import Problem
from trainkit.hooks.guard import guarded
from trainkit.hooks.order import Entry
from trainkit.hooks.shapes import check_providers, check_shape, hooks_of, is_value, problems_of
from trainkit.hooks.specs import PROJECT, Hooks


def check_plugins(entries: Sequence[Entry]) -> list[Problem]:
    """Return every mistake in how plugins publish and implement hooks; none is registered."""
    return _specified(entries)[1]


def make_manager(
    entries: Sequence[Entry], defaults: object, observers: Sequence[object] = ()
) -> tuple[pluggy.PluginManager, list[Problem]]:
    """Register the plugins, first in order called first and outermost.

    Args:
        entries: the plugins in order.
        defaults: core's own answers, whose implementations are all marked `trylast`.
        observers: further objects with hooks, asked and told after the plugins.

    Returns:
        The manager, and every mistake; where there is one, nothing is registered.
    """
    manager, problems = _specified(entries)
    if problems:
        return manager, problems
    manager.register(defaults, "core")
    for observer in reversed(observers):
        manager.register(observer)
    for entry in reversed(entries):  # pluggy calls the last registered first
        manager.register(entry.plugin, entry.name)
    blamed = {entry.name for entry in entries}
    for name, caller in hooks_of(manager).items():
        for implementation in caller.get_hookimpls():
            implementation.function = guarded(
                implementation,
                name,
                is_value=is_value(caller),
                blames=implementation.plugin_name in blamed,
            )
    return manager, problems


def _specified(entries: Sequence[Entry]) -> tuple[pluggy.PluginManager, list[Problem]]:
    """Return a manager that knows core's hooks and the plugins', and every mistake in them."""
    manager = _Manager(PROJECT)
    manager.add_hookspecs(Hooks)
    problems: list[Problem] = []
    for entry in entries:
        problems += _publish(entry, manager)
    present = {entry.name for entry in entries}
    for entry in entries:
        # Who lacks a plugin, which is said elsewhere, lacks its hooks too.
        if present.issuperset(entry.plugin.requires):
            problems += check_shape(entry, manager)
    if not problems:
        problems += check_providers(entries, manager)
    return manager, problems


def _publish(entry: Entry, manager: pluggy.PluginManager) -> list[Problem]:
    """Add the hooks that a plugin publishes, or say why they cannot be added."""
    specs = entry.plugin.hookspecs
    if specs is None:
        return []
    names = [name for name in dir(specs) if hasattr(getattr(specs, name), f"{PROJECT}_spec")]
    known = [name for name in names if hasattr(manager.hook, name)]
    if names and not known:
        manager.add_hookspecs(specs)
        return []
    wrong = [f"its hookspecs {specs.__name__} has no method marked @value or @moment"]
    if known:
        end = "but there is one of that name already; rename it"
        wrong = [f"it publishes a hook {name}, {end}" for name in known]
    return problems_of(entry, wrong)


class _Manager(pluggy.PluginManager):
    """pluggy's manager, made to look only at functions: reading a pydantic object's properties
    has effects.
    """

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        if not inspect.isfunction(inspect.getattr_static(plugin, name, None)):
            return None
        return super().parse_hookimpl_opts(plugin, name)
