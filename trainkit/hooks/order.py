"""The order of plugins: the recipe's, changed only where they declare `before` or `after`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainkit.errors import Location, Problem
from trainkit.hooks.plugin import Plugin


@dataclass(frozen=True)
class Entry:
    """One plugin of a recipe: its name, itself, where it was named, and why it has its place in
    the order.
    """

    name: str
    plugin: Plugin
    location: Location
    reason: str = "recipe order"


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
                problems.append(Problem(entry.location, f"plugins.{entry.name}", message))
        for other in entry.plugin.requires:
            if other not in names and other not in named:
                message = f"needs the plugin {other}; add `{other}: {{}}` to `plugins:`"
                problems.append(Problem(entry.location, f"plugins.{entry.name}", message))
    earlier = _earlier(entries)
    ordered: list[Entry] = []
    waiting = list(entries)
    while waiting:
        done = {entry.name for entry in ordered}
        ready = next((e for e in waiting if earlier[e.name].keys() <= done), None)
        if ready is None:
            return list(entries), [*problems, _circle(waiting, earlier)]
        waiting.remove(ready)
        ordered.append(
            Entry(ready.name, ready.plugin, ready.location, _reason(earlier[ready.name]))
        )
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
    while True:
        awaited: set[str] = set()
        for entry in circle:
            awaited.update(earlier[entry.name])
        left = [entry for entry in circle if entry.name in awaited]
        if len(left) == len(circle):
            break
        circle = left  # the others only wait for these
    names = [entry.name for entry in circle]
    reasons = []
    for name in names:
        for other, reason in earlier[name].items():
            if other in names:
                reasons.append(reason)
    message = (
        f"{' and '.join(names)} cannot be put in order: {'; '.join(reasons)}; drop one of them"
    )
    return Problem(circle[0].location, f"plugins.{names[0]}", message)


def _reason(constraints: Mapping[str, str]) -> str:
    return "; ".join(["recipe order", *constraints.values()])
