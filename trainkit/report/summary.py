"""What the terminal says when a run has ended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trainkit.report.formats import duration, label, number


def summary_table(summary: Mapping[str, Any], folder: Path | None = None) -> RenderableType:
    """Return what to print when a run has ended: final and best metrics, its length, and where its
    files are.

    Args:
        summary: as in `summary.json`; what it lacks is left out.
        folder: the run folder.
    """
    final, best = _mapping(summary.get("final")), _mapping(summary.get("best"))
    parts: list[RenderableType] = []
    facts = []
    if "status" in summary:
        facts = [str(summary["status"])]
    for key in ("steps", "epochs"):
        if key in summary:
            facts.append(f"{number(summary[key])} {key}")
    if "seconds" in summary:
        facts.append(duration(float(summary["seconds"])))
    if facts:
        parts.append(Text(" · ".join(facts), style="bold"))
    names = [name for name in final if isinstance(final[name], (int, float))]
    if names:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("metric")
        table.add_column("final", justify="right")
        found = _mapping(best.get("metrics")) or best
        if best:
            table.add_column(
                f"at best {label(str(best.get('metric', '')))}".rstrip(), justify="right"
            )
        for name in names:
            cells = [label(name), number(final[name])]
            if best:
                cells.append(
                    number(found[name]) if isinstance(found.get(name), (int, float)) else ""
                )
            table.add_row(*map(Text, cells))
        parts.append(table)
    if folder is not None:
        parts.append(Text(f"{folder}", overflow="fold"))
    return Group(*parts)


def _mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    return {}
