"""The plugins of the room under the conformance kit, beside one another and in further settings."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest

import trainkit.testing
from trainkit.testing import Case, Check, NotApplicableError
from trainkit.testing.compared import check_effect
from trainkit.testing.trained import check_kept_weights, check_resume

OPTIONS: dict[str, dict[str, Any]] = {
    "ghost_batch_norm": {"size": 4},
    "batch_group_norm": {"channel_groups": 8, "examples": 2},
    "example_weighing": {"alpha": 0.1},
    "norm_decay": {"scale": 0.1, "shift": 0.1},
}
PAIRS = list(combinations(OPTIONS, 2))


def beside(name: str, *others: str) -> Case:
    """Return the plugin `name` to be examined in a recipe in which `others` are on in every run."""
    return Case(
        name, OPTIONS[name], recipe={"plugins": {other: OPTIONS[other] for other in others}}
    )


@trainkit.testing.parametrize(
    beside("norm_decay", "ghost_batch_norm", "batch_group_norm", "example_weighing")
)
def test_conformance(check: Callable[[], None]) -> None:
    check()


TUNED = Case(
    "example_weighing",
    {"alpha": "tune"},
    recipe={"plugins": {"ema": {}, "ghost_batch_norm": {"size": 4}}},
)


@pytest.mark.parametrize(
    "check", [c for c in trainkit.testing.checks() if c.__name__ != "check_effect"]
)
def test_tuning_conforms_and_leaves_training_alone(check: Callable[[Case], None]) -> None:
    with contextlib.suppress(NotApplicableError):
        check(TUNED)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("check", [check_resume, check_kept_weights, check_effect])
def test_every_pair_composes(pair: tuple[str, str], check: Check) -> None:
    first, second = pair
    check(beside(second, first))
