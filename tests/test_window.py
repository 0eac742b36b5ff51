"""The gradient of a whole window again: what it is, and that nobody sees that it was computed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import PrivateAttr
from torch import nn

from tests.reference.tiny import train, with_plugins
from trainkit import Batch, Plugin, Run, hookimpl
from trainkit.commands.verify import differences
from trainkit.errors import RecipeError
from trainkit.training.checkpoint import run_state
from trainkit.training.window import Window

SHORT = ["train.epochs=1", "scheduler.warmup_epochs=0"]
DROPOUT = "model={name: test_resnet, args: {drop_rate: 0.3, drop_path_rate: 0.1}}"
SETTINGS = {
    "plain": [],
    "accumulated": ["train.accumulate=3", "data.batch_size=2"],
    "bf16": ["train.precision=bf16", "train.accumulate=2"],
    "fp16": ["train.precision=fp16", "train.accumulate=2", "data.batch_size=2"],
    "mixed": ["plugins.mixup={}", "plugins.ema={}", "data.augment={}"],
}


class Again(Plugin):
    """Takes the window's gradient a second time where it is, and compares."""

    @hookimpl
    def before_optimizer_step(self, model: nn.Module, window: Window, run: Run) -> None:
        first = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        loss = window.differentiate()
        assert not loss.requires_grad
        for parameter, gradient in zip(model.parameters(), first, strict=True):
            assert (parameter.grad is None) == (gradient is None)
            if gradient is not None:
                # Infinite ones are compared as well: NaN is NaN in both or in neither.
                assert torch.equal(parameter.grad.nan_to_num(), gradient.nan_to_num())


