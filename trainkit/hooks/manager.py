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
from trainkit.hooks.shapes import check_providers, check_shape
from trainkit.hooks.specs import PROJECT, Hooks


def make_manager(
    entries: Sequence[Entry], defaults: object, observers: Sequence[object] = ()
) -> tuple[pluggy.PluginManager, list[Problem]]:
    """Register the plugins, first in order called first and outermost; return the manager and every
    mistake.

    Args:
        entries: the plugins in order.
        defaults: core's own answers, whose implementations are all marked `trylast`.
        observers: further objects with hooks, asked and told after the plugins.
    """
    manager = _Manager(PROJECT)
    manager.add_hookspecs(Hooks)
    problems = [problem for entry in entries for problem in _publish(entry, manager)]
    present = {
        entry.name for entry in entries
    }  # who lacks a plugin, which is said elsewhere, lacks its hooks too
    complete = [entry for entry in entries if present.issuperset(entry.plugin.requires)]
    problems += [problem for entry in complete for problem in check_shape(entry, manager)]
    if problems:
        return manager, problems
    manager.register(defaults, "core")
    for observer in reversed(observers):
        manager.register(observer)
    for entry in reversed(entries):  # pluggy calls the last registered first
        manager.register(entry.plugin, entry.name)
    for name in vars(manager.hook):
        caller = getattr(manager.hook, name)
        is_value = bool(caller.spec and caller.spec.opts.get("firstresult"))
        if is_value:
            problems += check_providers(caller, entries)
        for implementation in caller.get_hookimpls():
            blames = implementation.plugin_name in present
            implementation.function = guarded(
                implementation, name, is_value=is_value, blames=blames
            )
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
    wrong = [
        f"it publishes a hook {name}, but there is one of that name already; rename it"
        for name in known
    ]
    wrong = wrong or [f"its hookspecs {specs.__name__} has no method marked @value or @moment"]
    return [Problem(entry.location, f"plugins.{entry.name}", message) for message in wrong]


class _Manager(pluggy.PluginManager):
    """pluggy's manager, made to look only at functions: reading a pydantic object's properties
    has effects.
    """

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        if not inspect.isfunction(inspect.getattr_static(plugin, name, None)):
            return None
        return super().parse_hookimpl_opts(plugin, name)
