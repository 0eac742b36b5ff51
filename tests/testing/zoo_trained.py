"""Plugins that train wrongly, each in one way; `fails` names the check that must find it, and no
other may fail.
"""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Generator
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from trainkit import Plugin, Run, hookimpl

Yields = Generator[None, Any, Any]


class Broken(Plugin):
    """What they share: there is no paper."""

    citation: ClassVar[str] = ""
    fails: ClassVar[str]


class ReturnsNone(Broken):
    """Provides a loss and forgets to return it."""

    fails = "check_trains"

    @hookimpl
    def compute_loss(self, model: nn.Module, batch: Any) -> None:
        nn.functional.cross_entropy(model(batch.inputs), batch.targets)


class WrapsWithoutReturn(Broken):
    """Wraps the loss and forgets to return it."""

    fails = "check_trains"

    @hookimpl(wrapper=True)
    def compute_loss(self) -> Yields:
        loss = yield
        loss = 2 * loss


class Explodes(Broken):
    """Divides by the norm of a bias, which is zero at the start."""

    fails = "check_trains"

    @hookimpl(wrapper=True)
    def compute_loss(self, model: nn.Module) -> Yields:
        loss = yield
        norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        return loss / norm.bias.detach().norm()


class OnlyEvenBatches(Broken):
    """Pairs images within a batch."""

    fails = "check_short_batch"

    @hookimpl(wrapper=True)
    def prepare_batch(self) -> Yields:
        batch = yield
        first, second = batch.inputs.chunk(2)
        return batch._replace(inputs=torch.cat([first, (first + second) / 2]))


class KeepsTheGraph(Broken):
    """Adds half of the loss before, graph and all: its second backward pass fails within a
    window.
    """

    fails = "check_accumulation"
    _before: Tensor | None = PrivateAttr(default=None)

    @hookimpl(wrapper=True)
    def compute_loss(self) -> Yields:
        loss = yield
        total = 0.5 * loss if self._before is None else loss + 0.5 * self._before
        self._before = loss
        return total

    @hookimpl
    def after_optimizer_step(self) -> None:
        self._before = None


class NeedsFloat32(Broken):
    """Measures activations with NumPy, which has no bfloat16."""

    fails = "check_bf16"

    @hookimpl(wrapper=True)
    def compute_loss(self, model: nn.Module, run: Run) -> Yields:
        seen: list[Any] = []
        layer = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
        handle = layer.register_forward_hook(
            lambda module, inputs, output: seen.append(output.detach().numpy())
        )
        try:
            loss = yield
        finally:
            handle.remove()
        run.log.record("activation", float(np.abs(seen[-1]).mean()))
        return loss


