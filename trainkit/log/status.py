"""How a run has ended, as `summary.json` says it in one text."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How a run stands."""

    UNFINISHED = "not finished"
    FINISHED = "finished"
    STOPPED_EARLY = "stopped early"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


@dataclass(frozen=True)
class Ending:
    """How a run stands, and why where that is not plain; its text is `status: reason`."""

    status: Status = Status.UNFINISHED
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"{self.status}: {self.reason}"
        return str(self.status)

    @property
    def is_final(self) -> bool:
        """Return whether the run reached its end: nothing is left to resume."""
        return self.status in (Status.FINISHED, Status.STOPPED_EARLY)

    @classmethod
    def parse(cls, text: str) -> Ending:
        """Read the text of an ending; one that is none counts as not finished."""
        word, _, reason = text.partition(": ")
        if word in list(Status):
            return cls(Status(word), reason)
        return cls()
