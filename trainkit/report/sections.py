"""The parts of the page that hold plots: core's cards, and the sections of each plugin."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

from trainkit.errors import PluginError
from trainkit.hooks.section import Section
from trainkit.log.history import History
from trainkit.report.formats import label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from trainkit.hooks.plugin import Plugin
    from trainkit.report.plots import Plot


def card(plot: Plot, prefix: str) -> dict[str, Any]:
    """Return what the template needs of one of core's plots."""
    return {"title": plot.title, "caption": plot.caption, **_drawing(plot.figure, prefix)}


def _drawing(figure: Figure, prefix: str) -> dict[str, Any]:
    """Return what the template needs of a figure; `themed` ones follow the page's colours."""
    from markupsafe import Markup

    from trainkit.report.svg import to_svg

    svg = to_svg(figure, prefix)
    inches = float(figure.get_size_inches()[0])
    # matplotlib escapes the text in its SVG itself.
    return {
        "svg": Markup(svg),
        "wide": inches > 5.5,
        "inches": inches,
        "themed": "var(--plot-" in svg,
    }


def room(plugin: Plugin, history: History, index: int) -> dict[str, Any]:
    """Return a plugin's part of the page: its sections, or the error that they ended in."""
    from trainkit.report.figures import style

    filled: dict[str, Any] = {
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
            filled["sections"].append(
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
        if isinstance(error, PluginError):
            said = str(error)
        else:
            said = f"{type(error).__name__}: {error}"
        filled["error"] = said
        filled["trace"] = "".join(traceback.format_exception(error))
    return filled


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
    if figures:
        return [Section("Logged values", figures=figures)]
    return []
