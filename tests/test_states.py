"""What a checkpoint may hold: the first value that could not be read back or is no number is
named by its place.
"""

from __future__ import annotations

import enum
import io
import math
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainkit.checks.states import first_bad, magnitudes, not_a_number, unreadable

NAN, INF = math.nan, math.inf


@dataclass
class Record:
    """A dataclass."""

    value: int = 1


class Pair(NamedTuple):
    """A named tuple."""

    first: int
    second: int


class Colour(enum.Enum):
    """An enumeration."""

    RED = "red"


class Level(enum.IntEnum):
    """An enumeration whose members are integers."""

    LOW = 1


class Marked(Tensor):
    """A tensor of a class of its own."""


def with_attribute() -> Tensor:
    tensor = torch.zeros(2)
    tensor.owner = Path("x")  # type: ignore[attr-defined]
    return tensor


def read_back(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


READABLE: list[Any] = [
    {},
    {"a": [1, 2.5, "x", None, True, (3, [4])], 7: torch.zeros(2)},
    OrderedDict(weight=torch.ones(1), inner=OrderedDict()),
    {"dtype": torch.bfloat16, "size": torch.Size([2, 3]), "device": torch.device("cpu")},
    {
        "parameter": nn.Parameter(torch.ones(2)),
        "half": torch.zeros(1, dtype=torch.float16),
        "ints": torch.arange(3),
    },
    {"best": INF, "worst": -INF, (1, 2): "a tuple as key", 0.5: "a number as key"},
    {"bytes": b"raw", "many": 2**900},
]


@pytest.mark.parametrize("value", READABLE, ids=lambda value: ",".join(map(str, value)) or "empty")
def test_what_torch_reads_back_is_taken(value: Any) -> None:
    assert unreadable(value) is None
    assert type(read_back(value)) is type(value)


UNREADABLE: dict[str, Any] = {
    "numpy.float64": np.float64(1),
    "numpy.int64": np.int64(1),
    "numpy.bool": np.True_,
    "numpy.ndarray": np.zeros(2),
    "collections.deque": deque([1], maxlen=3),
    "collections.defaultdict": defaultdict(list, a=[1]),
    "pathlib.": Path("runs"),
    "fractions.Fraction": Fraction(1, 3),
    "Record": Record(),
    "Pair": Pair(1, 2),
    "Colour": Colour.RED,
    "Level": Level.LOW,
    "torch._C.Generator": torch.Generator(),
    "function": math.sqrt,
    "range": range(3),
    "Linear": nn.Linear(1, 1),
    "Marked": torch.zeros(2).as_subclass(Marked),
    "Tensor": with_attribute(),
    "int": 2**5000,
    "is of type type": int,
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_could_not_be_read_back_is_found_wherever_it_is(kind: str) -> None:
    value = UNREADABLE[kind]
    with pytest.raises(Exception):  # noqa: B017, PT011 - torch has many ways of refusing
        assert type(read_back(value)) is type(value)
    for place, holder in (
        ("['x']", {"first": 1, "x": value}),
        ("['a'][1]['b']", {"a": [0, {"b": value}]}),
        ("[0][2]", ([1, 2, value],)),
        ("['o']['x']", OrderedDict(o=OrderedDict(x=value))),
    ):
        found = unreadable(holder)
        assert found is not None
        assert found.startswith(f"{place} is of type ")
        assert kind in found


def test_keys_are_looked_at_too() -> None:
    assert (
        unreadable({"a": {Colour.RED: 1}})
        == f"['a']: its key {Colour.RED!r} is of type {__name__}.Colour"
    )
    assert (unreadable({np.int64(3): 1}) or "").endswith("is of type numpy.int64")


def test_the_first_of_several_is_named() -> None:
    assert (
        unreadable({"a": 1, "b": [Path("x"), np.float64(1)], "c": deque()})
        == f"['b'][0] is of type {type(Path('x')).__module__}.{type(Path('x')).__name__}"
    )


def test_a_list_that_holds_itself_ends() -> None:
    endless: list[Any] = [1.0]
    endless.append(endless)
    assert unreadable(endless) is None
    assert not_a_number(endless) is None


def test_counters_and_sets_are_as_this_torch_has_them() -> None:
    for value in (Counter("aab"), {1, 2}, frozenset({1})):
        try:
            same = type(read_back(value)) is type(value)
        except Exception:  # refused
            same = False
        assert (unreadable({"x": value}) is None) == same


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"mean": torch.tensor([1.0, NAN])}, "['mean'] holds nan"),
        ({"a": [torch.ones(2), torch.tensor(-INF)]}, "['a'][1] holds inf"),
        ({"a": {"b": (1.0, NAN)}}, "['a']['b'][1] is nan"),
        ({"h": torch.tensor([INF], dtype=torch.bfloat16)}, "['h'] holds inf"),
        ({"z": torch.tensor([complex(NAN, 1)])}, "['z'] holds nan"),
        ({"s": torch.tensor([[0.0, NAN]]).to_sparse()}, "['s'] holds nan"),
        ({"f": torch.tensor([1.0, NAN]).to(torch.float8_e4m3fn)}, "['f'] holds nan"),
        ({"p": nn.Parameter(torch.tensor([[NAN]]))}, "['p'] holds nan"),
    ],
)
def test_numbers_that_are_none_are_found(value: Any, found: str) -> None:
    assert not_a_number(value) == found


def test_finite_values_are_finite_however_large() -> None:
    large = torch.full((1000,), 3e38)
    state = {
        "a": large,
        "b": torch.tensor([65504.0] * 9, dtype=torch.float16),
        "c": torch.full((3,), 1e308, dtype=torch.float64),
    }
    others = {
        "empty": torch.zeros(0),
        "ints": torch.tensor([2**62]),
        "flags": torch.tensor([True]),
        "best": INF,
    }
    assert not_a_number(state | others) is None
    assert magnitudes([large]).isfinite().all()
    assert torch.linalg.vector_norm(large).isinf()  # which is why the norm alone does not tell


def test_the_first_bad_tensor_is_named_though_the_others_are_of_other_kinds() -> None:
    tensors = [
        torch.zeros(0),
        torch.ones(2),
        torch.arange(2),
        torch.tensor([1.0, INF]).double(),
        torch.tensor(NAN),
    ]
    assert first_bad(tensors) == (3, "inf")
    assert first_bad(tensors[:3]) is None
    assert first_bad([]) is None
