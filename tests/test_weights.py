"""Weights from files: read by their content, never run, fitted whole, and named where they do
not fit.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import trainkit_data.tabular.models  # noqa: F401 - registers mlp
from safetensors.torch import save_file
from torch import Tensor, nn

from trainkit import UserError, open_run
from trainkit.models.weights import load_weights, read_weights, start_from
from trainkit.training.build import build, compose

Write = Callable[..., Path]
State = dict[str, Tensor]


def model(classes: int = 10, in_chans: int = 1) -> nn.Module:
    torch.manual_seed(classes)
    made: nn.Module = timm.create_model(
        "mlp", num_classes=classes, in_chans=in_chans, img_size=8, hidden=(4,)
    )
    return made


def same(one: State, two: State) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def refusal(file: Path, do: Callable[[nn.Module, Path], object] = load_weights) -> str:
    with pytest.raises(UserError) as caught:
        do(model(), file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    return message.removeprefix(f"{file}: ")


def saved(value: Any, file: Path) -> Path:
    torch.save(value, file)
    return file


class Opens:
    """What runs code where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


# What is read.


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        lambda state: {"model": state, "optimizer": {"step": 3}},
        lambda state: {"state_dict": {n: t * 0 for n, t in state.items()}, "state_dict_ema": state},
        lambda state: {f"module.{n}": t for n, t in state.items()},
        lambda state: {f"_orig_mod.module.{n}": t for n, t in state.items()},
        lambda state: {"state_dict": {f"model.net.{n}": t for n, t in state.items()}},
        lambda state: {
            "n_averaged": torch.tensor(3),
            **{f"module.{n}": t for n, t in state.items()},
        },
    ],
    ids=["plain", "timm", "model", "averaged", "ddp", "compiled", "lightning", "swa"],
)
def test_weights_are_found_in_what_training_programs_write(
    tmp_path: Path, wrap: Callable[[State], Any]
) -> None:
    wanted, other = model(), model()
    nn.init.ones_(other.get_parameter("head.bias"))
    for load in (load_weights, start_from):
        load(other, saved(wrap(wanted.state_dict()), tmp_path / "x.pth"))
        assert same(other.state_dict(), wanted.state_dict())


def test_the_content_says_what_a_file_is(tmp_path: Path) -> None:
    state = model().state_dict()
    save_file(state, tmp_path / "x.pth")
    torch.save(state, tmp_path / "x.safetensors")
    assert same(read_weights(tmp_path / "x.pth"), state)
    assert same(read_weights(tmp_path / "x.safetensors"), state)


def test_weights_of_an_older_torch_are_read(tmp_path: Path) -> None:
    torch.save(model().state_dict(), tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    assert same(read_weights(tmp_path / "x.pth"), model().state_dict())


# What is refused.


def test_a_file_may_be_cut_off_within_any_name(tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    torch.save(model().state_dict(), file, _use_new_zipfile_serialization=False)
    content = file.read_bytes()
    start = content.index(b"ctorch._utils\n_rebuild_tensor_v2\n")
    for size in range(start, start + 36):
        file.write_bytes(content[:size])
        assert refusal(file).startswith("cannot be read as weights: it is cut off"), size


@pytest.mark.parametrize("share", [0.95, 0.5, 0.1, 0.01])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "pickle"])
def test_a_file_that_is_cut_off_is_named(tmp_path: Path, kind: str, share: float) -> None:
    state, file = model().state_dict(), tmp_path / "x.pth"
    if kind == "safetensors":
        save_file(state, file)
    else:
        torch.save(state, file, _use_new_zipfile_serialization=kind == "zip")
    content = file.read_bytes()
    file.write_bytes(content[: max(12, int(len(content) * share))])
    assert refusal(file).startswith("cannot be read as weights: it is cut off")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (
            b"<!DOCTYPE html><title>Not found</title>",
            "it is a web page, not the file that it should be",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1",
            "it is only the pointer to a file in Git LFS",
        ),
        (bytes(2000), "it begins with nothing but zeros"),
        (b"\x89HDF\r\n\x1a\n", "it is an HDF5 file"),
        (b"hello", "it is neither safetensors nor a file of torch.save"),
        (b"PK\x03\x04" + bytes(100), "it is cut off or damaged"),
        ((20).to_bytes(8, "little") + b'{"a": [1, 2, 3]}    ', "it is cut off or damaged"),
    ],
)
def test_a_file_of_another_kind_is_named_for_what_it_is(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    assert refusal(tmp_path / "x.pth").startswith(f"cannot be read as weights: {message}")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "it holds a list, not tensors with names"),
        (None, "it holds nothing, not tensors with names"),
        (torch.zeros(2, 3), "it holds one tensor of 2 x 3, not tensors with names"),
        ({}, "it holds no tensors (it is an empty mapping)"),
        ({"epoch": 3, "lr": 0.1}, "it holds no tensors (its keys are epoch, lr)"),
        ({"model": {"name": "resnet18"}}, "it holds no tensors (its keys are name)"),
    ],
)
def test_a_file_without_weights_says_what_it_holds(
    tmp_path: Path, value: Any, message: str
) -> None:
    assert refusal(saved(value, tmp_path / "x.pth")) == f"cannot be read as weights: {message}"


