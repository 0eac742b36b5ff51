"""Plugins of one run: what is refused, in which order they are called, and who is blamed when
one misbehaves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import Field

from tests.reference.entries import entries_of, refusals
from trainkit import Plugin, hookimpl
from trainkit.errors import RecipeError
from trainkit.hooks.order import arrange
from trainkit.training.build import compose

Write = Callable[..., Path]


def order(*plugins: Plugin) -> tuple[list[str], list[str]]:
    entries, problems = arrange(entries_of(*plugins))
    return [entry.name for entry in entries], [str(problem) for problem in problems]


def placed(name: str, **rules: Any) -> Plugin:
    """Return a plugin of class `name` with rules about its place."""
    return type(name, (Plugin,), {"__annotations__": dict.fromkeys(rules, ClassVar), **rules})()


# The shape of a plugin.


def test_an_unknown_hook_is_refused_with_a_suggestion() -> None:
    class Slip(Plugin):
        @hookimpl
        def before_optimiser_step(self, run): ...

    assert refusals(Slip()) == [
        "r.yaml:1: plugins.slip: there is no hook 'before_optimiser_step'; did you mean "
        "'before_optimizer_step'?"
    ]


def test_an_unknown_argument_is_refused_with_those_there_are() -> None:
    class Slip(Plugin):
        @hookimpl
        def before_optimizer_step(self, modle, run): ...

    assert refusals(Slip()) == [
        "r.yaml:1: plugins.slip: hook before_optimizer_step has no argument 'modle'; did you mean "
        "'model'? (it has: model, optimizer, window, run)"
    ]


def test_arguments_must_be_plain() -> None:
    class Slip(Plugin):
        @hookimpl
        def before_optimizer_step(self, model, run=None): ...

        @hookimpl
        def on_epoch_end(self, *, run): ...

        @hookimpl
        def on_fit_end(self, *args, **options): ...

    assert refusals(Slip()) == [
        (
            "r.yaml:1: plugins.slip: argument 'run' of before_optimizer_step must be plain: no "
            "default, not keyword-only"
        ),
        (
            "r.yaml:1: plugins.slip: argument 'run' of on_epoch_end must be plain: no default, not "
            "keyword-only"
        ),
        (
            "r.yaml:1: plugins.slip: hook on_fit_end passes no *args or **kwargs; name the "
            "arguments (it has: run)"
        ),
        (
            "r.yaml:1: plugins.slip: hook on_fit_end passes no *args or **kwargs; name the "
            "arguments (it has: run)"
        ),
    ]


def test_a_method_named_as_a_hook_must_be_marked() -> None:
    class Slip(Plugin):
        def on_fit_start(self, run): ...

        @staticmethod
        @hookimpl
        def on_fit_end(run): ...

    assert refusals(Slip()) == [
        (
            "r.yaml:1: plugins.slip: its on_fit_end has the name of a hook but is not a method "
            "marked @hookimpl; mark or rename it"
        ),
        (
            "r.yaml:1: plugins.slip: its on_fit_start has the name of a hook but is not a method "
            "marked @hookimpl; mark or rename it"
        ),
    ]


def test_wrappers_wrap_values_and_are_generators() -> None:
    class Slip(Plugin):
        @hookimpl(wrapper=True)
        def on_fit_start(self, run):
            yield

        @hookimpl(wrapper=True)
        def compute_loss(self, run):
            return 1

        @hookimpl
        def build_model(self, run):
            model = yield
            return model

        @hookimpl
        def on_fit_end(self, run):
            yield

    assert refusals(Slip()) == [
        (
            "r.yaml:1: plugins.slip: build_model yields but is not a wrapper, so it would never "
            "run; mark it @hookimpl(wrapper=True)"
        ),
        "r.yaml:1: plugins.slip: the wrapper compute_loss must be a generator that yields once",
        (
            "r.yaml:1: plugins.slip: on_fit_end yields but is not a wrapper, so it would never run;"
            " a moment cannot be wrapped"
        ),
        (
            "r.yaml:1: plugins.slip: on_fit_start is a moment: it has no value to wrap; use plain "
            "@hookimpl"
        ),
    ]


def test_a_plugin_cannot_choose_its_place_behind_the_recipes_back() -> None:
    class Slip(Plugin):
        @hookimpl(trylast=True)
        def build_optimizer(self, run): ...

        @hookimpl(tryfirst=True)
        def on_fit_end(self, run): ...

        @hookimpl(hookwrapper=True)
        def build_model(self, run):
            yield

    assert refusals(Slip()) == [
        "r.yaml:1: plugins.slip: the mark of build_model may not say hookwrapper: use wrapper=True",
        (
            "r.yaml:1: plugins.slip: the mark of build_optimizer may not say trylast: order is the "
            "recipe's, and `before` and `after`"
        ),
        (
            "r.yaml:1: plugins.slip: the mark of on_fit_end may not say tryfirst: order is the "
            "recipe's, and `before` and `after`"
        ),
    ]


def test_a_value_has_one_provider() -> None:
    class One(Plugin):
        @hookimpl
        def build_optimizer(self, run): ...

    class Two(One):
        @hookimpl(wrapper=True)
        def compute_loss(self, run):
            return (yield)

    class Three(Plugin):
        @hookimpl(wrapper=True)
        def build_optimizer(self, run):
            return (yield)

    assert refusals(One(), Three(), Two()) == [
        "r.yaml:3: plugins.two: one and two both provide build_optimizer, and a run has one; drop "
        "one of them"
    ]
    assert refusals(One(), Three()) == []


def test_every_mistake_of_every_plugin_is_told_at_once() -> None:
    class One(Plugin):
        @hookimpl
        def on_fit_strat(self, run): ...

        @hookimpl
        def on_fit_end(self, rum): ...

    class Two(Plugin):
        @hookimpl
        def nothing_like_it(self): ...

    found = refusals(One(), Two())
    assert [line.split(": ")[0] for line in found] == ["r.yaml:1", "r.yaml:1", "r.yaml:2"]
    assert found[2] == "r.yaml:2: plugins.two: there is no hook 'nothing_like_it'"


# Order.


def test_order_is_the_recipes_where_nothing_else_is_said() -> None:
    assert order(placed("C"), placed("A"), placed("B")) == (["c", "a", "b"], [])


def test_before_and_after_move_only_what_they_must() -> None:
    assert order(placed("A", after=("d",)), placed("B"), placed("C"), placed("D"), placed("E"))[
        0
    ] == list("bcdae")
    assert order(placed("A"), placed("B"), placed("C", before=("a",)), placed("D"))[0] == list(
        "bcad"
    )
    assert order(placed("A", after=("c",)), placed("B", after=("a",)), placed("C"))[0] == list(
        "cab"
    )


def test_rules_about_plugins_that_are_off_do_nothing() -> None:
    assert order(placed("A", after=("x",), before=("y",)), placed("B"))[0] == ["a", "b"]


def test_each_place_has_its_reason() -> None:
    entries, _ = arrange(
        entries_of(placed("A", after=("b",)), placed("B", before=("c",)), placed("C"))
    )
    assert [(entry.name, entry.reason) for entry in entries] == [
        ("b", "recipe order"),
        ("a", "recipe order; a declares `after b`"),
        ("c", "recipe order; b declares `before c`"),
    ]


def test_a_circle_is_refused_with_those_in_it_and_who_asks() -> None:
    plugins = (
        placed("X"),
        placed("A", after=("b",)),
        placed("B", after=("c",)),
        placed("C", after=("a",)),
        placed("Z", after=("c",)),
    )
    names, problems = order(*plugins)
    assert names == ["x", "a", "b", "c", "z"]
    assert problems == [
        "r.yaml:2: plugins.a: a and b and c cannot be put in order: a declares `after b`; b "
        "declares `after c`; c declares `after a`; drop one of them"
    ]
    assert order(placed("A", before=("b",)), placed("B", before=("a",)))[1] == [
        "r.yaml:1: plugins.a: a and b cannot be put in order: b declares `before a`; a declares "
        "`before b`; drop one of them"
    ]


def test_conflicts_are_refused_with_their_reason() -> None:
    shy = placed("Shy", conflicts={"loud": "both want to speak"})
    assert order(shy, placed("Loud"))[1] == [
        "r.yaml:1: plugins.shy: cannot be on together with loud: both want to speak; drop one of "
        "the two"
    ]
    assert order(shy)[1] == []


def test_a_missing_requirement_is_refused_with_what_to_add() -> None:
    louder = placed("Louder", requires=("speaker",))
    assert order(louder)[1] == [
        "r.yaml:1: plugins.louder: needs the plugin speaker; add `speaker: {}` to `plugins:`"
    ]
    assert order(louder, placed("Speaker"))[1] == []


# From a recipe.

LOCAL = '''
from typing import ClassVar
from pydantic import Field, PrivateAttr
from trainkit import Plugin, hookimpl

class Trick(Plugin):
    """A trick."""
    size: int = Field(1, ge=1, description="how big")
    name_: str = Field("x", description="what")

class Helper(Plugin):
    requires: ClassVar[tuple[str, ...]] = ("Trick",)
    at: float = Field(0.5, gt=0, lt=1, description="where")

class Broken(Plugin):
    @hookimpl
    def on_fit_end(self, rum): ...
'''
SECTIONS = "model: {name: test_vit}\ndata: {name: digits}\nplugins:\n"


def mistakes(path: Path, overrides: Sequence[str] = ()) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        compose(path, overrides)
    return str(caught.value).replace(f"{path.parent}/", "").splitlines()


def test_all_options_of_all_plugins_are_checked_at_once(write: Write) -> None:
    write(LOCAL, "trick.py")
    path = write(
        f"{SECTIONS}  ./trick.py:Trick: {{size: 0, nmae_: y}}\n  ./trick.py:Helper:\n    at: 2\n   "
        " on: 1\n"
    )
    key, other = "plugins../trick.py:Trick", "plugins../trick.py:Helper"
    assert mistakes(path) == [
        f"recipe.yaml:4: {key}.size: should be greater than or equal to 1; got 0",
        (
            f"recipe.yaml:4: {key}.nmae_: there is no such option; did you mean 'name_'? (known: "
            "size, name_)"
        ),
        f"recipe.yaml:6: {other}.at: should be less than 1; got 2",
        f"recipe.yaml:7: {other}.on: there is no such option (known: at)",
    ]


def test_a_wrong_option_on_the_command_line_is_named_there(write: Write) -> None:
    write(LOCAL, "trick.py")
    path = write(f"{SECTIONS}  ./trick.py:Trick: {{}}\n")
    assert mistakes(path, ["plugins../trick.py:Trick.size=0"]) == [
        "command line `plugins../trick.py:Trick.size=0`: plugins../trick.py:Trick.size: "
        "should be greater than or equal to 1; got 0"
    ]


def test_shape_order_and_options_are_refused_together(write: Write) -> None:
    write(LOCAL, "trick.py")
    path = write(f"{SECTIONS}  ./trick.py:Helper: {{}}\n  ./trick.py:Broken: {{}}\n  nope: {{}}\n")
    first, second, third = mistakes(path)
    assert (
        first
        == "recipe.yaml:4: plugins.Helper: needs the plugin Trick; add `Trick: {}` to `plugins:`"
    )
    assert (
        second
        == "recipe.yaml:5: plugins.Broken: hook on_fit_end has no argument 'rum'; did you mean"
        " 'run'? (it has: run)"
    )
    assert third.startswith("recipe.yaml:6: plugins.nope: no plugin of this name is installed")


def test_a_plugin_with_wrong_options_is_not_also_missing(write: Write) -> None:
    write(LOCAL, "trick.py")
    path = write(f"{SECTIONS}  ./trick.py:Trick: {{size: 0}}\n  ./trick.py:Helper: {{}}\n")
    assert len(mistakes(path)) == 1


def test_two_plugins_of_one_name_are_refused(write: Write) -> None:
    write(LOCAL, "trick.py")
    write(LOCAL, "other/trick.py")
    path = write(f"{SECTIONS}  ./trick.py:Trick: {{}}\n  other/trick.py:Trick: {{}}\n")
    assert mistakes(path) == [
        "recipe.yaml:5: plugins.other/trick.py:Trick: a plugin called Trick is already on; keep one"
    ]


def test_each_plugin_learns_its_name_and_the_seed(write: Write) -> None:
    write(LOCAL, "trick.py")
    path = write(f"seed: 5\n{SECTIONS}  ./trick.py:Trick: {{}}\n  ./trick.py:Helper: {{}}\n")
    trick, helper = (entry.plugin for entry in compose(path).entries)
    assert (trick.name, helper.name) == ("Trick", "Helper")
    draws = [plugin.generator().initial_seed() for plugin in (trick, helper)]
    assert draws[0] != draws[1]
    assert [e.plugin.generator().initial_seed() for e in compose(path).entries] == draws
    assert compose(path, ["seed=6"]).entries[0].plugin.generator().initial_seed() != draws[0]


def test_plugins_are_compared_by_identity() -> None:
    class Same(Plugin):
        size: int = 1

    first, second = Same(), Same()
    assert first != second
    assert len({first, second}) == 2


def test_options_are_frozen_and_unknown_ones_refused() -> None:
    class Trick(Plugin):
        size: int = Field(1, ge=1)
        top: float = math.inf

    plugin: Any = Trick(size=2)
    with pytest.raises(ValueError, match="frozen"):
        plugin.size = 3
    with pytest.raises(ValueError, match="Extra inputs"):
        Trick(sise=2)
