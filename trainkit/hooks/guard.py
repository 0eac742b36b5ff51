"""What stands around every method of a plugin: when it goes wrong, one line says which plugin,
which hook and where.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

from trainkit.errors import Interrupted, PluginError, TrainingError, UserError
from trainkit.hooks.answers import flaw
from trainkit.system.failures import failure, place_of

_BLAME = "trainkit_blame"
"""The attribute of an exception in which it carries who raised it where."""

_OVER = object()


def guarded(implementation: Any, hook: str, *, is_value: bool, blames: bool) -> Callable[..., Any]:
    """Return a hook implementation's function, made to say whose it is when it raises or answers
    wrongly.

    An exception goes on as what it is, so that other plugins may handle it, and takes along who
    raised it.

    Args:
        implementation: as pluggy keeps it.
        hook: the hook's name.
        is_value: whether it must answer; a moment's answer is not looked at.
        blames: whether it is a plugin's: core and observers are only asked for an answer.
    """
    function: Callable[..., Any] = implementation.function
    plugin = implementation.plugin_name
    if implementation.wrapper:
        return _wrapper(function, plugin, hook)
    if blames:
        function = _blamed(function, plugin, hook)
    if is_value:
        return _provider(function, implementation.function, plugin, hook, blames)
    return function


@contextmanager
def naming() -> Iterator[None]:
    """Turn an exception that came out of a plugin into a PluginError, which says so in one line."""
    try:
        yield
    except Exception as error:
        if not hasattr(error, _BLAME):
            raise
        raise PluginError(getattr(error, _BLAME)) from error


def ask(plugin: object, name: str, call: str, *args: Any) -> Any:
    """Return what a method of a plugin returns that is no hook.

    Raises:
        PluginError: it raises; the message names the plugin, the method and the line.
    """
    method = getattr(plugin, call)
    with naming():
        return _blamed(method, name, call)(*args)


def make(plugin: str, cls: type, *args: Any, by: Callable[..., Any]) -> Any:
    """Return what `by(cls, *args)` makes of a plugin's class.

    Raises:
        PluginError: code of the class raises what is no word about an option.
    """
    try:
        return by(cls, *args)
    except (UserError, TrainingError):
        raise
    except Exception as error:
        raise PluginError(_said(error, cls, plugin, "making it")) from error


def _blamed(function: Callable[..., Any], plugin: str, call: str) -> Callable[..., Any]:
    def blamed(*args: Any) -> Any:
        try:
            return function(*args)
        except (
            StopIteration
        ) as error:  # whoever is in between may take it for the end of a generator
            raise PluginError(_said(error, function, plugin, call)) from error
        except Exception as error:
            _blame(error, function, plugin, call)
            raise

    return blamed


def _provider(
    function: Callable[..., Any], written: Callable[..., Any], plugin: str, hook: str, blames: bool
) -> Callable[..., Any]:
    def provider(*args: Any) -> Any:
        answer = function(*args)
        if answer is None:
            message = f"{hook} returned None; it must return the value it provides"
            raise PluginError(f"plugin {plugin}: {message}{place_of(written)}")
        if blames and (wrong := flaw(hook, answer)):
            raise PluginError(f"plugin {plugin}: {hook} returned {wrong}{place_of(written)}")
        return answer

    return provider


def _wrapper(function: Callable[..., Any], plugin: str, hook: str) -> Callable[..., Any]:
    def wrapper(*args: Any) -> Generator[None, Any, Any]:
        inner = function(*args)
        try:
            begun = next(inner, _OVER)
        except Exception as error:
            _blame(error, function, plugin, hook)
            raise
        if begun is _OVER:
            message = f"the wrapper {hook} ended before its `yield`; it must yield once"
            raise PluginError(f"plugin {plugin}: {message}{place_of(function)}")
        value, thrown = None, None
        try:
            value = yield
        except BaseException as error:
            thrown = error  # the wrapper may have something to put back
        try:
            inner.send(value) if thrown is None else inner.throw(thrown)
        except StopIteration as done:
            answer = done.value
        except Exception as error:
            if error is not thrown:  # what comes from within, and it lets pass, is not its fault
                _blame(error, function, plugin, hook)
            raise
        else:
            message = f"the wrapper {hook} yields a second time; it must yield once"
            raise PluginError(f"plugin {plugin}: {message}{place_of(function)}")
        if answer is None:
            message = f"{hook} returned None; a wrapper must return what it makes of `yield`"
            raise PluginError(f"plugin {plugin}: {message}{place_of(function)}")
        if wrong := flaw(hook, answer):
            raise PluginError(f"plugin {plugin}: {hook} returned {wrong}{place_of(function)}")
        return answer

    return wrapper


def _blame(error: Exception, function: Callable[..., Any], plugin: str, call: str) -> None:
    """Give an exception the line that says who raised it, unless it says itself what the user
    should read.
    """
    if not isinstance(error, UserError | TrainingError | Interrupted) and not hasattr(
        error, _BLAME
    ):
        setattr(error, _BLAME, _said(error, function, plugin, call))


def _said(error: Exception, function: Callable[..., Any], plugin: str, call: str) -> str:
    return f"plugin {plugin}: {failure(error, function, call)}"
