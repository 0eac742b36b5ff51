"""`report.html`: one self-contained page about a run, made from what it logged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from trainkit.plugin import Plugin


@dataclass(frozen=True)
class Section:
    """One part of the report, from core or from a plugin.

    Attributes:
        title: heading.
        text: plain sentences under the heading.
        figures: matplotlib figures, drawn in order.
        table: rows of cells; the first row is the header.
    """

    title: str
    text: str = ""
    figures: Sequence[Figure] = field(default_factory=tuple)
    table: Sequence[Sequence[str]] = field(default_factory=tuple)


def write_report(folder: Path, plugins: Sequence[Plugin]) -> Path:
    """Write `report.html` from the files of a run folder."""
    return folder / "report.html"
