"""The `early_stopping` plugin."""

import math
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from trainkit_plugins.early_stopping.plugin import EarlyStopping

from trainkit import Hooks, Run, UserError
from trainkit.config.recipe import Recipe
from trainkit.log.records import Log
from trainkit.training.device import Device


def make_run(metric: str = "accuracy", mode: str = "max") -> Run:
    recipe = Recipe.model_validate(
        {
            "model": {"name": "none"},
            "data": {"name": "digits"},
            "checkpoint": {"metric": metric, "mode": mode},
            "train": {"evaluate_every": 2},
        }
    )
    run = Run(recipe, cast(Hooks, None), {}, Device(recipe), Log())
    run.metrics = cast(Any, {"accuracy": None, "nll": None})
    return run


def stops_at(values: list[float], run: Run | None = None, **options: Any) -> int | None:
    """Return the validation, from 1, at which the plugin asks for the end; `values` are of what
    it watches.
    """
    run, plugin = run or make_run(), EarlyStopping(**options)
    plugin.on_fit_start(run)
    for i, value in enumerate(values, start=1):
        plugin.on_evaluate_end({plugin.metric or run.recipe.checkpoint.metric: value}, run)
        if run.stop_reason:
            return i
    return None


def test_it_stops_after_patience_validations_without_improvement() -> None:
    values = [0.5, 0.6, 0.6, 0.59, 0.7, 0.7, 0.7, 0.7, 0.9]
    assert stops_at(values, patience=3) == 8
    assert stops_at(values, patience=2) == 4
    assert stops_at(values, patience=1) == 3
    assert stops_at(values, patience=4) is None


def test_the_reason_names_metric_value_and_patience() -> None:
    run = make_run()
    stops_at([0.5, 0.75, 0.7, 0.6], run, patience=2)
    assert (
        run.stop_reason == "early_stopping: accuracy has not got better than 0.75 for 2 validations"
    )


def test_less_is_better_in_mode_min_and_the_recipes_choice_is_the_default() -> None:
    falling, rising = [3.0, 2.0, 1.0, 1.5], [1.0, 2.0, 3.0]
    assert stops_at(falling, make_run("nll", "min"), patience=1) == 4
    assert stops_at(rising, make_run("nll", "min"), patience=1) == 2
    assert stops_at(rising, make_run(), metric="nll", mode="min", patience=1) == 2


def test_a_gain_counts_only_above_min_delta() -> None:
    assert stops_at([0.5, 0.75, 1.0], patience=1, min_delta=0.25) == 2
    assert stops_at([0.5, 0.75, 1.0], patience=1, min_delta=0.2) is None
    assert stops_at([1.0, 0.75, 0.5], metric="nll", mode="min", patience=1, min_delta=0.25) == 2
    # Small gains add up: the comparison is with the last value that counted.
    assert stops_at([0.5, 0.7, 0.8, 0.9], patience=2, min_delta=0.25) is None


def test_nan_is_never_an_improvement() -> None:
    nan = math.nan
    run = make_run()
    assert stops_at([nan, nan], run, patience=2) == 2
    assert run.stop_reason == "early_stopping: accuracy was never a number for 2 validations"
    assert stops_at([nan, 0.1, nan, 0.2, nan, nan], patience=2) == 6


@given(st.lists(st.floats(-10, 10), max_size=20), st.integers(0, 20), st.integers(1, 5))
def test_going_on_from_a_saved_state_is_exact(values: list[float], cut: int, patience: int) -> None:
    run, plugin = make_run(), EarlyStopping(patience=patience)
    for value in values[:cut]:
        plugin.on_evaluate_end({"accuracy": value}, run)
    resumed_run, resumed = make_run(), EarlyStopping(patience=patience)
    resumed_run.stop_reason = run.stop_reason
    resumed.load_state_dict(plugin.state_dict())
    for value in values[cut:]:
        plugin.on_evaluate_end({"accuracy": value}, run)
        resumed.on_evaluate_end({"accuracy": value}, resumed_run)
    assert resumed_run.stop_reason == run.stop_reason
    assert resumed.state_dict() == plugin.state_dict()


@given(st.lists(st.floats(allow_nan=True), max_size=30))
def test_neutral_options_never_stop(values: list[float]) -> None:
    assert stops_at(values, **EarlyStopping.neutral) is None


def test_an_unknown_metric_is_refused_before_training() -> None:
    with pytest.raises(
        UserError, match=r"does not measure 'acuracy' \(it measures: accuracy, nll\)"
    ):
        EarlyStopping(metric="acuracy", mode="max").on_fit_start(make_run())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "nll"}, "give metric and mode together"),
        ({"mode": "min"}, "give metric and mode together"),
        ({"patience": 0}, "patience"),
        ({"min_delta": -0.1}, "min_delta"),
        ({"metric": "nll", "mode": "less"}, "mode"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EarlyStopping(**options)


def test_plan_says_what_is_watched() -> None:
    (line,) = EarlyStopping(patience=4, min_delta=0.001).explain(make_run("nll", "min"))
    assert (
        line
        == "watches nll (lower is better), measured every 2 epoch(s); stops after 4 validations"
        " without a gain above 0.001"
    )
