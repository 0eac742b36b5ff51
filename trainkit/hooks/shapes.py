"""What is wrong with a plugin's hook implementations as such, whatever they compute."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import pluggy

from trainkit.errors import Problem, suggest
from trainkit.hooks.order import Entry
from trainkit.hooks.specs import PROJECT


def implementations(plugin: object) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Return the hook implementations of a plugin by name, each with the options of its marker."""
    found: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {}
    for name in dir(type(plugin)):
        function = inspect.getattr_static(type(plugin), name)
        if inspect.isfunction(function) and hasattr(function, f"{PROJECT}_impl"):
            found[name] = (function, cast(dict[str, Any], getattr(function, f"{PROJECT}_impl")))
    return found


def hooks_of(manager: pluggy.PluginManager) -> dict[str, Any]:
    """Return the hooks that a manager knows, by name, each with what calls it."""
    found: dict[str, Any] = {}
    for name, caller in vars(manager.hook).items():
        if caller.spec:
            found[name] = caller
    return found


def is_value(caller: Any) -> bool:
    """Return whether a hook asks for a value; a moment does not."""
    return bool(caller.spec.opts.get("firstresult"))


def check_shape(entry: Entry, manager: pluggy.PluginManager) -> list[Problem]:
    """Return what is wrong with a plugin's hook implementations as such."""
    wrong: list[str] = []
    hooks = hooks_of(manager)
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
            wrong += _check_kind(name, function, options, is_value(hooks[name]))
        elif not options["optionalhook"]:
            wrong.append(f"there is no hook {name!r}{suggest(name, list(hooks))}")
    return problems_of(entry, wrong)


def problems_of(entry: Entry, messages: Sequence[str]) -> list[Problem]:
    """Return a problem of a plugin for each message."""
    problems = []
    for message in messages:
        problems.append(Problem(entry.location, f"plugins.{entry.name}", message))
    return problems


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
            fix = "order is the recipe's, and `before` and `after`"
            if option == "hookwrapper":
                fix = "use wrapper=True"
            wrong.append(f"the mark of {name} may not say {option}: {fix}")
    generator = inspect.isgeneratorfunction(function)
    if options["wrapper"] and not is_value:
        wrong.append(f"{name} is a moment: it has no value to wrap; use plain @hookimpl")
    elif options["wrapper"] and not generator:
        wrong.append(f"the wrapper {name} must be a generator that yields once")
    elif generator and not options["wrapper"] and not options["hookwrapper"]:
        fix = "a moment cannot be wrapped"
        if is_value:
            fix = "mark it @hookimpl(wrapper=True)"
        wrong.append(f"{name} yields but is not a wrapper, so it would never run; {fix}")
    return wrong


def check_providers(entries: Sequence[Entry], manager: pluggy.PluginManager) -> list[Problem]:
    """Return a problem for each value that two plugins provide."""
    problems = []
    provided = [_provided(entry) for entry in entries]
    for hook, caller in hooks_of(manager).items():
        pairs = zip(entries, provided, strict=True)
        providers = [entry for entry, hooks in pairs if hook in hooks]
        if is_value(caller) and len(providers) > 1:
            last, names = providers[-1], " and ".join(entry.name for entry in providers)
            message = f"{names} both provide {hook}, and a run has one; drop one of them"
            problems.append(Problem(last.location, f"plugins.{last.name}", message))
    return problems


def _provided(entry: Entry) -> set[str]:
    """Return the hooks that a plugin answers or hears, without wrapping them."""
    marked = implementations(entry.plugin)
    found: set[str] = set()
    for name, (_, options) in marked.items():
        if not options["wrapper"]:
            found.add(name)
    return found
