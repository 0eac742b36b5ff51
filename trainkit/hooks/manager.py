"""The plugins of one run: made from the recipe, put in order, checked, and registered with pluggy.

A fresh manager per run; no globals. Order is the recipe's, changed only where plugins declare
`before` or `after`. Everything that could go wrong with a plugin's shape is refused here, all of it
at once, with the recipe's line.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pluggy

from trainkit.config.raw import Source, validate
from trainkit.config.recipe import read_recipe
from trainkit.errors import Mark, Problem, RecipeError, UserError, suggest
from trainkit.hooks.discovery import load_class
from trainkit.hooks.guard import guarded, make
from trainkit.hooks.plugin import Plugin
from trainkit.hooks.specs import PROJECT, Hooks


@dataclass(frozen=True)
class Entry:
    """One plugin of a recipe: its name, itself, where it was named, and why it has its place in
    the order.
    """

    name: str
    plugin: Plugin
    mark: Mark
    reason: str = "recipe order"


def instantiate(source: Source) -> tuple[list[Entry], list[Problem]]:
    """Make the plugins that a recipe names; return them in recipe order, and every mistake
    found.
    """
    entries: dict[str, Entry] = {}
    problems: list[Problem] = []
    section = source.data.get("plugins", {})
    if not isinstance(section, dict):
        return [], []  # core's own check of the recipe reports this
    seed = source.data.get("seed", 0)
    for key, options in section.items():
        mark = source.nearest("plugins", key)
        if not isinstance(options, dict):
            continue
        try:
            name, cls = load_class(key, source.folder("plugins", key))
        except UserError as error:
            problems.append(Problem(mark, f"plugins.{key}", str(error)))
            continue
        plugin, found = make(name, cls, options, source, ("plugins", key), by=validate)
        problems += found
        if name in entries:
            problems.append(
                Problem(mark, f"plugins.{key}", f"a plugin called {name} is already on; keep one")
            )
        elif plugin is not None:
            plugin.bind(name, seed if isinstance(seed, int) else 0)
            entries[name] = Entry(name, plugin, mark)
    return list(entries.values()), problems


def read_entries(path: Path, overrides: Sequence[str] = ()) -> list[Entry]:
    """Return the plugins of a recipe in order, without looking at anything that timm must check.

    Raises:
        RecipeError: the recipe or a plugin's options have mistakes.
    """
    _, source, problems = read_recipe(path, overrides)
    entries, found = plugins_of(source)
    if problems or found:
        raise RecipeError([*problems, *found])
    return entries


def plugins_of(source: Source) -> tuple[list[Entry], list[Problem]]:
    """Return the plugins that a recipe names, made and in order, and every mistake found."""
    entries, problems = instantiate(source)
    section = source.data.get("plugins", {})
    # One that could not be made has been reported; nobody need hear that it is missing as well.
    named = [key.rpartition(":")[2] for key in section] if isinstance(section, dict) else []
    entries, found = arrange(entries, named)
    return entries, [*problems, *found]


def arrange(
    entries: Sequence[Entry], named: Sequence[str] = ()
) -> tuple[list[Entry], list[Problem]]:
    """Sort plugins: recipe order, as far as `before` and `after` allow; refuse conflicts, gaps and
    cycles.

    Args:
        entries: the plugins in recipe order.
        named: further plugins that count as being there.
    """
    problems = []
    names = [entry.name for entry in entries]
    for entry in entries:
        for other, reason in entry.plugin.conflicts.items():
            if other in names:
                message = f"cannot be on together with {other}: {reason}; drop one of the two"
                problems.append(Problem(entry.mark, f"plugins.{entry.name}", message))
        for other in entry.plugin.requires:
            if other not in names and other not in named:
                message = f"needs the plugin {other}; add `{other}: {{}}` to `plugins:`"
                problems.append(Problem(entry.mark, f"plugins.{entry.name}", message))
    earlier = _earlier(entries)
    ordered: list[Entry] = []
    waiting = list(entries)
    while waiting:
        done = {entry.name for entry in ordered}
        ready = next((e for e in waiting if earlier[e.name].keys() <= done), None)
        if ready is None:
            return list(entries), [*problems, _circle(waiting, earlier)]
        waiting.remove(ready)
        ordered.append(Entry(ready.name, ready.plugin, ready.mark, _reason(earlier[ready.name])))
    return ordered, problems


def _earlier(entries: Sequence[Entry]) -> dict[str, dict[str, str]]:
    """Return for each plugin which others must come before it, and who says so."""
    earlier: dict[str, dict[str, str]] = {entry.name: {} for entry in entries}
    for entry in entries:
        for other in entry.plugin.after:
            if other in earlier:
                earlier[entry.name][other] = f"{entry.name} declares `after {other}`"
        for other in entry.plugin.before:
            if other in earlier:
                earlier[other][entry.name] = f"{entry.name} declares `before {other}`"
    return earlier


def _circle(waiting: list[Entry], earlier: Mapping[str, Mapping[str, str]]) -> Problem:
    """Say which of the plugins that wait for one another cannot be put in order, and who asks
    for it.
    """
    circle = list(waiting)
    while waits := [
        e for e in circle if not any(e.name in earlier[other.name] for other in circle)
    ]:
        circle = [e for e in circle if e not in waits]  # it only waits for the others
    names = [entry.name for entry in circle]
    reasons = [
        reason for name in names for other, reason in earlier[name].items() if other in names
    ]
    message = (
        f"{' and '.join(names)} cannot be put in order: {'; '.join(reasons)}; drop one of them"
    )
    return Problem(circle[0].mark, f"plugins.{names[0]}", message)


def _reason(constraints: Mapping[str, str]) -> str:
    return "; ".join(["recipe order", *constraints.values()])


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
    problems += [problem for entry in complete for problem in _check_shape(entry, manager)]
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
            problems += _check_providers(caller, entries)
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
    return [Problem(entry.mark, f"plugins.{entry.name}", message) for message in wrong]


class _Manager(pluggy.PluginManager):
    """pluggy's manager, made to look only at functions: reading a pydantic object's properties
    has effects.
    """

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        if not inspect.isfunction(inspect.getattr_static(plugin, name, None)):
            return None
        return super().parse_hookimpl_opts(plugin, name)


def implementations(plugin: object) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Return the hook implementations of a plugin by name, each with the options of its marker."""
    found: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {}
    for name in dir(type(plugin)):
        function = inspect.getattr_static(type(plugin), name)
        if inspect.isfunction(function) and hasattr(function, f"{PROJECT}_impl"):
            found[name] = (function, cast(dict[str, Any], getattr(function, f"{PROJECT}_impl")))
    return found


