"""A run that is made longer equals one that was so long from the start, bit for bit, or it is
refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.reference.tiny import with_plugins
from trainkit import Plugin, Run, hookimpl, resume, train
from trainkit.commands import session
from trainkit.commands.app import app
from trainkit.commands.verify import differences
from trainkit.errors import Interrupted, UserError
from trainkit.training.checkpoint import read_state

pytestmark = pytest.mark.usefixtures("no_report")
CONSTANT = ["scheduler={name: constant}"]
TO_BE_LONGER = {
    "constant": CONSTANT,
    "warm-up": ["scheduler={name: constant, warmup_epochs: 1}"],
    "milestones": ["scheduler={name: multistep, args: {decay_milestones: [1, 3]}}"],
    "decay": ["scheduler={name: step, args: {decay_epochs: 1, decay_rate: 0.5}}"],
    "between epochs": [
        "scheduler={name: step, interval: epoch, args: {decay_epochs: 1, decay_rate: 0.5}}"
    ],
    "plugins": [
        *CONSTANT,
        "plugins.ema={decay: 0.9}",
        "plugins.grad_clip={max_norm: 0.5}",
        "checkpoint.keep_best=2",
    ],
}


def trained(recipe: Path, folder: Path, overrides: Sequence[str]) -> Path:
    train(recipe, *overrides, run_dir=folder)
    return folder


def the_same(first: Path, second: Path) -> None:
    states = [read_state(folder / "checkpoints" / "last.pt") for folder in (first, second)]
    assert list(differences(*states)) == []
    for name in ("metrics.jsonl", "weights.safetensors", "recipe.yaml"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    told = [
        json.loads((folder / "summary.json").read_text()) | {"seconds": 0}
        for folder in (first, second)
    ]
    assert told[0] == told[1]


@pytest.mark.parametrize("name", TO_BE_LONGER)
def test_a_finished_run_made_longer_equals_a_long_one(
    tiny: Path, tmp_path: Path, name: str
) -> None:
    overrides = TO_BE_LONGER[name]
    whole = trained(tiny, tmp_path / "whole", [*overrides, "train.epochs=4"])
    longer = trained(tiny, tmp_path / "longer", [*overrides, "train.epochs=2"])
    resume(longer, "train.epochs=4")
    the_same(whole, longer)
    with pytest.raises(UserError, match="is finished after 24 steps"):
        resume(longer)


class Stops(Plugin):
    """Asks for the end after a step, once."""

    step: int

    @hookimpl
    def after_optimizer_step(self, run: Run) -> None:
        if run.step == self.step:
            raise KeyboardInterrupt


@pytest.fixture
def stopped_at(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that trains until a step at which the process is as good as killed."""

    def stop(step: int, *overrides: str) -> Path:
        with monkeypatch.context() as patch:
            patch.setattr(session, "compose", lambda p, o=(): with_plugins(p, o, Stops(step=step)))
            with pytest.raises((KeyboardInterrupt, Interrupted)):
                train(tiny, *overrides, run_dir=tmp_path / "stopped")
        return tmp_path / "stopped"

    return stop


@pytest.mark.parametrize("step", [5, 9])
def test_an_interrupted_run_is_made_longer_too(
    tiny: Path, tmp_path: Path, stopped_at: Callable[..., Path], step: int
) -> None:
    whole = trained(
        tiny, tmp_path / "whole", [*CONSTANT, "train.epochs=3", "checkpoint.every_steps=4"]
    )
    folder = stopped_at(step, *CONSTANT, "checkpoint.every_steps=4")
    # Killed between the new recipe and the next checkpoint, it goes on as the longer run.
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("epochs: 2", "epochs: 3"))
    resume(folder)
    the_same(whole, folder)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("{name: cosine}", r"the cosine schedule .* \(at step \d+ 0\.00\d+ in place of 0\.00\d+\)"),
        ("{name: poly}", "the poly schedule"),
        ("{name: tanh, warmup_epochs: 1}", "the tanh schedule"),
    ],
)
def test_a_schedule_that_looks_at_the_end_is_refused(
    tiny: Path, tmp_path: Path, schedule: str, rates: str
) -> None:
    folder = trained(tiny, tmp_path / "run", [f"scheduler={schedule}"])
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=rates) as caught:
        resume(folder, "train.epochs=4")
    assert str(caught.value).endswith("start a new run with train.epochs=4")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.epochs=1"], r"has train\.epochs=2; --resume can make a run longer, not shorter"),
        (["train.epochs=4", "optimizer.lr=0.1"], r"only train\.epochs can be set, to more"),
        (["seed=4"], r"only train\.epochs can be set, to more"),
        (["~plugins"], r"only train\.epochs can be set, to more"),
    ],
)
def test_other_changes_are_refused(
    tiny: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    folder = trained(tiny, tmp_path / "run", CONSTANT)
    with pytest.raises(UserError, match=message):
        resume(folder, *overrides)


def test_a_validation_that_would_not_have_been_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = trained(
        tiny, tmp_path / "run", [*CONSTANT, "train.epochs=3", "train.evaluate_every=2"]
    )
    with pytest.raises(
        UserError, match=r"validated after its last epoch, 3, and a longer run would not have"
    ):
        resume(folder, "train.epochs=5")
    other = trained(
        tiny, tmp_path / "other", [*CONSTANT, "train.epochs=2", "train.evaluate_every=2"]
    )
    resume(other, "train.epochs=4")
    whole = trained(
        tiny, tmp_path / "whole", [*CONSTANT, "train.epochs=4", "train.evaluate_every=2"]
    )
    the_same(whole, other)


def test_a_plugin_that_has_closed_the_run_is_respected(tiny: Path, tmp_path: Path) -> None:
    overrides = [*CONSTANT, "plugins.example_weighing={}", "model={name: test_resnet}"]
    folder = trained(tiny, tmp_path / "run", overrides)
    with pytest.raises(
        UserError, match="example_weighing has chosen alpha at the end of training; start a new run"
    ):
        resume(folder, "train.epochs=4")


def test_the_command_line_makes_a_run_longer(tiny: Path, tmp_path: Path) -> None:
    folder = trained(tiny, tmp_path / "run", CONSTANT)
    done = CliRunner().invoke(
        app, ["train", "--resume", str(folder), "train.epochs=3"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    assert json.loads((folder / "summary.json").read_text())["epochs"] == 3
    assert "epochs: 3" in (folder / "recipe.yaml").read_text()
    refused = CliRunner().invoke(
        app, ["train", "--resume", str(folder), "train.epochs=2"], catch_exceptions=False
    )
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1
