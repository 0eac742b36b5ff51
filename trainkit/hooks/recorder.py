"""A listener to the log, for tests and studies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainkit.hooks.specs import hookimpl
from trainkit.log.history import History

if TYPE_CHECKING:
    from trainkit.log.records import Record


class Recorder:
    """Keeps every record that a run logs; give one as an observer.

    ::

        recorder = Recorder()
        trainkit.train("digits", observers=[recorder])
        steps, losses = recorder.history.series("loss")
    """

    def __init__(self) -> None:
        self.records: list[Record] = []
        """The records in order, all of them however long the run."""

    @hookimpl
    def on_log(self, record: Record) -> None:
        """Keep one."""
        self.records.append(record)

    @property
    def history(self) -> History:
        """The records so far, as a report reads them."""
        return History(self.records)
