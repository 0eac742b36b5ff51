"""The `tensorboard` plugin, its files read back by TensorBoard itself."""

import math
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import ValidationError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainkit_plugins.loggers import plugin as loggers
from trainkit_plugins.loggers.plugin import TensorBoard

from trainkit import Hooks, Record, Run
from trainkit.config.recipe import Recipe
from trainkit.log.records import Log
from trainkit.training.device import Device


def make_run(folder: Path | None, step: int = 0) -> Run:
    recipe = Recipe.model_validate({"model": {"name": "resnet10t"}, "data": {"name": "digits"}})
    return Run(recipe, cast(Hooks, None), {}, Device(recipe), Log(), folder, step=step)


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0}
    )
    events.Reload()
    return events


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def test_scalars_and_vectors_come_back_as_they_were_logged(tmp_path: Path) -> None:
    plugin, run = TensorBoard(), make_run(tmp_path)
    plugin.on_fit_start(run)
    plugin.on_log(Record(1, 0, {"loss": 0.1, "spread": [1.0, 2.0, 4.0]}))
    plugin.on_log(Record(2, 0, {"loss": math.nan, "spread": [math.nan, 3.0]}))
    plugin.on_log(Record(2, 0, {"val/accuracy": 0.5, "spread": [math.inf]}))
    plugin.on_fit_end()
    folder = tmp_path / "tensorboard"
    first, second = points(folder, "loss")
    assert first == (1, pytest.approx(0.1, rel=1e-7))
    assert second[0] == 2
    assert math.isnan(second[1])
    assert points(folder, "val/accuracy") == [(2, 0.5)]
    assert points(folder, "epoch") == [(1, 1.0), (2, 1.0), (2, 1.0)]
    found = [
        (h.step, h.histogram_value.num, h.histogram_value.sum)
        for h in read(folder).Histograms("spread")
    ]
    assert found == [(1, 3.0, 7.0), (2, 1.0, 3.0)]


def test_the_recipe_is_written_once(tmp_path: Path) -> None:
    for step in (0, 5):
        plugin = TensorBoard()
        plugin.on_fit_start(make_run(tmp_path, step))
        plugin.on_fit_end()
    (text,) = read(tmp_path / "tensorboard").Tensors("recipe/text_summary")
    assert "    model:\n" in text.tensor_proto.string_val[0].decode()


def test_steps_taken_again_after_a_resume_are_there_once(tmp_path: Path) -> None:
    killed = TensorBoard()
    killed.on_fit_start(make_run(tmp_path))
    for step in range(1, 5):
        killed.on_log(Record(step, 0, {"loss": float(step)}))
    killed.on_log(Record(4, 0, {"val/accuracy": 0.25}))
    killed.state_dict()  # the checkpoint
    for step in range(5, 8):
        killed.on_log(Record(step, 0, {"loss": float(step)}))
    killed.state_dict()  # another, which the kill spoils
    resumed = TensorBoard()
    resumed.on_fit_start(make_run(tmp_path, step=4))
    for step in range(5, 10):
        resumed.on_log(Record(step, 0, {"loss": 10.0 * step}))
    resumed.on_fit_end()
    folder = tmp_path / "tensorboard"
    assert points(folder, "loss") == [(s, float(s)) for s in range(1, 5)] + [
        (s, 10.0 * s) for s in range(5, 10)
    ]
    assert points(folder, "val/accuracy") == [(4, 0.25)]
    killed.on_fit_end()


def test_a_checkpoint_brings_what_was_logged_before_it_to_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin, flushed = TensorBoard(flush_seconds=3600), []
    assert plugin.state_dict() == {}
    plugin.on_fit_start(make_run(tmp_path))
    monkeypatch.setattr(plugin._writer, "flush", lambda: flushed.append(True))
    assert plugin.state_dict() == {}
    assert flushed == [True]
    plugin.on_fit_end()


def test_ranks_that_do_not_write_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plugin = TensorBoard()
    plugin.on_fit_start(make_run(None))
    plugin.on_log(Record(1, 0, {"loss": 0.1}))
    plugin.on_fit_end()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_the_way_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(
        ValidationError,
        match=r"needs the package tensorboard.*pip install 'trainkit\[tensorboard\]'",
    ):
        TensorBoard()


@pytest.mark.parametrize("options", [{"folder": ""}, {"flush_seconds": 0}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        TensorBoard(**options)
