"""Opening a run folder, a recipe or a timm model to measure it: what may be named, and with
which weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from tests.conftest import TINY_RECIPE
from trainkit import UserError, open_run
from trainkit.commands.session import start
from trainkit.training.checkpoint import read_state
from trainkit.training.loop import evaluate

DIGITS = ["data.name=digits", "model.in_chans=1", "data.image_size=32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("opened")
    (place / "tiny.yaml").write_text(TINY_RECIPE)
    return start(
        place / "tiny.yaml", ["checkpoint.metric=nll", "checkpoint.mode=min"], place / "run", []
    ).folder


def holds(run: object, wanted: dict[str, torch.Tensor]) -> bool:
    state = run.model.state_dict()  # type: ignore[attr-defined]
    return state.keys() == wanted.keys() and all(
        torch.equal(value, wanted[name]) for name, value in state.items()
    )


def test_a_run_folder_has_its_best_weights_its_last_or_any(folder: Path) -> None:
    best = load_file(folder / "weights.safetensors")
    assert holds(open_run(folder), best)
    assert holds(open_run(str(folder), weights="best"), best)
    assert holds(
        open_run(folder, weights="last"), read_state(folder / "checkpoints" / "last.pt")["model"]
    )
    assert holds(open_run(folder, weights=folder / "weights.safetensors"), best)
    assert evaluate(open_run(folder, ["data.batch_size=2"])) == pytest.approx(
        evaluate(open_run(folder, weights="best")), abs=1e-6
    )


def test_a_recipe_has_the_weights_that_it_says(folder: Path, write: Callable[..., Path]) -> None:
    path = write(TINY_RECIPE)
    best = load_file(folder / "weights.safetensors")
    assert not holds(open_run(path), best)
    assert holds(open_run(path, weights=folder / "weights.safetensors"), best)
    assert holds(open_run(path, [f"model.checkpoint={folder / 'weights.safetensors'}"]), best)


def test_a_timm_model_needs_only_data() -> None:
    run = open_run("test_resnet", DIGITS)
    assert run.recipe.model.name == "test_resnet"
    assert (
        run.model.state_dict().keys()
        == timm.create_model("test_resnet", in_chans=1).state_dict().keys()
    )
    assert run.data.num_classes == 10


def test_a_bundled_recipe_goes_by_its_name() -> None:
    assert open_run("digits").recipe.model.name == "resnet10t"


def test_what_cannot_be_opened_is_said(folder: Path, tmp_path: Path) -> None:
    def refusal(*arguments: object) -> str:
        with pytest.raises(UserError) as caught:
            open_run(*arguments)  # type: ignore[arg-type]
        return str(caught.value)

    assert "is no run folder, no recipe and no model of timm; did you mean 'resnet18'?" in refusal(
        "resnt18"
    )
    assert refusal(tmp_path / "gone.yaml").startswith(
        f"{tmp_path / 'gone.yaml'}: is no run folder, no recipe"
    )
    assert refusal(tmp_path) == f"{tmp_path}: is no run folder (there is no recipe.yaml in it)"
    assert refusal("test_resnet") == "command line: data: is required and not given"
    assert "command line `data.name=digit`" in refusal("test_resnet", ["data.name=digit"])
    assert "only the folder of a run has best weights" in refusal("test_resnet", DIGITS, "best")
    assert refusal(folder, [], "gone.pth") == "gone.pth: there are no weights here"
    wrong = folder / "weights.safetensors"
    assert f"{wrong}: these weights do not fit the model: Missing key" in refusal(
        "test_resnet", DIGITS, wrong
    )
    text = folder / "recipe.yaml"
    assert f"{text}: cannot be read as weights" in refusal("test_resnet", DIGITS, text)