class Draws(Plugin):
    """Draws in the loss from every stream there is, collects and logs."""

    _seen: list[float] = PrivateAttr(default_factory=list)

    @hookimpl(wrapper=True)
    def compute_loss(self, run: Run) -> Any:
        loss = yield
        own = torch.rand((), generator=self.generator())
        self._seen.append(float(own))
        run.log.record("draws/seen", len(self._seen))
        return loss * (1 + own + torch.rand(()))

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self._seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seen = state["seen"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_asked_for_where_the_parameters_are_it_is_the_same_and_the_run_too(
    tiny: Path, setting: str
) -> None:
    overrides = [DROPOUT, *SHORT, *SETTINGS[setting]]
    plain, _ = train(with_plugins(tiny, overrides, Draws()))
    again, _ = train(with_plugins(tiny, overrides, Draws(), Again()))
    states = [run_state(run) for run in (again, plain)]
    for state in states:
        del state["recipe"]
        state["plugins"].pop("Again", None)
        state["random"][0]["plugins"].pop("Again", None)
    assert next(differences(*states), None) is None


def test_at_other_parameters_it_is_the_gradient_of_the_mean_loss_there(tiny: Path) -> None:
    batches: list[Batch] = []
    steps = []

    class Double(Plugin):
        @hookimpl(wrapper=True)
        def build_model(self) -> Any:
            model = yield
            model.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
            return model.double()

        @hookimpl(wrapper=True)
        def prepare_batch(self) -> Any:
            batches.append((yield))
            return batches[-1]

    class Elsewhere(Plugin):
        @hookimpl
        def before_optimizer_step(self, model: nn.Module, window: Window, run: Run) -> None:
            parameters = list(model.parameters())
            with torch.no_grad():
                for p in parameters:
                    p.add_(0.01 * p.sign())
            value = window.differentiate()
            whole = Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
            batches.clear()
            loss = nn.functional.cross_entropy(model(whole.inputs), whole.targets)
            wanted = torch.autograd.grad(loss, parameters)
            torch.testing.assert_close(value, loss.detach(), rtol=1e-12, atol=0)
            for p, gradient in zip(parameters, wanted, strict=True):
                torch.testing.assert_close(p.grad, gradient, rtol=1e-11, atol=1e-14)
            steps.append(run.step)

    # 22 examples by 4 x 3: the last window has one micro-batch less, and that one has two examples.
    train(with_plugins(tiny, [*SHORT, "train.accumulate=3"], Double(), Elsewhere()))
    assert steps == [0, 1]


class Spoils(Plugin):
    """Makes one of the second step's two gradients something that is no number."""

    which: str
    _again: bool = PrivateAttr(default=False)
    _before: list[torch.Tensor] = PrivateAttr(default_factory=list)
    _moved: list[bool] = PrivateAttr(default_factory=list)

    @hookimpl
    def on_fit_start(self, run: Run) -> None:
        run.device.scaler.load_state_dict(
            run.device.scaler.state_dict() | {"scale": 1024.0}
        )  # nothing overflows

    @hookimpl(wrapper=True)
    def compute_loss(self, model: nn.Module, run: Run) -> Any:
        loss = yield
        if run.step != 1 or self._again != (self.which == "second"):
            return loss
        total = next(model.parameters()).sum()
        total.register_hook(lambda gradient: gradient * float("nan"))
        return loss + 0 * total

    @hookimpl
    def before_optimizer_step(self, model: nn.Module, window: Window) -> None:
        self._before = [p.detach().clone() for p in model.parameters()]
        self._again = True
        window.differentiate()
        self._again = False

    @hookimpl
    def after_optimizer_step(self, model: nn.Module) -> None:
        self._moved.append(
            any(
                not torch.equal(p, b) for p, b in zip(model.parameters(), self._before, strict=True)
            )
        )


@pytest.mark.parametrize("which", ["first", "second"])
def test_a_step_is_skipped_in_fp16_if_either_gradient_is_not_finite(tiny: Path, which: str) -> None:
    spoils = Spoils(which=which)
    fp16 = ["train.precision=fp16", "optimizer={name: sgd, lr: 0.1}", "scheduler={name: constant}"]
    run, _ = train(with_plugins(tiny, ["train.epochs=1", *fp16], spoils), until=3)
    assert spoils._moved == [True, False, True]
    assert run.device.scaler.get_scale() == 512  # reduced once


@pytest.mark.parametrize("asks", [False, True])
def test_batches_are_kept_only_where_somebody_asks_for_the_window(tiny: Path, asks: bool) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    counts = []

    class Counts(Plugin):
        @hookimpl(wrapper=True)
        def prepare_batch(self) -> Any:
            batch = yield
            batch = batch._replace(inputs=batch.inputs.clone())
            alive.append(weakref.ref(batch.inputs))
            return batch

        @hookimpl
        def before_optimizer_step(self) -> None:
            counts.append(sum(reference() is not None for reference in alive))

    class Asks(Plugin):
        @hookimpl
        def before_optimizer_step(self, window: Window) -> None: ...

    further = [Asks()] if asks else []
    train(with_plugins(tiny, [*SHORT, "train.accumulate=3"], Counts(), *further))
    assert counts == ([3, 3] if asks else [1, 1])  # and those of the step before are gone


MAML = """\
model: {name: conv4, in_chans: 1, args: {channels: 3}}
data: {name: digits, image_size: 16}
train: {epochs: 1, device: cpu}
plugins:
  maml: {ways: 3, max_shot: 3, queries: 2, tasks: 2, steps: 2, workers: 1, steps_per_epoch: 2,
    val_episodes: 2}
"""


@pytest.mark.parametrize("further", [[], ["plugins.maml.norm_statistics=per_step"]])
def test_of_a_window_of_tasks_it_is_the_same(
    write: Callable[..., Path], further: list[str]
) -> None:
    run, _ = train(with_plugins(write(MAML), further, Again()), until=2)
    assert run.step == 2


SAM = f"{Path(__file__).parents[1] / 'docs' / 'cookbook' / 'sam.py'}:SAM"
PULL = "  norm_bias: {with_weight_decay: true}\n"


def test_a_change_of_the_gradient_that_would_be_lost_is_refused(tiny: Path) -> None:
    tiny.write_text(f"{tiny.read_text()}{PULL}  {SAM}: {{}}\n")
    last = len(tiny.read_text().splitlines())
    said = rf"tiny\.yaml:{last}: plugins\.SAM: replaces the gradient by that at other parameters"
    with pytest.raises(RecipeError, match=said):
        train(with_plugins(tiny, SHORT), until=1)


def test_a_change_that_comes_later_is_kept(tiny: Path) -> None:
    tiny.write_text(f"{tiny.read_text()}  {SAM}: {{}}\n{PULL}")
    pulled, _ = train(with_plugins(tiny, SHORT), until=1)
    free, _ = train(with_plugins(tiny, [*SHORT, "plugins.norm_bias.coefficient=0"]), until=1)
    found = [
        (a.grad, b.grad)
        for a, b in zip(pulled.model.parameters(), free.model.parameters(), strict=True)
    ]
    assert any(a is not None and b is not None and not torch.equal(a, b) for a, b in found)
