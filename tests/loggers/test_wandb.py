"""The `wandb` plugin against a stand-in for the package that notes every call."""

import errno
import math
import random
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import ValidationError
from trainkit_plugins.loggers.plugin import Wandb

from trainkit import Hooks, Record, Run
from trainkit.config.recipe import Recipe
from trainkit.errors import TrainingError, WriteError
from trainkit.log.records import Log
from trainkit.training.device import Device

# As the real package: init returns a run with an id, and draws that id from Python's global random
# stream.
STAND_IN = """
import random
calls = []

class Error(Exception):
    pass

class Settings:
    def __init__(self, console):
        self.console = console

class Histogram:
    def __init__(self, sequence):
        self.sequence = list(sequence)

class Run:
    def __init__(self, id):
        self.id = id
        self.summary = {}

    def log(self, data, step):
        calls.append(("log", data, step))

    def finish(self):
        calls.append(("finish", dict(self.summary)))

def init(*, project, entity, name, tags, mode, id, resume, dir, config, settings):
    calls.append(("init", dict(locals())))
    return Run(id or str(random.random()))
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Install the stand-in and return the list that it notes its calls in."""
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "wandb.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(packages)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    import wandb

    monkeypatch.setitem(sys.modules, "wandb", wandb)  # so that it is gone after the test
    return cast(list[Any], wandb.calls)


def make_run(folder: Path | None) -> Run:
    recipe = Recipe.model_validate(
        {"seed": 11, "model": {"name": "resnet10t"}, "data": {"name": "digits"}}
    )
    return Run(recipe, cast(Hooks, None), {}, Device(recipe), Log(), folder)


def test_a_run_is_started_logged_and_finished(calls: list[Any], tmp_path: Path) -> None:
    (tmp_path / "digits-1").mkdir()
    plugin, run = Wandb(project="p", tags=("a", "b")), make_run(tmp_path / "digits-1")
    plugin.on_fit_start(run)
    plugin.on_log(Record(1, 0, {"loss": 0.5, "spread": [1.0, math.nan, 2.0]}))
    plugin.on_log(Record(1, 0, {"val/accuracy": 0.25, "spread": [math.nan]}))
    run.stop("enough")
    plugin.on_fit_end(run)
    (_, started), (_, first, step), (_, second, step_again), finished = calls
    settings = started.pop("settings")
    config = started.pop("config")
    assert settings.console == "off"
    assert (config["seed"], config["model"]["name"]) == (11, "resnet10t")
    assert started == {
        "project": "p",
        "entity": None,
        "name": "digits-1",
        "tags": ["a", "b"],
        "mode": "offline",
        "id": None,
        "resume": "allow",
        "dir": str(tmp_path / "digits-1"),
    }
    assert first.pop("spread").sequence == [1.0, 2.0]
    assert (first, step) == ({"epoch": 1, "loss": 0.5}, 1)
    assert (second, step_again) == ({"epoch": 1, "val/accuracy": 0.25}, 1)
    assert finished == ("finish", {"stop_reason": "enough"})


def test_a_run_that_is_begun_again_in_its_folder_goes_on_under_the_same_id(
    calls: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    for folder in (tmp_path, tmp_path, tmp_path / "other"):
        Wandb().on_fit_start(make_run(folder))
    first, again, other = (arguments["id"] for _, arguments in calls)
    assert first is other is None
    assert again == (tmp_path / "wandb_id.txt").read_text().strip() != ""


def test_the_id_is_no_part_of_what_two_equal_runs_are_compared_by(
    calls: list[Any], tmp_path: Path
) -> None:
    plugin = Wandb()
    plugin.on_fit_start(make_run(tmp_path))
    assert plugin.state_dict() == Wandb().state_dict()


def test_pythons_random_stream_is_not_moved(calls: list[Any], tmp_path: Path) -> None:
    before = random.getstate()
    Wandb().on_fit_start(make_run(tmp_path))
    assert [name for name, *_ in calls] == ["init"]
    assert random.getstate() == before


@pytest.mark.parametrize("why", ["disabled", "not the writing rank"])
def test_nothing_is_started_where_nothing_is_wanted(
    calls: list[Any], tmp_path: Path, why: str
) -> None:
    plugin = Wandb(mode="disabled" if why == "disabled" else "offline")
    run = make_run(tmp_path if why == "disabled" else None)
    plugin.on_fit_start(run)
    plugin.on_log(Record(1, 0, {"loss": 0.5}))
    plugin.on_fit_end(run)
    assert calls == []


def test_a_missing_package_is_named_with_the_way_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trainkit_plugins.loggers.plugin.find_spec", lambda name: None)
    with pytest.raises(
        ValidationError, match=r"needs the package wandb.*pip install 'trainkit\[wandb\]'"
    ):
        Wandb()
    assert Wandb(mode="disabled").mode == "disabled"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"mode": "disabled"}, "disabled: sends and writes nothing"),
        ({}, "logs into wandb/ of the run folder, for `wandb sync`, project trainkit"),
        ({"mode": "online", "project": "p"}, "logs to the W&B server, project p"),
    ],
)
def test_plan_says_where_the_numbers_go(
    calls: list[Any], options: dict[str, Any], line: str
) -> None:
    assert Wandb(**options).explain(make_run(None)) == [line]
    assert calls == []


@pytest.mark.parametrize("options", [{"mode": "dryrun"}, {"project": ""}, {"tags": [1]}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        Wandb(**{"mode": "disabled"} | options)


def test_what_cannot_be_written_is_one_line(calls: list[Any], tmp_path: Path) -> None:
    plugin, run = Wandb(), make_run(tmp_path)
    (tmp_path / "wandb").write_text("in its way")
    with pytest.raises(WriteError, match=r"/wandb: cannot be written: File exists"):
        plugin.on_fit_start(run)
    (tmp_path / "wandb").unlink()
    plugin.on_fit_start(run)
    full = OSError(errno.ENOSPC, "No space left on device")
    failing(plugin, full)
    with pytest.raises(WriteError, match=r"/wandb: cannot be written: No space .* make room"):
        plugin.on_log(Record(1, 0, {"loss": 0.5}))
    with pytest.raises(WriteError, match=r"/wandb: cannot be written: No space"):
        plugin.on_fit_end(run)


def test_what_the_package_refuses_is_one_line(calls: list[Any], tmp_path: Path) -> None:
    plugin, run = Wandb(), make_run(tmp_path)
    plugin.on_fit_start(run)
    failing(plugin, sys.modules["wandb"].Error("the service has ended"))
    with pytest.raises(TrainingError, match=r"^wandb: the service has ended$"):
        plugin.on_log(Record(1, 0, {"loss": 0.5}))


def failing(plugin: Wandb, error: Exception) -> None:
    """Let everything that the plugin's run does fail."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    plugin._run.log = plugin._run.finish = fail
