"""The command line: what it prints, what it leaves, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from typer.testing import CliRunner, Result

from trainkit.commands.app import app
from trainkit.config import bundled

SMALL = """model: {name: test_resnet, in_chans: 1}
data: {name: digits, image_size: 32, batch_size: 64}
train: {epochs: 1}
"""


def trainkit(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = trainkit("train", recipe, "--run-dir", folder)
    assert result.exit_code == 0, result.output
    assert f"{folder}/report.html" in result.output
    return folder


def test_a_run_leaves_its_files(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["steps"] == 23
    assert summary["final"]["accuracy"] == summary["best"]["value"]
    environment = json.loads((finished / "environment.json").read_text())
    assert torch.__version__.startswith(environment["packages"]["torch"])
    rows = (finished / "metrics.csv").read_text().splitlines()
    assert rows[0].startswith("step,epoch,loss,lr")
    assert len(rows) == 1 + 23 + 1
    assert "<html" in (finished / "report.html").read_text()


def test_plain_timm_loads_the_weights(finished):
    weights = finished / "weights.safetensors"
    model = timm.create_model(
        "test_resnet", in_chans=1, num_classes=10, checkpoint_path=str(weights)
    )
    state = torch.load(finished / "checkpoints" / "last.pt", weights_only=True)["model"]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("weights", ["best", "last"])
def test_eval_repeats_the_last_validation(finished, weights):
    result = trainkit("eval", finished, "--weights", weights, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == pytest.approx(
        json.loads((finished / "summary.json").read_text())["final"]
    )


def test_a_report_can_be_made_again(finished):
    before = (finished / "report.html").read_text()
    (finished / "report.html").unlink()
    assert trainkit("report", finished).exit_code == 0
    assert (finished / "report.html").read_text() == before


def test_plan_explains_the_run_as_json(recipe):
    result = trainkit("plan", recipe, "train.accumulate=2", "--json")
    plan = json.loads(result.stdout)
    assert plan["data"]["effective_batch_size"] == 128
    assert plan["data"]["steps"] == 12
    assert sum(group["parameters"] for group in plan["groups"]) == plan["model"]["trainable"]
    assert plan["model"]["from"] == f"{recipe}:1"
    assert [row["hook"] for row in plan["hooks"]][:2] == ["build_data", "build_model"]


def test_plan_for_people_names_lines(recipe, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    output = trainkit("plan", recipe).output
    assert "small.yaml:1" in output
    assert "matrices and kernels" in output


def bad(name: str, folder: Path) -> tuple[list[str | Path], str]:
    recipe = folder / "small.yaml"
    recipe.write_text(SMALL)
    full = folder / "full"
    full.mkdir()
    (full / "something").touch()
    corrupt = folder / "corrupt"
    (corrupt / "checkpoints").mkdir(parents=True)
    (corrupt / "recipe.yaml").write_text(SMALL)
    (corrupt / "checkpoints" / "last.pt").write_bytes(b"PK\x03\x04 not a checkpoint")
    cases: dict[str, tuple[list[str | Path], str]] = {
        "model": (
            ["train", recipe, "model.name=resnt18"],
            "has no model 'resnt18'; did you mean 'resnet18'?",
        ),
        "data": (
            ["train", recipe, "data={name: torch/cifar1, root: nowhere}"],
            "cannot open split 'train'",
        ),
        "files": (
            ["train", recipe, "data={name: folder, root: nowhere}"],
            "nowhere/train/<class>/",
        ),
        "plugin": (
            ["train", recipe, "plugins.emma={}"],
            "no plugin of this name is installed; did you mean 'ema'?",
        ),
        "option": (["train", recipe, "plugins.ema.decai=0.9"], "did you mean 'decay'?"),
        "value": (
            ["train", recipe, "plugins.ema.decay=2"],
            "plugins.ema.decay: should be less than",
        ),
        "override": (["train", recipe, "train.epochs"], "an override is `a.b=value`"),
        "remove": (["train", recipe, "~train.epoch"], "did you mean 'epochs'?"),
        "missing file": (["train", folder / "no.yaml"], "no.yaml: no such file"),
        "full folder": (["train", recipe, "--run-dir", full], "is not empty"),
        "unwritable": (["train", recipe, "--run-dir", "/proc/run"], "/proc/run: cannot be written"),
        "corrupt": (["train", "--resume", corrupt], "last.pt: damaged, or not a checkpoint"),
        "no run": (["train", "--resume", full], "is no run folder"),
        "both": (["train", recipe, "--resume", full], "only --resume DIR"),
        "eval": (["eval", full], "is no run folder"),
        "report": (["report", full], "is no run folder"),
        "metric": (
            ["train", recipe, "checkpoint.metric=f1"],
            "does not measure 'f1' (it measures: accuracy",
        ),
        "mode": (
            ["train", recipe, "checkpoint.metric=nll"],
            "less nll is better; set checkpoint.mode to min",
        ),
        "channels": (
            ["train", recipe, "model.in_chans=2"],
            "1 (grey) or 3 (colour) channels, the model takes 2",
        ),
        "model argument": (
            ["train", recipe, "model.args.depth_rate=1"],
            "timm cannot make test_resnet",
        ),
        "optimizer argument": (
            ["train", recipe, "optimizer.args.beta=1"],
            "does not take these arguments",
        ),
        "checkpoint": (
            ["train", recipe, "model.checkpoint=gone.pth"],
            "gone.pth: there are no weights here",
        ),
        "copy": (["recipes", "copy", "digts"], "did you mean 'digits'?"),
        "at": (
            ["verify-resume", recipe, "--at", "99"],
            "--at 99: must be at least 1 and less than",
        ),
        "steps": (
            ["verify-resume", recipe, "--at", "1", "--steps", "0"],
            "--at 1: must be at least 1 and less than the last step compared, 0",
        ),
        "more steps": (
            ["verify-resume", recipe, "--steps", "10000"],
            "--steps 10000: the run has ",
        ),
    }
    return cases[name]


BAD = [
    "model",
    "data",
    "files",
    "plugin",
    "option",
    "value",
    "override",
    "remove",
    "missing file",
    "full folder",
    "unwritable",
    "corrupt",
    "no run",
    "both",
    "eval",
    "report",
    "metric",
    "mode",
    "channels",
    "model argument",
    "optimizer argument",
    "checkpoint",
    "copy",
    "at",
    "steps",
    "more steps",
]


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_message_and_exit_code_2(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, message = bad(name, tmp_path)
    result = trainkit(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) == 1


def test_six_mistakes_get_six_messages_in_order(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(
        "model: {name: resnt18, in_chnas: 1}\n"
        "data: {name: digits, batch_size: 0}\n"
        "train: {epochs: ten}\n"
        "train: {epochs: 1}\n"
        "optimizer: {lr: -1}\n"
        "plugins:\n  emma: {}\n"
    )
    result = trainkit("train", path)
    assert result.exit_code == 2
    lines = result.stderr.strip().splitlines()
    starts = [line.removeprefix(f"error: {path}:").split(":")[0] for line in lines]
    assert starts == ["1", "1", "2", "3", "4", "5", "7"]


def test_a_bundled_recipe_goes_by_its_name_and_can_be_copied(tmp_path):
    assert "digits" in trainkit("recipes").output
    assert trainkit("recipes", "copy", "digits", "--to", tmp_path).exit_code == 0
    assert (tmp_path / "digits.yaml").read_bytes() == (
        bundled.folder() / "digits.yaml"
    ).read_bytes()
    assert trainkit("recipes", "copy", "digits", "--to", tmp_path).exit_code == 2


def test_schema_knows_core_and_every_plugin():
    schema = json.loads(trainkit("schema").stdout)
    assert "digits" in json.dumps(schema)
    assert "decay" in schema["properties"]["plugins"]["properties"]["ema"]["anyOf"][0]["properties"]


def test_plugins_lists_without_importing_and_shows_one():
    assert "ema" in trainkit("plugins").output
    assert "decay" in trainkit("plugins", "ema").output
    assert trainkit("plugins", "emma").exit_code == 2


def test_cite_prints_each_paper_once(recipe):
    output = trainkit("cite", recipe, "plugins.mixup={}", "plugins.ema={}").stdout
    assert output.count("rw2019timm") == 1
    assert output.count("@") >= 3


def test_verify_resume_says_that_nothing_differs(recipe):
    result = trainkit("verify-resume", recipe, "--at", "2", "--steps", "4")
    assert result.exit_code == 0
    assert "everything is the same, bit for bit, after step 4" in result.output


def test_ctrl_c_saves_and_the_run_goes_on(recipe, tmp_path):
    command = [
        sys.executable,
        "-m",
        "trainkit",
        "train",
        str(recipe),
        "train.epochs=3",
        "train.log_every=1",
    ]
    process = subprocess.Popen(
        [*command, "--run-dir", str(tmp_path / "run")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    log = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") > 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert f"trainkit train --resume {tmp_path}/run" in error.decode().replace("\n", "")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "interrupted"
    result = trainkit("train", "--resume", tmp_path / "run")
    assert result.exit_code == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 69


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_under_the_standard_output_is_one_line():
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "trainkit", "schema"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stderr == "error: the standard output cannot be written: make room on its disk\n"
