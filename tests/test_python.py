"""The front door in Python: it trains and plans as the command line does, and raises what that
says.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from io import StringIO
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import trainkit
from trainkit import Interrupted, RecipeError, Recorder, Run, UserError, hookimpl
from trainkit.commands.app import app
from trainkit.commands.plan import make_plan
from trainkit.commands.plan_page import show
from trainkit.commands.verify import differences
from trainkit.config.locations import read_yaml
from trainkit.report.progress import Progress
from trainkit.system.terminal import Terminal
from trainkit.training.checkpoint import run_state
from trainkit.training.loop import evaluate

ROOT = Path(__file__).parents[1]
Write = Callable[..., Path]


@pytest.fixture
def mapping(tiny: Path) -> dict[str, Any]:
    """The tiny recipe as nested mappings."""
    return read_yaml(tiny)[0]


@pytest.fixture(autouse=True)
def _no_plots(request: pytest.FixtureRequest) -> None:
    """Leave out the plots, which take longer than the training; one test looks at them."""
    if "command_line" not in request.node.name:
        request.getfixturevalue("no_report")


def files(folder: Path) -> dict[str, bytes]:
    """Return what a run wrote that depends neither on the time nor on its folder."""
    names = ("metrics.jsonl", "metrics.csv", "weights.safetensors")
    return {name: (folder / name).read_bytes() for name in names}


# Training.


def test_it_trains_as_the_command_line_does(tiny: Path, tmp_path: Path) -> None:
    result = trainkit.train(tiny, "seed=5", run_dir=tmp_path / "python")
    arguments = ["train", str(tiny), "seed=5", "--run-dir", str(tmp_path / "command")]
    said = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert said.exit_code == 0
    assert files(tmp_path / "python") == files(tmp_path / "command")
    first, last = (text.splitlines() for text in (str(result), said.stdout))
    assert [*first[1:-1]] == [line.rstrip() for line in last[-len(first) + 1 : -1]]


def test_mappings_train_as_the_file_does(
    tiny: Path, mapping: dict[str, Any], tmp_path: Path
) -> None:
    before = yaml.safe_dump(mapping)
    recipe = MappingProxyType({**mapping, "plugins": MappingProxyType(mapping["plugins"])})
    one = trainkit.train(recipe, "train.epochs=1", "scheduler={}", run_dir=tmp_path / "mapping")
    other = trainkit.train(tiny, "train.epochs=1", "scheduler={}", run_dir=tmp_path / "file")
    assert files(one.folder) == files(other.folder)
    assert (one.folder / "recipe.yaml").read_text() == (other.folder / "recipe.yaml").read_text()
    assert yaml.safe_dump(mapping) == before


def test_a_result_has_the_run_what_it_logged_and_what_was_measured(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder()
    result = trainkit.train(
        str(tiny), run_dir=str(tmp_path / "run"), observers=[recorder], progress=False
    )
    assert capsys.readouterr() == ("", "")
    assert result.metrics == evaluate(result.run)
    assert result.folder == tmp_path / "run"
    assert result.history.records == recorder.history.records == tuple(recorder.records)
    assert len(result.history.series("loss")[0]) == 12
    assert result.best["metric"] == "accuracy"
    assert result.best["value"] >= result.metrics["accuracy"]
    lines = str(result).splitlines()
    assert lines[0].startswith("finished · 12 steps · 2 epochs")
    assert lines[-1] == f"{result.folder}/report.html"
    assert f'href="{result.folder}/report.html"' in result._repr_html_()


def test_a_name_is_that_of_a_bundled_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert trainkit.plan("digits")["recipe"] == "recipes/digits.yaml"


# Mistakes.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"nam": "mlp"}}, "recipe: model.nam: there is no such option"),
        ({"train": {"epochs": "3"}}, 'recipe: train.epochs: should be a valid integer; got "3"'),
        ({"train": {"epochs": {1, 2}}}, "recipe: train.epochs: is a set; give text"),
        ({"train": {3: 4}}, "recipe: train: has the key 3; a key is text"),
        ({"seed": 10**100}, "recipe: seed: has more than a hundred digits"),
        ({"model": {"name": "a\0"}}, "recipe: model.name: has a character that is no text"),
        ({"extends": "none.yaml"}, "recipe: extends: there is no file"),
    ],
)
def test_a_mistake_in_a_mapping_is_named_by_its_key(
    mapping: dict[str, Any], change: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        trainkit.train({**mapping, **change})
    assert message in str(caught.value)


def test_a_mapping_that_holds_itself_is_refused(mapping: dict[str, Any]) -> None:
    mapping["train"]["itself"] = mapping
    with pytest.raises(RecipeError, match="recipe: train: holds more than any recipe does"):
        trainkit.plan(mapping)


def test_a_mistake_in_a_file_has_its_line(tiny: Path, tmp_path: Path) -> None:
    tiny.write_text(tiny.read_text().replace("epochs: 2", "epochs: two"))
    with pytest.raises(UserError, match=rf"{tiny.name}:4: train\.epochs: should be"):
        trainkit.train(tiny, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_mapping_can_extend_a_file(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.parent)
    plan = trainkit.plan({"extends": tiny.name, "train": {"epochs": 3}})
    assert plan["data"]["epochs"] == 3
    assert (plan["steps_from"], plan["model"]["from"]) == ("recipe", f"{tiny}:2")


# Stopping and going on.


class Stops:
    """Sends what Ctrl-C sends, after one step."""

    def __init__(self, step: int) -> None:
        self.step = step

    @hookimpl
    def after_optimizer_step(self, run: Run) -> None:
        if run.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupted_run_is_raised_and_goes_on(tiny: Path, tmp_path: Path) -> None:
    whole = trainkit.train(tiny, run_dir=tmp_path / "whole")
    with pytest.raises(Interrupted) as caught:
        trainkit.train(tiny, run_dir=tmp_path / "stopped", observers=[Stops(4)])
    assert caught.value.folder == tmp_path / "stopped"
    resumed = trainkit.resume(caught.value.folder)
    assert files(resumed.folder) == files(whole.folder)
    assert not list(differences(run_state(resumed.run), run_state(whole.run)))
    with pytest.raises(UserError, match="nothing to resume"):
        trainkit.resume(str(resumed.folder))


def test_a_run_can_be_made_longer(tiny: Path, tmp_path: Path) -> None:
    constant = ("scheduler={name: constant}", "checkpoint.keep_best=3")
    whole = trainkit.train(tiny, *constant, "train.epochs=3", run_dir=tmp_path / "whole")
    trainkit.train(tiny, *constant, run_dir=tmp_path / "run")
    longer = trainkit.resume(tmp_path / "run", "train.epochs=3")
    assert files(longer.folder) == files(whole.folder)


# Plans.


def test_a_plan_is_data_and_prints_as_the_page(tiny: Path) -> None:
    plan = trainkit.plan(tiny)
    assert plan == make_plan(tiny, [])
    page = StringIO()
    show(plan, Terminal(file=page, width=Terminal().width))
    assert str(plan) == page.getvalue().rstrip()


def test_the_front_door_opens_without_torch() -> None:
    code = (
        "import sys, trainkit; from trainkit import Recorder, UserError, plan, resume, train\n"
        "try: train({'seed': {1, 2}})\n"
        "except UserError: sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_module_hides_a_public_function() -> None:
    assert trainkit.plan is trainkit.commands.train.plan
    assert trainkit.train is trainkit.commands.train.train


# Notebooks.


class Widget:
    """Stands for ipywidgets' Output, which keeps what is displayed inside it."""

    made: list[Widget]

    def __init__(self) -> None:
        self.frames, self.closed = 0, False
        Widget.made.append(self)

    def __enter__(self) -> None:
        self.frames += 1

    def __exit__(self, *_: object) -> None:
        pass

    def clear_output(self, wait: bool) -> None:
        pass

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("widgets", [True, False])
def test_progress_is_drawn_in_a_notebook(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, widgets: bool
) -> None:
    shown: list[Any] = []
    notebook, display, ipywidgets = map(ModuleType, ("IPython", "IPython.display", "ipywidgets"))
    display.display = shown.append
    ipywidgets.Output = Widget
    ipywidgets.__spec__ = sys.__spec__
    Widget.made = []
    for module in (notebook, display, ipywidgets):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    if not widgets:
        monkeypatch.setitem(sys.modules, "ipywidgets", None)
    progress = Progress(Terminal(force_jupyter=True))
    trainkit.train(tiny, run_dir=tmp_path / "run", observers=[progress], progress=False)
    page = "".join(getattr(item, "html", "") for item in shown)
    assert page.count("step  6/12") == page.count("step 12/12") == 1
    assert [(widget.frames > 2, widget.closed) for widget in Widget.made] == [
        (True, True)
    ] * widgets


# The page.


def test_the_page_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)
    assert len(blocks) >= 6
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert len(set(names["accuracies"])) > 1
    assert names["recorder"].history.names[:1] == ["loss"]
