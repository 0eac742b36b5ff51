"""Steps that the scaler of fp16 skips are logged, counted and said, and hide no bad number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field
from torch import nn

from tests.reference.spoilt import NAN, OFTEN, SGD, failed, saved
from tests.reference.tiny import train, with_plugins
from trainkit import Plugin, Run, hookimpl
from trainkit.checks.watch import IN_A_ROW
from trainkit.commands.verify import differences
from trainkit.errors import Interrupted
from trainkit.training.build import build
from trainkit.training.checkpoint import read_state
from trainkit.training.checkpointer import Checkpointer
from trainkit.training.loop import fit


class Overflows(Plugin):
    """Makes the gradients of some steps overflow in fp16, and spoils one behind the scaler's
    back.
    """

    steps: tuple[int, ...] = Field((), description="steps whose gradients overflow")
    behind: int = Field(0, description="step whose gradient is spoilt after unscaling")

    @hookimpl(wrapper=True)
    def compute_loss(self, run: Run) -> Any:
        loss = yield
        return loss * 1e38 if run.step + 1 in self.steps else loss

    @hookimpl
    def before_optimizer_step(self, model: nn.Module, run: Run) -> None:
        if run.step + 1 == self.behind:
            model.get_parameter("head.bias").grad[0] = NAN  # type: ignore[index]


FP16 = [*SGD, "train.precision=fp16"]


def skipped(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["fp16/skipped"] for line in lines if "fp16/skipped" in line]


def test_skipped_steps_are_logged_counted_and_said(tiny: Path, tmp_path: Path) -> None:
    run, checkpointer = train(with_plugins(tiny, FP16, Overflows(steps=(1, 2, 9))), tmp_path)
    assert [i + 1 for i, flag in enumerate(skipped(tmp_path)) if flag] == [1, 2, 9]
    assert checkpointer.watch.skipped == 3
    assert run.log.notes == [
        "fp16: 3 of 12 steps were skipped because gradients overflowed; the learning-rate schedule "
        "counts them"
    ]
    saved(tmp_path)


def test_where_none_is_skipped_nothing_is_said(tiny: Path, tmp_path: Path) -> None:
    class Small(Plugin):
        @hookimpl(wrapper=True)
        def compute_loss(self) -> Any:
            return (yield) * 1e-3

    run, _ = train(with_plugins(tiny, FP16, Small()), tmp_path)
    assert skipped(tmp_path) == [0] * 12
    assert run.log.notes == []


def test_a_run_that_never_steps_says_so(tiny: Path, tmp_path: Path) -> None:
    never = Overflows(steps=tuple(range(1, 100)))
    run, _ = train(with_plugins(tiny, [*FP16, "train.epochs=4"], never), tmp_path)
    assert [note.partition(":")[2] for note in run.log.notes] == [
        (
            f" the {IN_A_ROW} steps up to step 20 were all skipped, because gradients overflowed; "
            "bf16 has the range of fp32 (train.precision=bf16)"
        ),
        (
            " 24 of 24 steps were skipped because gradients overflowed; the learning-rate schedule "
            "counts them: no weight has moved"
        ),
    ]


def test_a_resumed_run_counts_on(tiny: Path, tmp_path: Path) -> None:
    def go(folder: Path, until: int | None) -> Run:
        folder.mkdir(exist_ok=True)
        setup = with_plugins(tiny, [*FP16, "train.epochs=4"], Overflows(steps=(1, *range(3, 24))))
        run = build(setup, folder)
        checkpointer = Checkpointer(folder, run)
        if (folder / "checkpoints" / "last.pt").exists():
            checkpointer.restore(run, read_state(folder / "checkpoints" / "last.pt"))
        try:
            fit(run, checkpointer, until=until)
        except Interrupted:
            assert run.step == until
        return run

    whole = go(tmp_path / "whole", None)
    for until in (2, 13, None):
        parts = go(tmp_path / "parts", until)
    assert whole.log.notes == parts.log.notes
    assert len(whole.log.notes) == 2
    states = [
        read_state(tmp_path / name / "checkpoints" / "last.pt") for name in ("whole", "parts")
    ]
    assert next(differences(*states), None) is None
    assert states[0]["watch"] == {"skipped": 22, "in_a_row": 0}


@pytest.mark.parametrize("at_once", [True, False])
def test_a_gradient_spoilt_after_unscaling_is_not_taken_for_a_skipped_step(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    monkeypatch.setattr("trainkit.checks.watch.at_hand", lambda device: at_once)
    spoils = Overflows(steps=(2,), behind=4)
    said = failed(tiny, tmp_path, ["train.precision=fp16", *OFTEN], spoils)
    assert said.startswith("the gradient of head.bias is nan at step 4 ")
    assert saved(tmp_path)["step"] == 3
