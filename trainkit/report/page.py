"""`report.html`: one self-contained page about a run, made from the files in its folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.errors import UserError
from trainkit.log.history import History
from trainkit.report.facts import epoch_table, flat_facts, heading, headline_numbers
from trainkit.report.formats import file_size
from trainkit.report.sections import card, room
from trainkit.system.paths import is_folder, is_there
from trainkit.system.run_files import what_is
from trainkit.system.strict_json import to_json
from trainkit.system.writes import write_text

if TYPE_CHECKING:
    from trainkit.hooks.plugin import Plugin

_YAML_KEY = re.compile(r"\s*(- )*[^\s#:'\"][^:#]*:(?=\s|$)")


def write_report(
    folder: Path, plugins: Sequence[Plugin], summary: Mapping[str, Any] | None = None
) -> Path:
    """Write `report.html` into a run folder, whatever state the run is in, and return its path.

    A file that is missing or broken is said to be so in the page. A plugin whose `report` raises
    loses only its own sections.

    Args:
        folder: with `recipe.yaml`, `environment.json`, `summary.json` and `metrics.jsonl`.
        plugins: their sections follow core's, in this order.
        summary: what summary.json will say once all else is written; default: what it says.

    Raises:
        UserError: there is no such folder.
        WriteError: the page cannot be written.
    """
    if not is_folder(folder):
        raise UserError(f"{folder}: no such folder; give the folder of a run, such as runs/NAME")
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from trainkit.report.figures import PALETTE
    from trainkit.report.plots import core_plots

    page = Environment(
        loader=PackageLoader("trainkit.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html.j2")
    problems: list[str] = []
    if summary is None:
        summary = _read_json(folder / "summary.json", problems)
    environment = _read_json(folder / "environment.json", problems)
    history = History.read(folder / "metrics.jsonl")
    if history.unreadable:
        problems.append(
            f"{history.unreadable:,} line(s) of metrics.jsonl are no records, and are left out."
        )
    recipe_text = _read_text(folder / "recipe.yaml", problems)
    path = folder / "report.html"
    text = page.render(
        palette=PALETTE,
        folder=folder.resolve().name,
        **heading(summary, folder),
        tiles=headline_numbers(summary, environment, history),
        cards=[card(plot, f"core{i}") for i, plot in enumerate(core_plots(history))],
        rooms=[room(plugin, history, i) for i, plugin in enumerate(plugins)],
        epochs=epoch_table(history),
        notes=[*map(str, summary.get("notes") or []), *problems],
        recipe=_yaml_lines(recipe_text),
        summary=[row for row in flat_facts(summary) if not row[0].startswith("notes")],
        environment=flat_facts(environment),
        files=_files(folder, summary),
    )
    write_text(path, text)
    return path


def summary_text(summary: Mapping[str, Any]) -> str:
    """Return the text of `summary.json`."""
    return to_json(summary, indent=2) + "\n"


def _files(folder: Path, summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return name, size and meaning of every file of a run but the page itself."""
    sizes: dict[str, int] = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    sizes.pop("report.html", None)
    if summary:  # it is written after the page, which shall be the same when it is made again
        sizes["summary.json"] = len(summary_text(summary).encode())
    found: list[tuple[str, str, str]] = []
    for name in sorted(sizes):
        found.append((name, file_size(sizes[name]), what_is(name)))
    return found


def _yaml_lines(text: str) -> list[tuple[str, str]]:
    """Split each line of YAML after its key, so that the page can set keys apart."""
    lines = []
    for line in text.splitlines():
        found = _YAML_KEY.match(line)
        end = 0
        if found:
            end = found.end()
        lines.append((line[:end], line[end:]))
    return lines


def _read_text(path: Path, problems: list[str]) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path.name} could not be read: {error}")
        return ""


def _read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    if not is_there(path):
        problems.append(f"There is no {path.name}.")
        return {}
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} could not be read: {error}")
        return {}
    if not isinstance(found, dict):
        problems.append(f"{path.name} holds no table of facts.")
        return {}
    return found
