"""Values beyond every declared bound, and at no other place."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError, create_model

from trainkit.testing.ranges import violations


def _tried(option: Any, default: Any) -> list[tuple[str, list[Any], bool]]:
    """Return for a model with one option `x` what is put where, and whether all of it must be
    refused.
    """
    model = create_model("Options", x=(option, default))
    example = model().model_dump(mode="json")
    return [
        (place, [_at(options, place) for options in tried], bool(wanted))
        for place, tried, wanted in violations(model.model_json_schema(), example)
    ]


def _at(options: Any, place: str) -> Any:
    for key in place.split("."):
        options = options[int(key)] if isinstance(options, list) else options[key]
    return options


@pytest.mark.parametrize(
    ("option", "beyond"),
    [
        (Annotated[float, Field(ge=0)], -5e-324),
        (Annotated[float, Field(gt=0)], 0),
        (Annotated[float, Field(le=1)], math.nextafter(1, 2)),
        (Annotated[float, Field(lt=1)], 1),
        (Annotated[int, Field(ge=3)], 2),
        (Annotated[int, Field(gt=3)], 3),
        (Annotated[int, Field(le=3)], 4),
        (Annotated[int, Field(lt=3)], 3),
        (Annotated[float, Field(ge=0)] | None, -5e-324),
    ],
)
def test_the_nearest_value_beyond_a_bound_is_tried_and_pydantic_refuses_it(
    option: Any, beyond: float
) -> None:
    assert _tried(option, 1) == [("x", [beyond], True)]
    with pytest.raises(ValidationError):
        create_model("Options", x=(option, 1))(x=beyond)


def test_a_number_without_range_is_tried_far_out_on_both_sides() -> None:
    assert _tried(float, 1.0) == [("x", [-math.inf, math.inf], False)]
    assert _tried(int, 1) == [("x", [-(10**12), 10**12], False)]


def test_what_is_no_number_or_one_of_a_few_is_left_alone() -> None:
    for option, default in (
        (bool, True),
        (str, "a"),
        (Literal[1, 2], 1),
        (Literal["a"], "a"),
        (list[str], ["a"]),
    ):
        assert _tried(option, default) == []


Rate = Annotated[float, Field(ge=0, lt=1)]


class Inner(BaseModel):
    size: int = Field(4, ge=1)


def test_numbers_inside_containers_are_found_at_their_places() -> None:
    assert _tried(tuple[Rate, float], (0.5, 0.5)) == [
        ("x.0", [-5e-324], True),
        ("x.0", [1], True),
        ("x.1", [-math.inf, math.inf], False),
    ]
    size = Annotated[int, Field(gt=0)]
    assert _tried(list[size], [3, 5]) == [("x.0", [0], True), ("x.1", [0], True)]
    assert _tried(dict[str, size], {"a": 3}) == [("x.a", [0], True)]
    assert _tried(Inner, Inner()) == [("x.size", [0], True)]
    assert _tried(Inner | None, Inner()) == [("x.size", [0], True)]


def test_everything_else_in_the_example_stays_as_it_is() -> None:
    model = create_model(
        "Options", a=(Rate, 0.5), b=(tuple[Rate, Rate], (0.1, 0.2)), c=(str, "kept")
    )
    example = model().model_dump(mode="json")
    tried = [
        options
        for _, group, _ in violations(model.model_json_schema(), example)
        for options in group
    ]
    assert len(tried) == 6  # two bounds on each of three numbers
    for options in tried:
        changed = [(a, b) for a, b in zip(_flat(options), _flat(example), strict=True) if a != b]
        assert len(changed) == 1
    assert example == {"a": 0.5, "b": [0.1, 0.2], "c": "kept"}


def _flat(options: dict[str, Any]) -> list[Any]:
    return [options["a"], *options["b"], options["c"]]
