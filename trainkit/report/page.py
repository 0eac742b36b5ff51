"""`report.html`: one self-contained page about a run, made from the files in its folder."""

from __future__ import annotations

import json
import math
import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.errors import PluginError, UserError
from trainkit.hooks.section import Section
from trainkit.log.history import History
from trainkit.report.formats import compact, duration, file_size, label, number
from trainkit.system.paths import is_folder, is_there
from trainkit.system.strict_json import to_json
from trainkit.system.writes import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from trainkit.hooks.plugin import Plugin
    from trainkit.report.plots import Plot

_YAML_KEY = re.compile(r"\s*(- )*[^\s#:'\"][^:#]*:(?=\s|$)")

FILES = {
    "recipe.yaml": "the recipe, every default written out",
    "environment.json": "versions and hardware",
    "summary.json": "how the run ended, final and best metrics",
    "metrics.jsonl": "everything that was logged, one line per step or validation",
    "metrics.csv": "the same as one table",
    "weights.safetensors": "the best weights; timm loads them",
    "checkpoints/last.pt": "checkpoint to resume from",
}
"""What the files of a run folder are."""


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
    summary = _read_json(folder / "summary.json", problems) if summary is None else summary
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
        **_heading(recipe_text, summary, folder),
        tiles=_tiles(summary, environment, history),
        cards=[_card(plot, f"core{i}") for i, plot in enumerate(core_plots(history))],
        rooms=[_room(plugin, history, i) for i, plugin in enumerate(plugins)],
        epochs=_epoch_table(history),
        notes=[*map(str, summary.get("notes") or []), *problems],
        recipe=_yaml_lines(recipe_text),
        summary=[row for row in _flat(summary) if not row[0].startswith("notes")],
        environment=_flat(environment),
        files=_files(folder, summary),
    )
    write_text(path, text)
    return path


def summary_text(summary: Mapping[str, Any]) -> str:
    """Return the text of `summary.json`."""
    return to_json(summary, indent=2) + "\n"