def _check_shape(entry: Entry, manager: pluggy.PluginManager) -> list[Problem]:
    """Return what is wrong with a plugin's hook implementations as such."""
    wrong: list[str] = []
    hooks = {
        name: caller for name, caller in vars(manager.hook).items() if getattr(caller, "spec", None)
    }
    marked = implementations(entry.plugin)
    for name in sorted(hooks.keys() & (vars(type(entry.plugin)).keys() - marked.keys())):
        wrong.append(
            f"its {name} has the name of a hook but is not a method marked @hookimpl; mark or "
            "rename it"
        )
    for name, (function, options) in marked.items():
        if name in hooks:
            known = hooks[name].spec.argnames
            wrong += _check_arguments(name, function, known)
            wrong += _check_kind(
                name, function, options, bool(hooks[name].spec.opts.get("firstresult"))
            )
        elif not options["optionalhook"]:
            wrong.append(f"there is no hook {name!r}{suggest(name, list(hooks))}")
    return [Problem(entry.mark, f"plugins.{entry.name}", message) for message in wrong]


def _check_arguments(name: str, function: Callable[..., Any], known: Sequence[str]) -> list[str]:
    wrong = []
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            wrong.append(
                f"hook {name} passes no *args or **kwargs; name the arguments (it has: "
                f"{', '.join(known)})"
            )
        elif parameter.name not in known:
            near = suggest(parameter.name, list(known))
            wrong.append(
                f"hook {name} has no argument {parameter.name!r}{near} (it has: {', '.join(known)})"
            )
        elif (
            parameter.default is not parameter.empty
            or parameter.kind is not parameter.POSITIONAL_OR_KEYWORD
        ):
            wrong.append(
                f"argument {parameter.name!r} of {name} must be plain: no default, not keyword-only"
            )
    return wrong


def _check_kind(
    name: str, function: Callable[..., Any], options: Mapping[str, Any], is_value: bool
) -> list[str]:
    wrong = []
    for option in ("hookwrapper", "tryfirst", "trylast", "specname"):
        if options[option]:
            fix = (
                "use wrapper=True"
                if option == "hookwrapper"
                else "order is the recipe's, and `before` and `after`"
            )
            wrong.append(f"the mark of {name} may not say {option}: {fix}")
    generator = inspect.isgeneratorfunction(function)
    if options["wrapper"] and not is_value:
        wrong.append(f"{name} is a moment: it has no value to wrap; use plain @hookimpl")
    elif options["wrapper"] and not generator:
        wrong.append(f"the wrapper {name} must be a generator that yields once")
    elif generator and not options["wrapper"] and not options["hookwrapper"]:
        fix = "mark it @hookimpl(wrapper=True)" if is_value else "a moment cannot be wrapped"
        wrong.append(f"{name} yields but is not a wrapper, so it would never run; {fix}")
    return wrong


def _check_providers(caller: Any, entries: Sequence[Entry]) -> list[Problem]:
    providers = {
        i.plugin_name
        for i in caller.get_hookimpls()
        if not (i.wrapper or i.hookwrapper or i.trylast)
    }
    ordered = [entry for entry in entries if entry.name in providers]
    if len(ordered) < 2:
        return []
    names = " and ".join(entry.name for entry in ordered)
    message = f"{names} both provide {caller.name}, and a run has one; drop one of them"
    return [Problem(ordered[-1].mark, f"plugins.{ordered[-1].name}", message)]
