"""`Plugin.refuse`: what a plugin cannot use is said with the file and line where it is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trainkit import Plugin, RecipeError, Run, UserError
from trainkit.config.raw import read_raw
from trainkit.config.recipe import Recipe
from trainkit.log.records import Log
from trainkit.training.device import Device

TEXT = """\
model: {name: mlp}
data: {name: digits}
train:
  loss: {name: bce}
plugins:
  mine:
    second: 2
    first: 1
"""

Refuse = Callable[..., str]


class Mine(Plugin):
    """A plugin to refuse with."""


@pytest.fixture
def refuse(tmp_path: Path) -> Refuse:
    """Return a function that gives the message of a refusal, without the folder of the recipe."""
    file = tmp_path / "mine.yaml"
    file.write_text(TEXT)
    raw = read_raw(file)
    recipe = Recipe.model_validate({"model": {"name": "mlp"}, "data": {"name": "digits"}})
    recipe._raw = raw
    run = Run(recipe, None, {}, Device(recipe), Log())  # type: ignore[arg-type]
    plugin = Mine()
    plugin.bind("mine", 0)

    def refused(*args: object, **kwargs: object) -> str:
        with pytest.raises(RecipeError) as refusal:
            plugin.refuse(run, *args, **kwargs)  # type: ignore[arg-type]
        return str(refusal.value).removeprefix(f"{tmp_path}/")

    return refused


def test_an_option_is_named_with_its_line(refuse: Refuse) -> None:
    assert refuse("first", "is odd") == "mine.yaml:8: plugins.mine.first: is odd"


def test_an_option_that_is_not_written_has_the_line_of_its_plugin(refuse: Refuse) -> None:
    assert refuse("third", "is odd") == "mine.yaml:6: plugins.mine.third: is odd"


def test_a_plugin_as_a_whole_can_be_refused(refuse: Refuse) -> None:
    assert refuse("", "needs images") == "mine.yaml:6: plugins.mine: needs images"


def test_of_several_options_the_line_is_that_of_the_first_written(refuse: Refuse) -> None:
    assert refuse(["third", "second"], "clash") == "mine.yaml:7: plugins.mine.third, second: clash"


def test_what_is_at_fault_may_stand_in_another_section(refuse: Refuse) -> None:
    assert refuse("name", "no", section="train.loss") == "mine.yaml:4: train.loss.name: no"
    assert refuse("", "no", section="model") == "mine.yaml:1: model: no"


def test_it_is_an_error_of_the_user_on_one_line_without_the_cause(refuse: Refuse) -> None:
    assert "\n" not in refuse("first", "torch said\n  two lines")
    plugin, error = Mine(), None
    plugin.bind("mine", 0)
    recipe = Recipe.model_validate({"model": {"name": "mlp"}, "data": {"name": "digits"}})
    run = Run(recipe, None, {}, Device(recipe), Log())  # type: ignore[arg-type]
    try:
        try:
            raise ValueError("from inside")
        except ValueError as inside:
            plugin.refuse(run, "first", str(inside))
    except UserError as refusal:
        error = refusal
    assert error is not None
    assert error.__suppress_context__
