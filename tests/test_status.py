"""How a run ended, as one text."""

from __future__ import annotations

import pytest

from trainkit.log.status import Ending, Status


@pytest.mark.parametrize(
    ("ending", "text", "final"),
    [
        (Ending(), "not finished", False),
        (Ending(Status.FINISHED), "finished", True),
        (
            Ending(Status.STOPPED_EARLY, "no better: 3 epochs"),
            "stopped early: no better: 3 epochs",
            True,
        ),
        (Ending(Status.INTERRUPTED), "interrupted", False),
        (Ending(Status.FAILED, "the disk is full"), "failed: the disk is full", False),
    ],
)
def test_an_ending_is_read_as_it_was_written(ending: Ending, text: str, final: bool) -> None:
    assert str(ending) == text
    assert Ending.parse(text) == ending
    assert ending.is_final is final


def test_a_text_that_is_no_ending_counts_as_not_finished() -> None:
    assert Ending.parse("finishedish") == Ending(Status.UNFINISHED)
