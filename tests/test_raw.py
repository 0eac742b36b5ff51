"""Recipes that extend one another, overrides on the command line, and where each value then
stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from trainkit.config.raw import RawRecipe, read_raw, validate
from trainkit.errors import Location, RecipeError

Write = Callable[..., Path]


def said(problems: Sequence[object], path: Path) -> list[str]:
    return [str(problem).replace(f"{path.parent}/", "") for problem in problems]


def refusals(path: Path, overrides: Sequence[str] = ()) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        read_raw(path, overrides)
    return said(caught.value.problems, path)


# Files that extend one another.


def test_a_recipe_extends_another_key_by_key(write: Write) -> None:
    write("seed: 1\nmodel: {name: a, in_chans: 1}\ntrain: {epochs: 3}\n", "base.yaml")
    path = write("extends: base.yaml\nmodel:\n  name: b\nseed: 2\n", "top.yaml")
    raw = read_raw(path)
    assert raw.data == {
        "seed": 2,
        "model": {"name": "b", "in_chans": 1},
        "train": {"epochs": 3},
        "plugins": {},
    }
    where = {key: str(raw.nearest(*key)).replace(f"{path.parent}/", "") for key in raw.locations}
    assert where[("seed",)] == "top.yaml:4"
    assert where[("model", "name")] == "top.yaml:3"
    assert where[("model", "in_chans")] == "base.yaml:2"
    assert where[("train", "epochs")] == "base.yaml:3"


def test_a_chain_is_followed_to_its_end_and_counts_paths_from_each_file(write: Write) -> None:
    write("seed: 1\ntrain: {epochs: 1, accumulate: 1, log_every: 1}\n", "deep/er/first.yaml")
    write("extends: er/first.yaml\ntrain: {accumulate: 2, log_every: 2}\n", "deep/second.yaml")
    path = write("extends: deep/second.yaml\ntrain: {log_every: 3}\n", "third.yaml")
    assert read_raw(path).data["train"] == {"epochs": 1, "accumulate": 2, "log_every": 3}


def test_plugins_of_the_base_come_first_and_lists_are_replaced(write: Write) -> None:
    write("plugins: {a: {size: [1, 2]}, b: {}}\n", "base.yaml")
    path = write("extends: base.yaml\nplugins: {c: {}, a: {size: [3]}}\n", "top.yaml")
    assert list(read_raw(path).data["plugins"].items()) == [
        ("a", {"size": [3]}),
        ("b", {}),
        ("c", {}),
    ]


def test_plugins_with_nothing_behind_them_have_no_options(write: Write) -> None:
    assert read_raw(write("plugins:\n  ema:\n  radam: {}\n")).data["plugins"] == {
        "ema": {},
        "radam": {},
    }
    assert read_raw(write("plugins:\n")).data == {}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("extends: 3", "extends: give the path of one recipe, relative to this file"),
        (
            "extends: [a.yaml, b.yaml]",
            "extends: give the path of one recipe, relative to this file",
        ),
        ("extends: top.yaml", "extends: top.yaml extends this file in turn; one of them must not"),
        (
            "extends: ./sub/../top.yaml",
            "extends: ./sub/../top.yaml extends this file in turn; one of them must not",
        ),
    ],
)
def test_what_cannot_be_extended_is_refused(write: Write, line: str, message: str) -> None:
    assert refusals(write(f"seed: 1\n{line}\n", "top.yaml")) == [f"top.yaml:2: {message}"]


def test_a_missing_base_is_named_in_full(write: Write) -> None:
    path = write("extends: nope.yaml\n", "top.yaml")
    assert refusals(path) == ["top.yaml:1: extends: there is no file nope.yaml"]


def test_a_circle_is_refused_where_it_closes(write: Write) -> None:
    write("extends: c.yaml\n", "b.yaml")
    write("seed: 1\nextends: a.yaml\n", "c.yaml")
    path = write("extends: b.yaml\n", "a.yaml")
    assert refusals(path) == [
        "c.yaml:2: extends: a.yaml extends this file in turn; one of them must not"
    ]


def test_two_recipes_may_extend_the_same_one(write: Write) -> None:
    write("seed: 7\n", "base.yaml")
    write("extends: base.yaml\n", "left.yaml")
    path = write("extends: left.yaml\n", "right.yaml")
    assert read_raw(path).data["seed"] == 7


def test_mistakes_in_the_base_name_the_base(write: Write) -> None:
    write("seed: 1\nseed: 2\n", "base.yaml")
    path = write("extends: base.yaml\ntrain: {}\ntrain: {}\n", "top.yaml")
    assert said(read_raw(path).problems, path) == [
        "base.yaml:2: seed: this key is already on line 1; remove one of them",
        "top.yaml:3: train: this key is already on line 2; remove one of them",
    ]


def test_mistakes_are_not_lost_when_the_base_is_missing(write: Write) -> None:
    assert refusals(write("seed: 1\nseed: 2\nextends: nope.yaml\n", "top.yaml")) == [
        "top.yaml:2: seed: this key is already on line 1; remove one of them",
        "top.yaml:3: extends: there is no file nope.yaml",
    ]


def test_a_path_counts_from_the_file_that_says_it(write: Write) -> None:
    write("plugins: {./trick.py:Trick: {}}\n", "shared/base.yaml")
    path = write("extends: shared/base.yaml\nplugins: {./own.py:Own: {}}\n", "top.yaml")
    raw = read_raw(path, ["plugins.ema={}"])
    assert raw.folder("plugins", "./trick.py:Trick") == path.parent / "shared"
    assert raw.folder("plugins", "./own.py:Own") == path.parent
    assert raw.folder("plugins", "ema") == path.parent


# Overrides.

BASE = (
    "seed: 1\nmodel: {name: a, args: {depth: 2}}\nplugins:\n  ema: {decay: 0.9}\n "
    " ./trick.py:Trick: {size: 1}\n"
)


@pytest.mark.parametrize(
    ("override", "keys", "value"),
    [
        ("seed=2", ("seed",), 2),
        ("model.name=b", ("model", "name"), "b"),
        ("model.name=on", ("model", "name"), "on"),
        ("model.name='1'", ("model", "name"), "1"),
        ("optimizer.lr=1e-3", ("optimizer", "lr"), 0.001),
        ("model.args.depth=", ("model", "args", "depth"), None),
        ("model.args={width: [1, 2]}", ("model", "args"), {"width": [1, 2]}),
        ("plugins.radam=", ("plugins", "radam"), {}),
        ("plugins.radam.lr=3", ("plugins", "radam"), {"lr": 3}),
        ("plugins.ema.decay=.5", ("plugins", "ema"), {"decay": 0.5}),
        ("plugins../trick.py:Trick.size=4", ("plugins", "./trick.py:Trick"), {"size": 4}),
        ("model.name=a=b", ("model", "name"), "a=b"),
    ],
)
def test_an_override_sets_a_value_and_is_its_place(
    write: Write, override: str, keys: tuple[str, ...], value: Any
) -> None:
    raw = read_raw(write(BASE), [override])
    assert raw.problems == []
    found: Any = raw.data
    for key in keys:
        found = found[key]
    assert found == value
    name = (*keys, *value) if isinstance(value, dict) else keys
    assert raw.nearest(*name) == Location(f"command line `{override}`")


@pytest.mark.parametrize(
    ("override", "section", "left"),
    [
        ("~plugins.ema", ("plugins",), {"./trick.py:Trick": {"size": 1}}),
        ("~plugins../trick.py:Trick", ("plugins",), {"ema": {"decay": 0.9}}),
        ("~model.args.depth", ("model",), {"name": "a", "args": {}}),
        ("~plugins", ("plugins",), {}),
    ],
)
def test_an_override_removes_a_key_with_all_below_it(
    write: Write, override: str, section: tuple[str, ...], left: Any
) -> None:
    raw = read_raw(write(BASE), [override])
    found: Any = raw.data
    for key in section:
        found = found[key]
    assert found == left


def test_a_replaced_section_keeps_no_line_of_the_file(write: Write) -> None:
    raw = read_raw(write(BASE), ["model={name: b}"])
    assert raw.locations[("model", "name")] == Location("command line `model={name: b}`")
    assert ("model", "args") not in raw.locations
    assert ("model", "args", "depth") not in raw.locations
    removed = read_raw(write(BASE), ["~plugins.ema"])
    assert not [keys for keys in removed.locations if keys[:2] == ("plugins", "ema")]


def test_overrides_are_taken_in_turn(write: Write) -> None:
    raw = read_raw(write(BASE), ["seed=2", "seed=3", "~plugins.ema", "plugins.ema.decay=1"])
    assert raw.data["seed"] == 3
    assert list(raw.data["plugins"].items()) == [
        ("./trick.py:Trick", {"size": 1}),
        ("ema", {"decay": 1}),
    ]


def test_every_wrong_override_is_named(write: Write) -> None:
    wrong = [
        "seed",
        "=1",
        "a..b=1",
        "~seed=1",
        "~",
        "~sed",
        "~model.args.dpth",
        "seed.x=1",
        "~seed.x",
        "seed=[1",
    ]
    raw = read_raw(write(BASE), wrong)
    form, removal = "an override is `a.b=value`; `~a.b` removes a key", "`~a.b` removes a key"
    assert [str(problem) for problem in raw.problems] == [
        f"command line `seed`: {form}",
        f"command line `=1`: {form}",
        f"command line `a..b=1`: {form}",
        f"command line `~seed=1`: {removal}",
        f"command line `~`: {removal}",
        "command line `~sed`: sed: there is nothing of that name to remove; did you mean 'seed'?",
        (
            "command line `~model.args.dpth`: model.args.dpth: there is nothing of that name to "
            "remove; did you mean 'depth'?"
        ),
        "command line `seed.x=1`: seed: has no keys below it",
        "command line `~seed.x`: seed: has no keys below it",
        (
            "command line `seed=[1`: seed: '[1' is not a value: not valid YAML: expected ',' or "
            "']', but got '<stream end>'; while parsing a flow sequence"
        ),
    ]
    assert raw.data == read_raw(write(BASE)).data


# Typing.


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = Field(1, ge=1)


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    pair: tuple[float, float] = (0.0, 1.0)
    inner: Inner = Inner()
    maybe: Inner | None = None
    many: list[Inner] = []
    flag: bool = False
    word: str = "x"
    needed: int = 0

    @field_validator("word")
    @classmethod
    def _short(cls, word: str) -> str:
        if len(word) > 3:
            raise ValueError(f"Must have at most 3 letters, not {len(word)}")
        return word

    @model_validator(mode="after")
    def _ordered(self) -> Outer:
        if self.pair[0] > self.pair[1]:
            raise ValueError("pair must rise")
        return self

    def model_post_init(self, context: Any) -> None:
        if self.needed < 0:
            raise ValueError("needed must not be negative, got -1")


def check(write: Write, text: str) -> list[str]:
    path = write(text)
    raw = read_raw(path)
    _, problems = validate(Outer, raw.data["o"], raw, ("o",))
    return said(problems, path)


def test_a_list_is_read_as_a_tuple_and_an_int_as_a_float(write: Write) -> None:
    raw = read_raw(write("o: {pair: [1, 2.5], many: [{size: 2}]}"))
    made, problems = validate(Outer, raw.data["o"], raw, ("o",))
    assert problems == []
    assert made is not None
    assert made.pair == (1.0, 2.5)
    assert made.many == [Inner(size=2)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{inner: {size: 0}}", "o.inner.size: should be greater than or equal to 1; got 0"),
        (
            "{inner: {size: '1'}}",
            'o.inner.size: should be a valid integer; got "1"; leave the quotes out',
        ),
        ("{inner: {size: 1.0}}", "o.inner.size: should be a valid integer; got 1.0"),
        ("{inner: {size: true}}", "o.inner.size: should be a valid integer; got true"),
        ("{flag: 1}", "o.flag: should be a valid boolean; got 1"),
        ("{flag: on}", 'o.flag: should be a valid boolean; got "on"; write true'),
        ("{word: 1}", "o.word: should be a valid string; got 1"),
        ("{word: lengthy}", 'o.word: must have at most 3 letters, not 7; got "lengthy"'),
        ("{pair: [1]}", "o.pair.1: is required and not given"),
        ("{inner: 3}", "o.inner: should be a mapping; got 3"),
        ("{inner: }", "o.inner: should be a mapping; got null"),
        ("{many: {}}", "o.many: should be a valid array"),
        ("{many: [{}, {size: 0}]}", "o.many.1.size: should be greater than or equal to 1; got 0"),
        (
            "{inner: {sise: 1}}",
            "o.inner.sise: there is no such option; did you mean 'size'? (known: size)",
        ),
        (
            "{maybe: {sise: 1}}",
            "o.maybe.sise: there is no such option; did you mean 'size'? (known: size)",
        ),
        (
            "{wrd: a}",
            (
                "o.wrd: there is no such option; did you mean 'word'? "
                "(known: pair, inner, maybe, many, flag, word, needed)"
            ),
        ),
        (
            "{zzz: a}",
            "o.zzz: there is no such option (known: pair, inner, maybe, many, flag, word, needed)",
        ),
        (f"{{flag: {'x' * 100}}}", f'o.flag: should be a valid boolean; got "{"x" * 59}…'),
    ],
)
def test_a_wrong_value_says_what_is_wanted_and_what_was_given(
    write: Write, options: str, message: str
) -> None:
    assert check(write, f"o:\n  {options}\n") == [f"recipe.yaml:2: {message}"]


def test_what_is_wrong_with_a_section_as_a_whole_is_said_where_it_begins(write: Write) -> None:
    assert check(write, "o:\n  pair: [2, 1]\n") == ["recipe.yaml:1: o: pair must rise"]
    assert check(write, "o:\n  needed: -1\n") == [
        "recipe.yaml:1: o: needed must not be negative, got -1"
    ]


def test_a_source_made_in_code_has_a_place_too() -> None:
    raw = RawRecipe()
    _, problems = validate(Inner, {"size": 0}, raw, ("o",))
    assert list(map(str, problems)) == [
        "recipe:1: o.size: should be greater than or equal to 1; got 0"
    ]
