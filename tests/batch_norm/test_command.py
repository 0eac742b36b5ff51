"""`trainkit tune-bn`: what it prints, what it leaves, and how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.conftest import TINY_DATA
from trainkit.commands import app as cli
from trainkit.commands.session import start

RECIPE = f"""\
model: {{name: test_resnet}}
data: {{name: digits, image_size: 32, batch_size: 8}}
train: {{epochs: 1, device: cpu}}
plugins:
  {TINY_DATA}:TinyData: {{}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tuned")
    (place / "tiny.yaml").write_text(RECIPE)
    return start(place / "tiny.yaml", [], place / "run", []).folder


@pytest.fixture
def tune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that calls `trainkit tune-bn` and returns its exit code, output and
    error messages.
    """

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["trainkit", "tune-bn", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, " ".join(err.split())

    return call


def test_a_run_folder_is_tuned_and_its_weights_stay(folder: Path, tune: Any) -> None:
    before = (folder / "weights.safetensors").read_bytes()
    code, out, _ = tune(folder)
    assert code == 0
    assert "5 validation examples that choose (by nll)" in out
    assert "5 other validation examples" in out
    assert "against the model as it came: nll" in out
    facts = json.loads((folder / "tune-bn" / "tune-bn.json").read_text())
    assert facts["examples"] == [5, 5]
    assert facts["alpha"] in (min(facts["curve"], key=lambda point: point["nll"])["alpha"], 0.0)
    with Image.open(folder / "tune-bn" / "tune-bn.png") as picture:
        assert picture.width > 1000
    assert (folder / "weights.safetensors").read_bytes() == before
    assert not (folder / "tune-bn" / "weights.safetensors").exists()


def test_statistics_measured_anew_are_written_for_plain_timm(
    folder: Path, tune: Any, tmp_path: Path
) -> None:
    code, out, _ = tune(
        folder,
        "--reestimate",
        2,
        "--out",
        tmp_path / "here",
        "--json",
        "--alphas",
        "0.1",
        "--metric",
        "accuracy",
    )
    assert code == 0
    facts = json.loads(out)
    assert facts["reestimated_on"] == 16
    assert [point["alpha"] for point in facts["curve"]] == [0.0, 0.1]
    assert list(facts["stages"])[:2] == ["as it came", "statistics measured anew"]
    old, new = (
        load_file(folder / "weights.safetensors"),
        load_file(tmp_path / "here" / "weights.safetensors"),
    )
    changed = {name.rpartition(".")[2] for name in old if not torch.equal(old[name], new[name])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}
    timm.create_model(
        "test_resnet", num_classes=4, checkpoint_path=str(tmp_path / "here" / "weights.safetensors")
    )


def test_a_timm_model_with_weights_and_data(
    tmp_path: Path, tune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    torch.save(
        {"state_dict": timm.create_model("test_resnet", in_chans=1, num_classes=10).state_dict()},
        tmp_path / "w.pth",
    )
    monkeypatch.chdir(tmp_path)
    data = ["data.name=digits", "data.image_size=32", "model.in_chans=1", "data.val_fraction=0.01"]
    code, out, _ = tune("test_resnet", *data, "--weights", "w.pth", "--alphas", "0,0.5")
    assert code == 0
    assert "9 validation examples that choose" in out
    assert Path("tune-bn-test_resnet/tune-bn.json").is_file()


DIGITS = ("data.name=digits", "data.image_size=32", "model.in_chans=1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch"], "nosuch: is no run folder, no recipe and no model of timm"),
        (["test_resnet"], "command line: data: is required and not given"),
        (["test_resnet", *DIGITS], "never trained has nothing to tune; name a file with --weights"),
        (["test_resnet", *DIGITS, "--weights", "gone.pth"], "gone.pth: there are no weights here"),
        (
            ["RUN", "--alphas", "0,some"],
            "--alphas: '0,some' is no list of numbers such as 0,0.05,0.1",
        ),
        (["RUN", "--alphas", "0,2"], "--alphas: '0,2' has a number outside [0, 1]"),
        (["RUN", "--alphas", "nan"], "--alphas: 'nan' has a number outside [0, 1]"),
        (["RUN", "model.name=test_vit"], "these weights do not fit the model"),
        (["RUN", "--out", "/proc/nowhere"], "/proc/nowhere: cannot be written"),
        (["RUN", "--reestimate", "-1"], "Invalid value for '--reestimate'"),
        (["RUN", "--metric", "f1"], "Invalid value for '--metric'"),
        (
            ["RUN", f"plugins.{TINY_DATA}:TinyData.validation=1"],
            "1 example cannot be split into one half to tune on",
        ),
    ],
)
def test_what_cannot_be_tuned_is_said(
    folder: Path, tune: Any, arguments: list[str], message: str
) -> None:
    code, _, err = tune(*(folder if argument == "RUN" else argument for argument in arguments))
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_a_model_without_batch_norm_is_refused(tmp_path: Path, tune: Any) -> None:
    (tmp_path / "vit.yaml").write_text(RECIPE.replace("test_resnet", "test_vit"))
    torch.save(
        timm.create_model("test_vit", num_classes=4, img_size=32).state_dict(), tmp_path / "w.pth"
    )
    code, _, err = tune(
        tmp_path / "vit.yaml", "--weights", tmp_path / "w.pth", "--out", tmp_path / "out"
    )
    assert code == 2
    assert "VisionTransformer has no BatchNorm layer; it normalizes with" in err


def test_help_names_it_without_importing_torch() -> None:
    code = "import sys, trainkit.commands.app as c; sys.argv = ['trainkit', '--help']\n"
    code += "try: c.main()\nexcept SystemExit: pass\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "assert 'torch' not in sys.modules"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert any(line.startswith("  tune-bn ") for line in done.stdout.splitlines())