def _files(folder: Path, summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return name, size and meaning of every file of a run but the page itself."""
    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }
    if summary:  # it is written after the page, which shall be the same when it is made again
        sizes["summary.json"] = len(summary_text(summary).encode())
    shown = sorted(
        name
        for name in sizes
        if name != "report.html" and not name.rpartition("/")[2].startswith(".")
    )
    return [(name, file_size(sizes[name]), FILES.get(name, "")) for name in shown]


def _yaml_lines(text: str) -> list[tuple[str, str]]:
    """Split each line of YAML after its key, so that the page can set keys apart."""
    return [
        (
            (line[: found.end()], line[found.end() :])
            if (found := _YAML_KEY.match(line))
            else ("", line)
        )
        for line in text.splitlines()
    ]


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


def _heading(recipe_text: str, summary: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    import yaml

    try:
        recipe = yaml.safe_load(recipe_text)
        title = f"{recipe['model']['name']} on {recipe['data']['name']}"
    except (yaml.YAMLError, KeyError, TypeError):
        recipe, title = {}, folder.resolve().name
    status = str(summary.get("status", "not finished"))
    kinds = {"finished": "good", "interrupted": "warn", "stopped early": "note", "failed": "bad"}
    kind = next((kind for start, kind in kinds.items() if status.startswith(start)), "warn")
    return {
        "title": title,
        "status": status,
        "status_kind": kind,
        "plugin_names": list(recipe.get("plugins") or {}),
        "seed": recipe.get("seed"),
        "data": str(summary.get("data", "")),
    }


def _tiles(
    summary: Mapping[str, Any], environment: Mapping[str, Any], history: History
) -> list[tuple[str, str, str]]:
    """Return the headline numbers: label, value, remark."""
    tiles = []
    best = summary.get("best")
    if isinstance(best, Mapping) and _is_number(best.get("value")):
        metric = str(best.get("metric", "value")).removeprefix("val/")
        epochs = [
            r.epoch for r in history.records if r.values.get(f"val/{metric}") == best["value"]
        ]
        when = f"after epoch {epochs[0] + 1}" if epochs else ""
        tiles.append((f"best {label(metric)}", number(best["value"]), when))
    final = summary.get("final")
    for name, value in (final if isinstance(final, Mapping) else {}).items():
        if _is_number(value) or value is None:
            tiles.append((f"final {label(name)}", number(math.nan if value is None else value), ""))
    last = history.records[-1] if history.records else None
    steps = summary.get("steps", last.step if last else None)
    if steps is not None:
        count = summary.get("epochs", last.epoch + 1 if last else None)
        remark = (
            f"in {number(count)} {'epoch' if count == 1 else 'epochs'}" if count is not None else ""
        )
        tiles.append(("steps", number(steps), remark))
    if _is_number(summary.get("seconds")):
        tiles.append(("wall time", duration(summary["seconds"]), ""))
    parameters = summary.get("parameters", environment.get("parameters"))
    if parameters is not None and _is_number(parameters):
        tiles.append(("parameters", compact(parameters), ""))
    return tiles


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _card(plot: Plot, prefix: str) -> dict[str, Any]:
    return {"title": plot.title, "caption": plot.caption, **_drawing(plot.figure, prefix)}


def _drawing(figure: Figure, prefix: str) -> dict[str, Any]:
    """Return what the template needs of a figure; `themed` ones follow the page's colours."""
    from markupsafe import Markup

    from trainkit.report.figures import to_svg

    svg = to_svg(figure, prefix)
    inches = float(figure.get_size_inches()[0])
    # matplotlib escapes the text in its SVG itself.
    return {
        "svg": Markup(svg),
        "wide": inches > 5.5,
        "inches": inches,
        "themed": "var(--plot-" in svg,
    }


def _room(plugin: Plugin, history: History, index: int) -> dict[str, Any]:
    """Return a plugin's part of the page: its sections, or the error that they ended in."""
    from trainkit.report.figures import style

    room: dict[str, Any] = {
        "name": plugin.name,
        "about": _first_line(plugin),
        "sections": [],
        "error": "",
    }
    try:
        with style():
            sections = plugin.report(history) or _logged_by(plugin, history)
        if wrong := [section for section in sections if not isinstance(section, Section)]:
            raise PluginError(
                f"plugin {plugin.name}: report returned {wrong[0]!r:.80}; it must be "
                "trainkit.Section"
            )
        for i, section in enumerate(sections):
            header, *rows = [[str(cell) for cell in row] for row in section.table] or [[]]
            room["sections"].append(
                {
                    "title": section.title,
                    "paragraphs": [p for p in section.text.split("\n\n") if p.strip()],
                    "figures": [
                        _drawing(f, f"room{index}-{i}-{j}") for j, f in enumerate(section.figures)
                    ],
                    "header": header,
                    "rows": rows,
                }
            )
    except Exception as error:
        said = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
        room["error"] = said
        room["trace"] = "".join(traceback.format_exception(error))
    return room


def _first_line(plugin: Plugin) -> str:
    return (type(plugin).__doc__ or "").strip().split("\n")[0]


def _logged_by(plugin: Plugin, history: History) -> list[Section]:
    """Return plots of what a plugin without a report of its own has logged under its name."""
    from trainkit.report.plots import line_plot

    names = [n for n in history.names if n.startswith(f"{plugin.name}/")]
    plots = [
        line_plot(history, n, label(n.removeprefix(f"{plugin.name}/")), "") for n in names[:12]
    ]
    figures = [plot.figure for plot in plots if plot is not None]
    return [Section("Logged values", figures=figures)] if figures else []


def _epoch_table(history: History) -> list[list[str]]:
    """Return a header, and a row per epoch: mean training loss, and the metrics of its last
    validation.
    """
    epochs = history.epochs()
    names = list(dict.fromkeys(name for epoch in epochs for name in epoch.metrics))
    rows = [["epoch", "steps", "training loss", *map(label, names)]]
    for epoch in epochs:
        values = [epoch.loss, *(epoch.metrics.get(name) for name in names)]
        rows.append(
            [
                str(epoch.epoch + 1),
                number(epoch.step),
                *("" if v is None else number(v) for v in values),
            ]
        )
    return rows if epochs else []


def _flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested facts as rows, `a.b` for what is nested."""
    rows: list[tuple[str, str]] = []
    for key, value in facts.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            rows.append((f"{prefix}{key}", ", ".join(map(_fact, value))))
        else:
            rows.append((f"{prefix}{key}", _fact(value)))
    return rows


def _fact(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return repr(value) if isinstance(value, (int, float)) else str(value)
