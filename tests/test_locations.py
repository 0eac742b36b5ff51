"""YAML as recipes have it: YAML 1.2 scalars, a line for every value, and nothing that is not
plain data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainkit.config.locations import dump, parse_value, read_yaml
from trainkit.errors import RecipeError, UserError

Write = Callable[..., Path]


def refusals(path: Path) -> list[str]:
    """Return the messages about a file that cannot be used at all, without its folder."""
    with pytest.raises(RecipeError) as caught:
        read_yaml(path)
    return [str(problem).replace(f"{path.parent}/", "") for problem in caught.value.problems]


def mistakes(path: Path) -> list[str]:
    """Return the messages about a file that can be read apart from these mistakes."""
    _, _, problems = read_yaml(path)
    return [str(problem).replace(f"{path.parent}/", "") for problem in problems]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-3", 1e-3),
        ("1E3", 1000.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.5e+1", -5.0),
        ("+3", 3),
        ("010", 10),
        ("08", 8),
        ("0o10", 8),
        ("0x1F", 31),
        ("-7", -7),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("true", True),
        ("False", False),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("y", "y"),
        ("tRue", "tRue"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2001-01-01", "2001-01-01"),
        ("0b1", "0b1"),
        ("1e", "1e"),
        ("e3", "e3"),
        (".", "."),
        ("inf", "inf"),
        ("=", "="),
        ("~", None),
        ("null", None),
        ("", None),
        ("'1e-3'", "1e-3"),
        ('"true"', "true"),
        ("!!str 1", "1"),
        ("!!float 1", 1.0),
    ],
)
def test_scalars_are_those_of_yaml_1_2(write: Write, text: str, expected: Any) -> None:
    data, _, problems = read_yaml(write(f"key: {text}\n"))
    assert problems == []
    assert (type(data["key"]), data["key"]) == (type(expected), expected)
    value, _ = parse_value(text)
    assert (type(value), value) == (type(expected), expected)


def test_nan_is_a_number(write: Write) -> None:
    data, _, _ = read_yaml(write("key: .nan"))
    assert math.isnan(data["key"])


def test_every_value_has_the_line_of_its_key(write: Write) -> None:
    path = write(
        "# a comment\nmodel:\n  name: x\n  args:\n    - 1\n    - {b: 2,\n       c: 3}\nseed:\n\n "
        " 5\n"
    )
    _, marks, _ = read_yaml(path)
    assert {keys: mark.line for keys, mark in marks.items()} == {
        (): 2,
        ("model",): 2,
        ("model", "name"): 3,
        ("model", "args"): 4,
        ("model", "args", 0): 5,
        ("model", "args", 1): 6,
        ("model", "args", 1, "b"): 6,
        ("model", "args", 1, "c"): 7,
        ("seed",): 8,
    }
    assert {mark.file for mark in marks.values()} == {str(path)}


@pytest.mark.parametrize("newline", ["\r\n", "\r", "\n"])
def test_any_line_ending_counts_lines_alike(write: Write, newline: str) -> None:
    data, marks, _ = read_yaml(write(newline.join(["seed: 1", "", "train: {epochs: 2}", ""])))
    assert data == {"seed": 1, "train": {"epochs": 2}}
    assert marks[("train", "epochs")].line == 3


def test_a_byte_order_mark_is_no_part_of_the_first_key(write: Write) -> None:
    data, _, _ = read_yaml(write("\ufeffseed: 1"))
    assert data == {"seed": 1}


def test_an_anchor_is_read_where_it_is_used(write: Write) -> None:
    data, marks, _ = read_yaml(write("a: &x {b: 1}\nc: *x\n"))
    assert data == {"a": {"b": 1}, "c": {"b": 1}}
    assert data["a"] is not data["c"]
    assert (marks[("c",)].line, marks[("c", "b")].line) == (2, 1)


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing but a comment\n", "---\n"])
def test_an_empty_file_is_an_empty_recipe(write: Write, text: str) -> None:
    path = write(text)
    if text == "---\n":
        assert refusals(path) == [
            "recipe.yaml:1: a recipe is a mapping of sections such as `model:`"
        ]
    else:
        assert read_yaml(path) == ({}, {}, [])


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "3", "null"])
def test_the_top_level_must_be_a_mapping(write: Write, text: str) -> None:
    assert refusals(write(text)) == [
        "recipe.yaml:1: a recipe is a mapping of sections such as `model:`"
    ]


def test_every_repeated_key_is_named_with_both_lines(write: Write) -> None:
    path = write("seed: 1\nmodel:\n  name: a\n  name: b\nseed: 2\n")
    assert mistakes(path) == [
        "recipe.yaml:4: model.name: this key is already on line 3; remove one of them",
        "recipe.yaml:5: seed: this key is already on line 1; remove one of them",
    ]
    assert read_yaml(path)[0] == {"seed": 1, "model": {"name": "a"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: !!int abc", "seed: 'abc' is not a value that can be read"),
        ("seed: !!bool abc", "seed: 'abc' is not a value that can be read"),
        (f"seed: {'9' * 5000}", f"seed: '{'9' * 40}' is not a value that can be read"),
        (
            "seed: !!timestamp 2001-01-01",
            "seed: a recipe holds plain values only; remove the tag !!timestamp",
        ),
        ("seed: !!binary aGk=", "seed: a recipe holds plain values only; remove the tag !!binary"),
        ("seed: !mine x", "seed: a recipe holds plain values only; remove the tag !mine"),
        ("? [a]\n: 1", "a key must be a plain word, not a list or a mapping"),
        ("{a: 1}: 1", "a key must be a plain word, not a list or a mapping"),
    ],
)
def test_what_is_not_plain_is_refused_and_the_rest_read(
    write: Write, text: str, message: str
) -> None:
    path = write(f"train: {{epochs: 2}}\n{text}\n")
    assert mistakes(path) == [f"recipe.yaml:2: {message}"]
    assert read_yaml(path)[0]["train"] == {"epochs": 2}


def test_no_tag_runs_code(write: Write, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    path = write(f"seed: !!python/object/apply:pathlib.Path.touch [{witness}]\n")
    assert mistakes(path) == [
        "recipe.yaml:1: seed: a recipe holds plain values only; remove the tag "
        "!!python/object/apply:pathlib.Path.touch"
    ]
    assert not witness.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train:\n\tepochs: 1",
            (
                r"2: not valid YAML: found character '\t' that cannot start any token; indent with"
                r" spaces, not tabs"
            ),
        ),
        (
            "a: [1, 2\nb: 3",
            "2: not valid YAML: expected ',' or ']', but got ':'; while parsing a flow sequence",
        ),
        (
            "a: 1\n b: 2",
            (
                "2: not valid YAML: mapping values are not allowed here; check indentation and "
                "quotes here"
            ),
        ),
        (
            "a: 'x",
            "1: not valid YAML: found unexpected end of stream; while scanning a quoted scalar",
        ),
        (
            "a: *x",
            "1: not valid YAML: found undefined alias 'x'; check indentation and quotes here",
        ),
        (
            "a: 1\n---\nb: 1",
            (
                "2: not valid YAML: but found another document; expected a single document in the "
                "stream"
            ),
        ),
        (
            "b: 1\na: &x\n  c: *x",
            "2: not valid YAML: an alias that contains itself; write the value out",
        ),
        ("a: &x [1, *x]", "1: not valid YAML: an alias that contains itself; write the value out"),
        ("a: 1\nb: \x00", "2: not valid YAML: it has the character U+0000; is this a text file?"),
        ("[" * 5000, "1: not valid YAML: it nests too deeply"),
    ],
)
def test_what_is_not_yaml_is_refused_with_its_line(write: Write, text: str, message: str) -> None:
    assert refusals(write(text)) == [f"recipe.yaml:{message}"]


def test_aliases_cannot_multiply_without_end(write: Write) -> None:
    lines = ["a0: &a0 [1, 1]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    (message,) = refusals(write("\n".join(lines)))
    assert "more than 10,000 values; do aliases stand inside aliases?" in message


def test_forty_levels_without_an_alias_are_just_deep(write: Write) -> None:
    data, _, problems = read_yaml(write("a: " + "[" * 40 + "]" * 40))
    assert problems == []
    assert str(data["a"]).count("[") == 40


def test_files_that_cannot_be_read_are_named(write: Write, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nope\.yaml: no such file; `trainkit recipes` lists"):
        read_yaml(tmp_path / "nope.yaml")
    with pytest.raises(UserError, match=r"cannot be read: Is a directory"):
        read_yaml(tmp_path)
    with pytest.raises(UserError, match=r"recipe\.yaml: cannot be read: not UTF-8 text"):
        read_yaml(write(b"\x89PNG\r\n\x1a\n\xff\xfe"))


def test_a_value_on_the_command_line_may_be_a_list_or_mapping() -> None:
    value, paths = parse_value("[1, {b: 2e-1}]")
    assert value == [1, {"b": 0.2}]
    assert set(paths) == {(), (0,), (1,), (1, "b")}
    assert parse_value("") == (None, [()])
    assert parse_value("{1: 2}")[0] == {"1": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[1",
            (
                "not valid YAML: expected ',' or ']', but got '<stream end>'; while parsing a flow "
                "sequence"
            ),
        ),
        ("&x [*x]", "not valid YAML: an alias that contains itself; write the value out"),
        ("{a: 1, a: 2}", "this key is already on line 1; remove one of them"),
        ("!!binary aGk=", "a recipe holds plain values only; remove the tag !!binary"),
    ],
)
def test_a_wrong_value_on_the_command_line_says_why(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared below
        parse_value(text)
    assert str(caught.value) == message


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text("ab1e-+.: #'\"[]{}&*!|>%@`,?0x~\n\t\x07é…𝛼\u2028", max_size=6)
    | st.from_regex(
        r"[-+]?[0-9]{0,3}\.?[0-9]{0,2}([eE][-+]?[0-9]{1,2})?|0[ox][0-9]+|[~yYnN]|on|off|null|",
        fullmatch=True,
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("ab1.e-", min_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(data=st.dictionaries(st.text("abc1e-.", min_size=1), PLAIN, max_size=4))
def test_what_is_dumped_is_read_back_the_same(data: dict[str, Any]) -> None:
    value, _ = parse_value(dump(data))
    assert repr(value) == repr(data)  # 1 and 1.0 and True are equal, but not the same
