"""Checkpoints: always a whole one, refused when damaged, and a resumed run is one that never
stopped.
"""

from __future__ import annotations

import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pydantic import PrivateAttr
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from tests.reference.tiny import train, with_plugins
from trainkit import Batch, Plugin, Predictions, Run, hookimpl
from trainkit.commands.verify import differences
from trainkit.errors import Interrupted, UserError, WriteError
from trainkit.models.weights_file import save_weights
from trainkit.system.writes import atomically
from trainkit.training.build import Setup, build, compose
from trainkit.training.checkpoint import FORMAT, read_state, restore_run, run_state
from trainkit.training.checkpointer import Checkpointer
from trainkit.training.loop import fit

CONSTANT = ["scheduler.name=constant", "scheduler.warmup_epochs=0"]


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.pt"


# Written whole or not at all.


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def crash(part: Path) -> None:
        part.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomically(path, crash)
    assert path.read_text() == "old"
    atomically(path, lambda part: part.write_text("new"))
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_file_is_on_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    events = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), sync(fd))[1]
    )
    monkeypatch.setattr(
        Path, "replace", lambda self, to: (events.append("replace"), replace(self, to))[1]
    )
    atomically(tmp_path / "file", lambda part: part.write_text("x"))
    assert events == [str(tmp_path / ".file.part"), "replace", str(tmp_path)]


