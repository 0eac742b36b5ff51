"""What training returns: the run, what it logged, what was measured, and where its files are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from trainkit.hooks.run import Run
from trainkit.log.history import History
from trainkit.report.summary import summary_table
from trainkit.system.terminal import Terminal


@dataclass(frozen=True, repr=False)
class Result:
    """A run that has ended well.

    Attributes:
        run: its parts as training left them; `run.model` has the last weights, which need not be
            the best.
        history: what was logged. Empty on a rank that writes nothing.
        summary: what `summary.json` says: status, steps, seconds, final and best metrics, notes.
        folder: where its files are; None on a rank that writes nothing.
    """

    run: Run
    history: History
    summary: Mapping[str, Any]
    folder: Path | None

    @property
    def metrics(self) -> dict[str, float]:
        """What the last validation measured."""
        return dict(self.summary["final"])

    @property
    def best(self) -> dict[str, Any]:
        """What the best validation measured, its `epoch` (from 1), and which `metric` says so."""
        return dict(self.summary["best"] or {})

    def table(self) -> RenderableType:
        """Return what to print of the run: how it ended, and its metrics."""
        return summary_table(self.summary)

    def __repr__(self) -> str:
        file = StringIO()
        out = Terminal(file=file, width=100)
        out.print(self.table())
        if self.folder is not None:
            out.print(f"{self.folder}/report.html")
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines())

    def _repr_html_(self) -> str:
        """Return the same for a notebook, the report as a link."""
        text = f"<pre>{escape(str(self))}</pre>"
        if self.folder is None:
            return text
        path = f"{self.folder}/report.html"
        link = f'<a href="{escape(path)}" target="_blank">{escape(path)}</a>'
        return text.replace(escape(path), link)
