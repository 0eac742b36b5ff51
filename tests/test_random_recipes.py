"""Any option with any kind of value is taken, or refused with its place: a small share of what
the benchmark tries.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.recipe_cases import KINDS, base_of, mutated, options, put
from benchmarks.recipe_trial import Outcome, check, in_a_child
from trainkit.commands.schema import recipe_schema
from trainkit.training.build import compose

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return recipe_schema()


@settings(max_examples=80)
@given(at=st.integers(0, 10_000), kind=st.sampled_from(KINDS))
def test_one_option_with_any_kind_of_value(
    schema: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, at: int, kind: str
) -> None:
    known = list(options(schema))
    base, keys = known[at % len(known)]
    path = tmp_path_factory.getbasetemp() / "one.yaml"
    path.write_text(put(base_of(base), keys, kind), encoding="utf-8")
    assert check(path, compose).kind in ("accepted", "refused"), f"{'.'.join(keys)}: {kind}"


def test_recipes_with_several_changes(schema: dict[str, Any], tmp_path: Path) -> None:
    draw = random.Random(7)
    path = tmp_path / "mutated.yaml"
    for _ in range(60):
        case = mutated(schema, draw)
        path.write_text(case.text, encoding="utf-8", errors="backslashreplace")
        assert check(path, compose).kind in ("accepted", "refused"), case.what


# What the benchmark finds.


def test_a_fault_is_told_from_a_refusal(write: Write) -> None:
    from trainkit.errors import UserError

    path = write("seed: 1\n")

    def fails(error: Exception) -> Callable[[Path, list[str]], None]:
        def run(path: Path, overrides: list[str]) -> None:
            raise error

        return run

    assert check(path, fails(UserError(f"{path}:1: seed: no"))).kind == "refused"
    assert check(path, fails(UserError("no"))) == Outcome("without place", "no")
    assert check(path, fails(ZeroDivisionError("x"))).kind == "traceback"
    assert check(path, fails(TimeoutError())).kind == "too slow"
    assert check(path, lambda path, overrides: None).kind == "accepted"


def test_a_child_that_does_not_end_is_ended(write: Write) -> None:
    def forever(path: Path, overrides: list[str]) -> None:
        while True:
            pass

    assert in_a_child(write("seed: 1\n"), 0.3, forever).kind == "too slow"