class NeedsEveryGradient(Broken):
    """Shrinks the gradient of every parameter, as if each had one."""

    fails = "check_missing_gradients"

    @hookimpl
    def before_optimizer_step(self, model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.grad.mul_(0.5)  # type: ignore[union-attr]


class DoesNothing(Broken):
    """Looks for layers that the model does not have."""

    fails = "check_effect"
    neutral: ClassVar[dict[str, Any]] = {"size": 8}
    size: int = Field(4, ge=1, description="images in a ghost batch")

    @hookimpl(wrapper=True)
    def build_model(self) -> Yields:
        model = yield
        for module in model.modules():
            if isinstance(module, nn.SyncBatchNorm):
                module.momentum = 1 / self.size
        return model


class SilentMonitor(Broken):
    """Measures, and keeps it to itself."""

    fails = "check_effect"
    neutral: ClassVar[dict[str, Any]] = {}

    @hookimpl
    def before_optimizer_step(self, model: nn.Module) -> None:
        sum(float(p.grad.norm()) for p in model.parameters() if p.grad is not None)


class AlmostNeutral(Broken):
    """Adds a penalty; with strength 0 it still multiplies the loss by a number near 1."""

    fails = "check_neutral"
    neutral: ClassVar[dict[str, Any]] = {"strength": 0.0}
    strength: float = Field(0.1, ge=0, description="what the penalty counts")

    @hookimpl(wrapper=True)
    def compute_loss(self, model: nn.Module) -> Yields:
        loss = yield
        return loss * (1 + 1e-6) + self.strength * sum(p.square().sum() for p in model.parameters())


class NeutralOnlyInFloat32(Broken):
    """With scale 1 it is neutral, but it switches autocast off."""

    fails = "check_neutral"
    neutral: ClassVar[dict[str, Any]] = {"scale": 1.0}
    scale: float = Field(2.0, gt=0, description="what the loss is multiplied by")

    @hookimpl
    def compute_loss(self, model: nn.Module, batch: Any, run: Run) -> Tensor:
        with run.device.autocast(enabled=False):
            return self.scale * nn.functional.cross_entropy(model(batch.inputs), batch.targets)


class MovesStatistics(Broken):
    """A monitor whose extra forward pass moves the running statistics of batch normalisation."""

    fails = "check_invisible"
    neutral: ClassVar[dict[str, Any]] = {}

    @hookimpl
    def after_optimizer_step(self, model: nn.Module, batch: Any, run: Run) -> None:
        with torch.no_grad():
            run.log.record("spread", model(batch.inputs).std())


class ScalesGradients(Broken):
    """A monitor that unscales gradients for its own use and leaves them so."""

    fails = "check_invisible"
    neutral: ClassVar[dict[str, Any]] = {}

    @hookimpl
    def before_optimizer_step(self, model: nn.Module, run: Run) -> None:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(2)
        run.log.record("halved", 1.0)


class DrawsFromTorch(Broken):
    """Adds noise to gradients from torch's global stream."""

    fails = "check_streams"

    @hookimpl
    def before_optimizer_step(self, model: nn.Module) -> None:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.add_(torch.randn_like(parameter), alpha=0.01)


class DrawsFromNumpy(Broken):
    """Mixes with a weight from NumPy's global stream."""

    fails = "check_streams"

    @hookimpl(wrapper=True)
    def compute_loss(self) -> Yields:
        loss = yield
        return loss * np.random.beta(2, 2)


class DrawsFromPython(Broken):
    """Drops a step's gradients at random, by Python's global stream."""

    fails = "check_streams"

    @hookimpl
    def before_optimizer_step(self, model: nn.Module) -> None:
        if random.random() < 0.5:
            model.zero_grad(set_to_none=False)


class KeepsADeque(Broken):
    """Has state that only pickle can hold."""

    fails = "check_state"
    _losses: deque[float] = PrivateAttr(default_factory=lambda: deque(maxlen=3))

    @hookimpl
    def after_optimizer_step(self, loss: Tensor, run: Run) -> None:
        self._losses.append(float(loss))
        run.log.record("smooth", sum(self._losses) / len(self._losses))

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self._losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._losses.extend(state["losses"])


class KeepsAFunction(Broken):
    """Has state that nothing can hold."""

    fails = "check_state"

    @hookimpl
    def before_optimizer_step(self, model: nn.Module, run: Run) -> None:
        run.log.record("parameters", float(len(list(model.parameters()))))

    def state_dict(self) -> dict[str, Any]:
        return {"schedule": lambda step: 0.5**step}


class AsksTheMachine(Broken):
    """Seeds its own generator from the operating system."""

    fails = "check_repeatable"
    _own: Any = PrivateAttr(default_factory=lambda: random.Random(os.urandom(8)))

    @hookimpl(wrapper=True)
    def compute_loss(self) -> Yields:
        loss = yield
        return loss * self._own.uniform(0.5, 1.5)


COUNTS = {"steps": 0}


class CountsForEver(Broken):
    """Anneals by a count of the module, which goes on from one run to the next."""

    fails = "check_repeatable"

    @hookimpl(wrapper=True)
    def compute_loss(self) -> Yields:
        loss = yield
        COUNTS["steps"] += 1
        return loss * 0.9 ** COUNTS["steps"]
