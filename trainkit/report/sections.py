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
        for section in sections:
            if not isinstance(section, Section):
                raise PluginError(
                    f"plugin {plugin.name}: report returned {section!r:.80}; it must be "
                    "trainkit.Section"
                )
        for i, section in enumerate(sections):
            filled["sections"].append(_section(section, f"room{index}-{i}"))
    except Exception as error:
        if isinstance(error, PluginError):
            said = str(error)
        else:
            said = f"{type(error).__name__}: {error}"
        filled["error"] = said
        filled["trace"] = "".join(traceback.format_exception(error))
    return filled


def _section(section: Section, prefix: str) -> dict[str, Any]:
    """Return what the template needs of one section."""
    header, *rows = [list(map(str, row)) for row in section.table] or [[]]
    figures = []
    for i, figure in enumerate(section.figures):
        figures.append(_drawing(figure, f"{prefix}-{i}"))
    return {
        "title": section.title,
        "paragraphs": [p for p in section.text.split("\n\n") if p.strip()],
        "figures": figures,
        "header": header,
        "rows": rows,
    }


def _first_line(plugin: Plugin) -> str:
    return (type(plugin).__doc__ or "").strip().split("\n")[0]


def _logged_by(plugin: Plugin, history: History) -> list[Section]:
    """Return plots of what a plugin without a report of its own has logged under its name."""
    from trainkit.report.plots import line_plot

    prefix = f"{plugin.name}/"
    names = [name for name in history.names if name.startswith(prefix)]
    figures = []
    for name in names[:12]:
        plot = line_plot(history, name, label(name.removeprefix(prefix)), "")
        if plot is not None:
            figures.append(plot.figure)
    if figures:
        return [Section("Logged values", figures=figures)]
    return []
