"""What a plugin shows in the report of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Section:
    """One part of the report, from core or from a plugin.

    Attributes:
        title: heading.
        text: plain sentences under the heading; an empty line starts a paragraph.
        figures: matplotlib figures, drawn in order; `trainkit.figure` makes them alike.
        table: rows of cells; the first row is the header.
    """

    title: str
    text: str = ""
    figures: Sequence[Figure] = field(default_factory=tuple)
    table: Sequence[Sequence[str]] = field(default_factory=tuple)