def test_nothing_in_a_file_runs(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for value, name in (
        ({"head.bias": Opens(trace)}, r"\w+.open"),
        (model(), "trainkit_data.tabular.models.Mlp"),
    ):
        message = (
            f"cannot be read as weights: beside tensors it holds {name}, and reading that could run"
            " code; where it "
        )
        for new in (True, False):
            torch.save(value, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
            assert re.fullmatch(f"{message}was written, save .*", refusal(tmp_path / "x.pth"))
    assert not trace.exists()


def test_a_program_is_no_weights(tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):  # which torch gives for this varies
        torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "x.pt")
    assert "it is a TorchScript program, not weights" in refusal(tmp_path / "x.pt")


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone.pth") == "there are no weights here"
    assert refusal(tmp_path) == "is a folder"
    save_file(model().state_dict(), tmp_path / "weights.safetensors")
    assert refusal(tmp_path) == "is a folder; name the weights.safetensors in it"
    assert refusal(Path("/dev/zero")) == "is no file but a device, a pipe or a socket"
    (tmp_path / "x.npz").write_bytes(b"PK")
    assert (
        refusal(tmp_path / "x.npz")
        == "cannot be read as weights: this model takes no weights of NumPy"
    )


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    state = model().state_dict()
    del state["layers.0.weight"]
    state["layers.9.weight"] = torch.zeros(1)
    state["layers.0.bias"] = torch.zeros(7)
    expected = (
        "these weights do not fit the model: Missing keys: layers.0.weight; unknown keys: "
        "layers.9.weight; other shapes: layers.0.bias (7 in the file, 4 here)"
    )
    for do in (load_weights, start_from):
        assert refusal(saved(state, file), do) == expected
    many = {f"block.{i}": torch.zeros(()) for i in range(9)}
    assert refusal(saved(many, file)).endswith("unknown keys: 0, 1, 2 and 6 more")
    before = model()
    with pytest.raises(UserError):
        load_weights(before, saved(state, file))
    assert same(before.state_dict(), model().state_dict())


# The classifier.


def test_a_model_starts_with_a_new_classifier_where_the_classes_differ(tmp_path: Path) -> None:
    file = saved(model(1000).state_dict(), tmp_path / "x.pth")
    assert "head.weight (1000 x 4 in the file, 10 x 4 here)" in refusal(file)
    started = model()
    assert start_from(started, file) == [
        f"the classifier head is new (1,000 classes in {file}, 10 here)"
    ]
    assert torch.equal(
        started.get_parameter("layers.0.weight"), model(1000).get_parameter("layers.0.weight")
    )
    assert torch.equal(started.get_parameter("head.weight"), model().get_parameter("head.weight"))


def test_weights_without_a_classifier_leave_a_new_one(tmp_path: Path) -> None:
    file = saved(model(0).state_dict(), tmp_path / "x.pth")
    assert start_from(model(), file) == [f"the classifier head is new ({file} has none)"]
    whole = saved(model().state_dict(), file)
    assert start_from(model(0), whole) == [
        f"the classifier head of {file} is left out: the model has none"
    ]


def test_a_classifier_that_differs_in_more_than_its_classes_is_a_misfit(tmp_path: Path) -> None:
    state = model(1000).state_dict() | {"head.weight": torch.zeros(1000, 5)}
    message = refusal(saved(state, tmp_path / "x.pth"), start_from)
    assert message.startswith(
        "these weights do not fit the model: other shapes: head.weight (1000 x 5 in the file"
    )


RECIPE = """\
model:
  name: mlp
  in_chans: 1
  args: {{hidden: [4]}}
  checkpoint: {file}
data: {{name: digits, image_size: 8}}
train: {{device: cpu}}
"""


def test_a_recipe_says_where_its_weights_are_wrong(write: Write, tmp_path: Path) -> None:
    file = saved([1], tmp_path / "x.pth")
    recipe = write(RECIPE.format(file=file))
    for do in (lambda: build(compose(recipe)), lambda: open_run(recipe)):
        with pytest.raises(UserError) as caught:
            do()
        assert (
            str(caught.value)
            == f"{recipe}:5: model.checkpoint: {file}: cannot be read as weights: it holds a list,"
            " not tensors with names"
        )


def test_a_recipe_notes_a_new_classifier_and_starts_from_the_rest(
    write: Write, tmp_path: Path
) -> None:
    wanted = model(7)
    run = build(compose(write(RECIPE.format(file=saved(wanted.state_dict(), tmp_path / "x.pth")))))
    assert run.log.notes == [
        f"the classifier head is new (7 classes in {tmp_path / 'x.pth'}, 10 here)"
    ]
    assert torch.equal(
        run.model.get_parameter("layers.0.weight"), wanted.get_parameter("layers.0.weight")
    )