def test_a_crash_while_saving_a_run_leaves_the_last_checkpoint(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save
    writes = []

    def crash_at_the_third(state: dict[str, Any], part: Path) -> None:
        writes.append(state["step"])
        save(state, part)
        if len(writes) == 3:
            part.write_bytes(part.read_bytes()[:1000])
            raise OSError("disk full")

    monkeypatch.setattr(torch, "save", crash_at_the_third)
    with pytest.raises(WriteError, match="disk full"):
        train(with_plugins(tiny, ["checkpoint.every_steps=2"]), tmp_path)
    assert writes == [2, 4, 6]
    assert read_state(last(tmp_path))["step"] == 4


def test_checkpoints_come_when_the_recipe_says(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    monkeypatch.setattr(Checkpointer, "save", lambda self, run: saved.append((run.step, run.epoch)))
    train(with_plugins(tiny, ["checkpoint.every_steps=4"]))
    assert saved == [(4, 0), (6, 1), (8, 1), (12, 2)]


# Damaged files.


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "last.pt"
    torch.save(
        {"format": FORMAT, "tensor": torch.arange(5000.0), "nested": {"list": [1, 2.5, "x", None]}},
        path,
    )
    return path


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_state(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_a_checkpoint_cut_anywhere_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    assert read_state(saved)["nested"] == {"list": [1, 2.5, "x", None]}
    for size in range(0, len(whole), 211):
        saved.write_bytes(whole[:size])
        assert refused(saved).startswith("damaged, or not a checkpoint of trainkit (")


def test_a_flipped_bit_is_never_trained_on(saved: Path) -> None:
    whole, dice = saved.read_bytes(), random.Random(0)
    expected, refusals = read_state(saved), 0
    for _ in range(200):
        spoiled = bytearray(whole)
        spoiled[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
        saved.write_bytes(spoiled)
        try:
            state = read_state(saved)
        except UserError:
            refusals += 1
        else:  # the bit was in the padding, or in a name that nobody reads
            assert next(differences(state, expected), None) is None
    assert refusals > 150


def test_garbage_is_refused_whatever_it_looks_like(saved: Path) -> None:
    dice = random.Random(1)
    beginnings = [b"", b"PK\x03\x04", b"\x80\x02", b"ustar", b'{"format": 2}']
    for i in range(200):
        saved.write_bytes(beginnings[i % 5] + dice.randbytes(dice.randrange(200)))
        assert refused(saved).startswith("damaged, or not a checkpoint of trainkit (")


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.witness,)


def test_no_checkpoint_runs_code(saved: Path, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    torch.save({"format": FORMAT, "model": Bomb(witness)}, saved)
    assert "Weights only load failed" in refused(saved)
    saved.write_bytes(pickle.dumps(Bomb(witness)))
    assert refused(saved).startswith("damaged, or not a checkpoint of trainkit (")
    torch.save(
        {"format": FORMAT, "model": Bomb(witness)}, saved, _use_new_zipfile_serialization=False
    )
    assert refused(saved).startswith("damaged, or not a checkpoint of trainkit (")
    assert not witness.exists()


def test_other_files_are_refused(saved: Path, tmp_path: Path) -> None:
    assert (
        refused(tmp_path / "none.pt")
        == "there is no checkpoint here; start the run anew, or name another folder"
    )
    assert (
        refused(tmp_path)
        == "there is no checkpoint here; start the run anew, or name another folder"
    )
    for other in ({"format": 99}, {"model": {}}, [1, 2], torch.zeros(3)):
        torch.save(other, saved)
        assert refused(saved) == "not a checkpoint that this version of trainkit can read"
    with zipfile.ZipFile(saved, "w") as archive:
        archive.writestr("letter.txt", "hello")
    assert refused(saved).startswith("damaged, or not a checkpoint of trainkit (")


# Resuming.


class Restless(Plugin):
    """Draws, counts and adapts: has every kind of state a plugin can have."""

    _seen: int = PrivateAttr(default=0)
    _mean: torch.Tensor = PrivateAttr(default_factory=lambda: torch.zeros(3))

    @hookimpl
    def before_optimizer_step(self, model: nn.Module, run: Run) -> None:
        self._seen += 1
        noise = torch.randn(3, generator=self.generator())
        self._mean = self._mean.lerp(noise, 0.1)
        for parameter in model.parameters():
            parameter.grad.mul_(1 + 0.1 * self._mean.sum())  # type: ignore[union-attr]
        run.log.record("restless/mean", self._mean)
        run.log.record("restless/seen", self._seen)

    @hookimpl
    def on_epoch_start(self, run: Run) -> None:
        run.log.note(f"epoch {run.epoch} has begun")

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self._seen, "mean": self._mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seen, self._mean = state["seen"], state["mean"]


class Freeze(Plugin):
    """Puts a part of the model into evaluation mode for the rest of each epoch, from its third
    step on.
    """

    @hookimpl
    def after_optimizer_step(self, model: nn.Module, run: Run) -> None:
        if run.step % 6 == 3:
            model.layer1.eval()  # type: ignore[union-attr, operator]


DROPOUT = "model.args={drop_rate: 0.2, proj_drop_rate: 0.1, drop_path_rate: 0.1}"
RECIPES: dict[str, list[str]] = {
    "accumulate_bf16_dropout": [
        "train.accumulate=2",
        "data.batch_size=2",
        "train.precision=bf16",
        DROPOUT,
    ],
    "fp16_late": ["train.precision=fp16", "train.log_every=100", "train.evaluate_every=2"],
    "augment_workers": ["data.workers=2", "data.augment={}", DROPOUT],
    "batch_norm_augment": [
        "model={name: test_resnet, args: {drop_rate: 0.2}}",
        "data.augment={}",
        "train.channels_last=true",
    ],
    "sgd_wsd": ["optimizer={name: sgd, lr: 0.05}", "scheduler={name: wsd, warmup_epochs: 0.5}"],
    "lamb_step": [
        "optimizer={name: lamb, layer_decay: 0.7}",
        "scheduler={name: step, args: {decay_epochs: 1}}",
    ],
}


def continued(
    make: Callable[[], Setup], folder: Path, until: int | None
) -> tuple[Run, Checkpointer]:
    """Go on with the run in `folder`, as a new process would."""
    run = build(make(), folder)
    checkpointer = Checkpointer(run.folder, run)
    if last(folder).exists():
        checkpointer.restore(run, read_state(last(folder)))
    # A new process has drawn other numbers by now, and its modules are in other modes.
    try:
        fit(run, checkpointer, until=until)
    except Interrupted:
        assert run.step == until
    return run, checkpointer


def assert_same(one: Path, other: Path) -> None:
    assert next(differences(read_state(last(one)), read_state(last(other))), None) is None
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*") if path.is_file())
    assert names == sorted(
        str(path.relative_to(other)) for path in other.rglob("*") if path.is_file()
    )
    for name in names:
        if name != "checkpoints/last.pt":  # it holds how long the run took
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_stopped_after_every_step_is_one_that_never_stopped(
    tiny: Path, tmp_path: Path, name: str
) -> None:
    def make() -> Setup:
        plugins: list[Plugin] = [Restless(), Freeze()] if "batch_norm" in name else [Restless()]
        return with_plugins(tiny, RECIPES[name], *plugins)

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    run, _ = continued(make, whole, None)
    assert run.step >= 8
    # Starting workers takes a while: they are started at every third step only.
    for step in range(1, run.step + 1, 3 if "workers" in name else 1):
        continued(make, stopped, step)
    continued(make, stopped, None)
    assert_same(whole, stopped)


@pytest.mark.parametrize("at", [1, 6, 11])
def test_a_run_stopped_once_is_one_that_never_stopped(tiny: Path, tmp_path: Path, at: int) -> None:
    def make() -> Setup:
        return with_plugins(tiny, ["checkpoint.every_steps=1", DROPOUT], Restless())

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    continued(make, whole, None)
    continued(make, stopped, at)
    torch.manual_seed(99)
    continued(make, stopped, None)
    assert_same(whole, stopped)


def test_work_after_the_checkpoint_is_done_again_and_counted_once(
    tiny: Path, tmp_path: Path
) -> None:
    def make() -> Setup:
        return with_plugins(tiny, ["train.log_every=1"], Restless())

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    continued(make, whole, None)
    kept = {}

    class Killed(BaseException):
        pass

    class Kill(Plugin):
        @hookimpl
        def after_optimizer_step(self, run: Run) -> None:
            if run.step == 10:
                kept.update(log=(killed / "metrics.jsonl").read_text())
                raise Killed

    with pytest.raises(Killed):
        train(with_plugins(tiny, ["train.log_every=1"], Restless(), Kill()), killed)
    assert read_state(last(killed))["step"] == 6
    assert '"step": 9' in kept["log"]
    continued(make, killed, None)
    assert_same(whole, killed)


def test_a_checkpoint_needs_as_many_ranks_as_wrote_it(tiny: Path) -> None:
    run = build(compose(tiny))
    state = run_state(run)
    state["random"] = state["random"] * 2
    with pytest.raises(UserError) as caught:
        restore_run(run, state)
    assert (
        str(caught.value)
        == "the checkpoint is of a run on 2 rank(s), this is one on 1; an exact resume needs the"
        " same number"
    )


def test_a_state_is_independent_of_the_run_once_it_is_written(tiny: Path, tmp_path: Path) -> None:
    train(with_plugins(tiny, [], Restless()), tmp_path, until=4)
    state = read_state(last(tmp_path))
    assert state["step"] == 4
    assert state["plugins"]["Restless"]["seen"] == 4
    assert state["best"] == []
    assert state["log"]["notes"] == ["epoch 0 has begun"]
    assert state["frozen"] == []
    assert set(state["random"][0]["plugins"]["Restless"]) == {"cpu"}


# The best weights.


class Scores(Plugin):
    """Makes each validation come out as told, and the weights tell which it was."""

    scores: list[float]

    @hookimpl
    def on_evaluate_start(self, model: nn.Module, run: Run) -> None:
        with torch.no_grad():
            next(iter(model.parameters())).fill_(float(run.epoch))

    @hookimpl
    def evaluate_batch(self, batch: Batch, run: Run) -> Predictions:
        right = torch.arange(len(batch.targets)) < round(
            self.scores[run.epoch] * len(batch.targets)
        )
        shown = torch.where(right, batch.targets, (batch.targets + 1) % 4)
        return Predictions(nn.functional.one_hot(shown, 4).float(), batch.targets)


def best_of(tiny: Path, folder: Path, scores: list[float], *overrides: str) -> list[int]:
    """Return the epochs whose weights are kept, the best first, having looked into each file."""
    setup = with_plugins(
        tiny,
        [f"train.epochs={len(scores)}", "data.eval_batch_size=10", *overrides, *CONSTANT],
        Scores(scores=scores),
    )
    run, checkpointer = train(setup, folder)
    epochs = [entry["epoch"] for entry in checkpointer.outcome.best]
    names = sorted(path.name for path in (folder / "checkpoints").glob("best-*"))
    assert names == sorted(f"best-{epoch + 1:04d}.safetensors" for epoch in epochs)
    first = next(iter(dict(run.model.named_parameters())))
    for epoch in epochs:
        kept = load_file(folder / "checkpoints" / f"best-{epoch + 1:04d}.safetensors")
        assert kept[first].unique().tolist() == [float(epoch)]
    best = load_file(folder / "weights.safetensors")
    assert best[first].unique().tolist() == [float(epochs[0])]
    assert checkpointer.outcome.final["accuracy"] == pytest.approx(scores[-1])
    return epochs


@pytest.mark.parametrize(
    ("scores", "overrides", "kept"),
    [
        ([0.1, 0.5, 0.3], [], [1]),
        ([0.1, 0.5, 0.3], ["checkpoint.keep_best=2"], [1, 2]),
        ([0.1, 0.5, 0.3], ["checkpoint.keep_best=9"], [1, 2, 0]),
        ([0.9, 0.5, 0.7, 0.8], ["checkpoint.keep_best=2"], [0, 3]),
        ([0.4, 0.4, 0.4], ["checkpoint.keep_best=2"], [0, 1]),
        ([0.4, 0.2, 0.3], ["checkpoint.mode=min"], [1]),
        ([0.4, 0.9, 0.3, 0.5], ["train.evaluate_every=2", "checkpoint.keep_best=2"], [1, 3]),
    ],
)
def test_the_best_weights_are_kept_as_they_were_measured(
    tiny: Path, tmp_path: Path, scores: list[float], overrides: list[str], kept: list[int]
) -> None:
    assert best_of(tiny, tmp_path, scores, *overrides) == kept


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_metric_that_is_not_a_number_never_ranks_first(tiny: Path, mode: str) -> None:
    run = build(compose(tiny, [f"checkpoint={{mode: {mode}, keep_best: 3}}"]))
    checkpointer = Checkpointer(None, run)
    for epoch, value in enumerate([float("nan"), 0.3, float("nan"), 0.2]):
        run.epoch = epoch
        checkpointer.save_if_best(run, {"accuracy": value})
    assert [entry["epoch"] for entry in checkpointer.outcome.best] == (
        [1, 3, 0] if mode == "max" else [3, 1, 0]
    )


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_plain_timm_loads_the_weights(tiny: Path, tmp_path: Path, name: str) -> None:
    run, _ = train(
        with_plugins(tiny, [f"model.name={name}", "train.epochs=1", *CONSTANT]), tmp_path
    )
    size = {"img_size": 32} if name == "test_vit" else {}
    file = str(tmp_path / "weights.safetensors")
    model = timm.create_model(name, num_classes=4, checkpoint_path=file, **size).eval()
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(images), run.model.eval()(images))


def test_tied_and_strided_weights_are_saved_too(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[0].bias.data = torch.arange(6.0)[::2]
    save_weights(model, tmp_path / "weights.safetensors", {"model": "tied"})
    kept = load_file(tmp_path / "weights.safetensors")
    assert kept.keys() == model.state_dict().keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items())


def test_the_same_weights_make_the_same_file(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    metadata = {"model": "linear", "épreuve": "ü", "epoch": "3", "accuracy": "0.5"}
    files = []
    for _ in range(8):
        save_weights(model, tmp_path / "weights.safetensors", metadata)
        files.append((tmp_path / "weights.safetensors").read_bytes())
    assert len(set(files)) == 1
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", **metadata}
        assert torch.equal(file.get_tensor("weight"), model.weight)
