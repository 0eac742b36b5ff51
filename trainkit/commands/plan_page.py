"""How a plan is printed: labels, words and the line of the recipe that they come from, on a
terminal of any width.

Words and references are never broken; a reference that does not fit beside the words has a line of
its own.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from trainkit.commands.plan_data import data_rows
from trainkit.system.terminal import Terminal


class Plan(dict[str, Any]):
    """What a run would be, as plain data; it prints as the page for people."""

    def __repr__(self) -> str:
        file = StringIO()
        show(self, Terminal(file=file, width=Terminal().width))
        return file.getvalue().rstrip()


Row = tuple[str, str, str]
"""Label, words (lines of them) and where they come from."""

_LABEL = 20
_HARD_SPACE = "\xa0"
"""A space at which no line is broken; it is shown as one."""
_COUNT = re.compile(r" (?=\([\d,.]+\))")
"""The space between a word and its count."""
_REFERENCE = re.compile(r"(?:[^,`]|`[^`]*`|,(?! ))+")
"""One of several references with commas between them; an override in it may have commas too."""


def show(plan: dict[str, Any], console: Console) -> None:
    """Print a plan for people."""
    folder = str(Path(plan["recipe"]).parent)
    console.print(f"plan of {plan['recipe']}")
    console.print("what is called default is written nowhere in it\n")
    for title, rows in _parts(plan):
        console.print(Text(title, style="bold"))
        for row in rows:
            for line in lines(row, console.width, folder):
                console.print(line, soft_wrap=True)
        console.print()


def lines(row: Row, width: int, folder: str = "") -> Iterator[str]:
    """Yield the lines of a row on a terminal of `width`; references are shortened to be relative
    to `folder`.
    """
    label, words, place = row
    room = max(width - _LABEL, 24)
    wrapped: list[str] = []
    for line in words.splitlines():
        wrapped += _wrap(line, room) or [""]
    if place:
        parts = [part.strip() for part in _REFERENCE.findall(place)]
        whole = ", ".join(_short(part, folder).replace(" ", _HARD_SPACE) for part in parts)
        if wrapped and len(wrapped[-1]) + len(whole) + 3 <= room:
            wrapped[-1] += f" ({whole})"
        else:
            wrapped += _wrap(f"({whole})", room)
    head = f"  {label}"
    if len(head) >= _LABEL:
        yield head
        head = ""
    for line in wrapped or [""]:
        yield f"{head:{_LABEL}}{line}".rstrip().replace(_HARD_SPACE, " ")
        head = ""


def _wrap(line: str, room: int) -> list[str]:
    line = _COUNT.sub(_HARD_SPACE, line)
    return textwrap.wrap(line, room, break_long_words=False, break_on_hyphens=False)


def _short(place: str, folder: str) -> str:
    if folder != ".":
        return place.removeprefix(f"{folder}/")
    return place


def _parts(plan: dict[str, Any]) -> Iterator[tuple[str, list[Row]]]:
    yield "run", list(_facts(plan))
    yield "parameter groups", [_group(group) for group in plan["groups"]]
    if plan["plugins"]:
        yield (
            "plugins",
            [
                (
                    plugin["name"],
                    "\n".join([*plugin["explains"], f"place: {plugin['place']}"]),
                    plugin["from"],
                )
                for plugin in plan["plugins"]
            ],
        )
    if plan["notes"]:
        yield "notes", [("", note, "") for note in plan["notes"]]
    yield "hooks, each in the order of calls", list(_hooks(plan))
    yield "files in the run folder", [(name, what, "") for name, what in plan["files"].items()]


def _facts(plan: dict[str, Any]) -> Iterator[Row]:
    data, model = plan["data"], plan["model"]
    yield "device", plan["device"]["is"], plan["device"]["from"]
    yield "data", f"{data['is']}; input {' x '.join(map(str, data['input']))}", data["from"]
    for name, text in data_rows(data):
        yield name, text, ""
    yield "augmentation", plan["augmentation"]["is"], plan["augmentation"]["from"]
    steps = f"{data['epochs']:,} epochs x {data['steps_per_epoch']:,} = {data['steps']:,}"
    yield "steps", f"{steps}; {data['effective_batch_size']:,} examples a step", plan["steps_from"]
    yield (
        "model",
        f"{model['is']}: {model['parameters']:,} parameters, {_trained(model)}",
        model["from"],
    )
    yield "weights", plan["weights"]["is"], plan["weights"]["from"]
    for change in model["changes"]:
        yield f"changed by {change['plugin']}", "\n".join(change["changes"]), change["from"]
    for name in ("loss", "optimizer", "scheduler"):
        yield name, plan[name]["is"], plan[name]["from"]


def _trained(model: dict[str, Any]) -> str:
    if model["trainable"] == model["parameters"]:
        return "all trained"
    return f"{model['trainable']:,} of them trained"


def _group(group: dict[str, Any]) -> Row:
    words = (
        f"{group['tensors']} tensors, {group['parameters']:,} parameters: {group['rule']}\n"
        f"peak lr {group['lr']:g}, weight decay {group['weight_decay']:g}"
    )
    return group["name"], words, group["from"]


def _hooks(plan: dict[str, Any]) -> Iterator[Row]:
    for hook in plan["hooks"]:
        for i, call in enumerate(hook["calls"]):
            words = f"{call['plugin']} {call['role']}"
            if call["plugin"] != "core":
                words += f"; {call['place']}"
            yield (
                (hook["hook"] if i == 0 else ""),
                words,
                "" if call["from"] == "default" else call["from"],
            )
