"""What trains in an epoch: frozen parameters keep every bit, and a resumed run knows which they
were.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.reference.tiny import train, with_plugins
from trainkit import Plugin, Run, hookimpl
from trainkit.commands.verify import differences
from trainkit.errors import PluginError
from trainkit.training.build import build
from trainkit.training.checkpoint import read_state, run_state
from trainkit.training.checkpointer import Checkpointer
from trainkit.training.loop import fit

OPTIMIZERS = [
    "optimizer={name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 0.1}",
    "optimizer={name: adamw, lr: 0.01, weight_decay: 0.1}",
    "optimizer={name: lamb, lr: 0.01, weight_decay: 0.1}",
    "plugins.radam={}",
]


class HeadFirst(Plugin):
    """Trains the head alone in the first epoch."""

    @hookimpl(wrapper=True)
    def select_trainable(self, run: Run) -> Any:
        names = yield
        return [name for name in names if run.epoch or name.startswith("head")]


class Says(Plugin):
    """Says what trains."""

    answer: Any

    @hookimpl
    def select_trainable(self) -> Any:
        return self.answer


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_frozen_parameters_keep_every_bit_and_have_no_state(tiny: Path, optimizer: str) -> None:
    initial: dict[str, torch.Tensor] = {}
    at_the_end: list[tuple[dict[str, torch.Tensor], set[str]]] = []

    class Looks(Plugin):
        @hookimpl
        def before_optimizer_step(self, model: nn.Module, run: Run) -> None:
            if not initial:
                initial.update({name: p.detach().clone() for name, p in model.named_parameters()})
            has = {name for name, p in model.named_parameters() if p.grad is not None}
            assert has == (set(initial) if run.epoch else {"head.weight", "head.bias"})

        @hookimpl
        def on_epoch_end(self, run: Run) -> None:
            stateful = {n for n, p in run.model.named_parameters() if run.optimizer.state.get(p)}
            at_the_end.append(
                ({n: p.detach().clone() for n, p in run.model.named_parameters()}, stateful)
            )

    overrides = ["data.batch_size=8", "plugins.grad_clip={}", "plugins.ema={}", optimizer]
    train(with_plugins(tiny, overrides, HeadFirst(), Looks()))
    (first, held), (second, _) = at_the_end
    moved = {name for name in initial if not torch.equal(first[name], initial[name])}
    assert moved == held == {"head.weight", "head.bias"}
    assert all(
        not torch.equal(second[name], first[name]) for name in initial if name.endswith("weight")
    )


@pytest.mark.parametrize("until", [1, 3, 4])
def test_a_resumed_run_freezes_what_was_frozen(tiny: Path, tmp_path: Path, until: int) -> None:
    class Changes(HeadFirst):
        """Answers by a count that has moved on when the run resumes."""

        @hookimpl(wrapper=True)
        def select_trainable(self, run: Run) -> Any:
            names = yield
            return [name for name in names if run.step or name.startswith("head")]

    overrides = ["data.batch_size=8", "optimizer={name: sgd, lr: 0.1, momentum: 0.9}"]
    whole, _ = train(with_plugins(tiny, overrides, Changes()))
    train(with_plugins(tiny, overrides, Changes()), tmp_path, until=until)
    run = build(with_plugins(tiny, overrides, Changes()), tmp_path)
    checkpointer = Checkpointer(run.folder, run)
    checkpointer.restore(run, read_state(tmp_path / "checkpoints" / "last.pt"))
    trains = {name for name, p in run.model.named_parameters() if p.requires_grad}
    assert (trains == {"head.weight", "head.bias"}) == (until <= 3)
    fit(run, checkpointer)
    assert next(differences(run_state(run), run_state(whole)), None) is None


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            "head.weight",
            "plugin Says: select_trainable returned a str; it must be names of parameters",
        ),
        (
            [nn.Parameter(torch.zeros(1))],
            "plugin Says: select_trainable returned a list; it must be names",
        ),
        (3, "plugin Says: select_trainable returned a int; it must be names of parameters"),
        (
            ["head.weight", "haed.bias"],
            "select_trainable: haed.bias cannot train: the model has no such parameter",
        ),
        ([], "select_trainable: no parameter would train in epoch 1; leave some"),
    ],
)
def test_a_wrong_answer_is_refused(tiny: Path, answer: Any, said: str) -> None:
    with pytest.raises(PluginError) as caught:
        train(with_plugins(tiny, [], Says(answer=answer)))
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    "hook", ["on_fit_start", "on_epoch_start", "after_optimizer_step", "on_epoch_end"]
)
def test_freezing_by_hand_is_refused_with_the_right_way(tiny: Path, hook: str) -> None:
    def freeze(self: Plugin, run: Run) -> None:
        run.model.get_parameter("head.bias").requires_grad_(False)

    by_hand = type("ByHand", (Plugin,), {hook: hookimpl(freeze)})()
    with pytest.raises(
        PluginError, match=r"requires_grad of head\.bias was changed .* hook select_trainable"
    ):
        train(with_plugins(tiny, [], by_hand))


def test_a_parameter_that_is_frozen_from_the_start_cannot_be_chosen(tiny: Path) -> None:
    class Frozen(Plugin):
        @hookimpl(wrapper=True)
        def build_model(self) -> Any:
            model = yield
            model.get_parameter("cls_token").requires_grad_(False)
            return model

    run, _ = train(with_plugins(tiny, ["train.epochs=1", "scheduler.warmup_epochs=0"], Frozen()))
    names: Collection[str] = run.hook.select_trainable(model=run.model, run=run)
    assert "cls_token" not in names
    with pytest.raises(
        PluginError, match=r"cls_token cannot train: .* the optimizer does not hold it"
    ):
        train(with_plugins(tiny, [], Frozen(), Says(answer=[*names, "cls_token"])))
