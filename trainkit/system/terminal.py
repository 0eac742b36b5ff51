"""The terminal: everything that trainkit prints for people goes through here, and no control
character gets past.

Names of files, texts of recipes and messages of plugins may come from strangers. What would move
the cursor, colour or erase is written out (`\\x1b`) instead of obeyed; rich's own colours are not
text, and stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.control import Control
from rich.segment import ControlType, Segment

from trainkit.errors import printable


class Terminal(Console):
    """rich's console with every text in it made printable, before it is measured and wrapped.

    What stands in brackets or between colons is text too: there is no markup.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(
            **({"soft_wrap": True} | options), highlight=False, markup=False, emoji=False
        )

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render as rich does; control codes are rich's own where it says so, and text
        everywhere else.
        """
        for segment in super().render(renderable, options):
            if segment.control:
                safe = segment.text
            else:
                safe = printable(segment.text)
            yield segment if safe == segment.text else Segment(safe, segment.style)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Say what is waited for, on a terminal only, and take it back when the wait is over."""
        shown = self.is_terminal and not self.is_dumb_terminal
        if shown:
            self.print(f"{what} …", end="")
        try:
            yield
        finally:
            if shown:
                self.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))
