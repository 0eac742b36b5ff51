"""More plugins that train wrongly: by what they keep between steps, and by what they tell."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from pydantic import PrivateAttr
from torch import Tensor, nn

from trainkit import History, Plugin, Run, Section, hookimpl

Yields = Generator[None, Any, Any]


class Broken(Plugin):
    """What they share: there is no paper."""

    citation: ClassVar[str] = ""
    fails: ClassVar[str]


class CountsForAll(Broken):
    """Anneals by a count of the class, set back where a run begins."""

    fails = "check_isolated"
    steps: ClassVar[list[int]] = []

    @hookimpl
    def on_fit_start(self, run: Run) -> None:
        if run.step == 0:
            self.steps.clear()

    @hookimpl(wrapper=True)
    def compute_loss(self) -> Yields:
        loss = yield
        self.steps.append(1)
        return loss * 0.9 ** len(self.steps)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": len(self.steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps[:] = [1] * state["steps"]


class PatchesTorch(Broken):
    """Changes all linear layers of the process, and never changes them back."""

    fails = "check_isolated"

    @hookimpl
    def on_fit_start(self) -> None:
        nn.Linear.forward = _half  # type: ignore[method-assign, assignment]


def _half(layer: nn.Linear, inputs: Tensor) -> Tensor:
    return nn.functional.linear(inputs, layer.weight, layer.bias) / 2


class RemembersTheFirst(Broken):
    """Pulls towards where training began, which it computes once for all runs."""

    fails = "check_isolated"
    began: ClassVar[list[Tensor]] = []

    @hookimpl
    def on_fit_start(self, run: Run) -> None:
        if not self.began:
            self.began.extend(p.detach().clone() for p in run.model.parameters())

    @hookimpl
    def before_optimizer_step(self, model: nn.Module) -> None:
        for parameter, began in zip(model.parameters(), self.began, strict=False):
            if parameter.grad is not None and parameter.shape == began.shape:
                parameter.grad.add_(parameter.detach() - began, alpha=0.1)


class ForgetsState(Broken):
    """Averages gradients over steps in memory only."""

    fails = "check_resume"
    _average: dict[str, Tensor] = PrivateAttr(default_factory=dict)

    @hookimpl
    def before_optimizer_step(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                average = self._average.setdefault(name, torch.zeros_like(parameter))
                parameter.grad = average.lerp_(parameter.grad, 0.5).clone()


class KeepsReferences(Broken):
    """Pulls towards where each epoch began, but keeps the parameters themselves instead of their
    values.
    """

    fails = "check_resume"
    _began: list[Tensor] = PrivateAttr(default_factory=list)

    @hookimpl
    def on_fit_start(self, run: Run) -> None:
        if not self._began:
            self._began = [p.data for p in run.model.parameters()]

    @hookimpl
    def before_optimizer_step(self, model: nn.Module, run: Run) -> None:
        apart = [
            (p.detach() - b).norm() for p, b in zip(model.parameters(), self._began, strict=True)
        ]
        run.log.record("apart", torch.stack(apart).sum())

    def state_dict(self) -> dict[str, Any]:
        return {"began": self._began}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._began = list(state["began"])


class CountsSaves(Broken):
    """Forgets on being asked for its state."""

    fails = "check_resume"
    _steps: int = PrivateAttr(default=0)

    @hookimpl(wrapper=True)
    def compute_loss(self) -> Yields:
        loss = yield
        self._steps += 1
        return loss / self._steps

    def state_dict(self) -> dict[str, Any]:
        steps, self._steps = self._steps, 0
        return {"steps": steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._steps = state["steps"]


class NeedsToHaveTrained(Broken):
    """Expects in validation what only the start of training makes."""

    fails = "check_kept_weights"
    _layers: list[nn.Module] = PrivateAttr()

    @hookimpl
    def on_fit_start(self, run: Run) -> None:
        self._layers = [
            module for module in run.model.modules() if isinstance(module, nn.BatchNorm2d)
        ]

    @hookimpl
    def on_evaluate_start(self, run: Run) -> None:
        run.log.record("layers", float(len(self._layers)))


class MeasuresOtherWeights(Broken):
    """Validates at a temperature that falls with the steps, of which the kept weights know
    nothing.
    """

    fails = "check_kept_weights"

    @hookimpl(wrapper=True)
    def evaluate_batch(self, run: Run) -> Yields:
        predictions = yield
        return predictions._replace(logits=predictions.logits * (1 + run.step))


class ExplainsByTrying(Broken):
    """Runs the model to say what it will do."""

    fails = "check_report"

    @hookimpl(wrapper=True)
    def compute_loss(self) -> Yields:
        loss = yield
        return loss / 2

    def explain(self, run: Run) -> list[str]:
        with torch.no_grad():
            output = run.model.train()(torch.zeros(4, *run.data.input_size))
        return [f"logits have a spread of {float(output.std()):.3g}"]


class ReportsOnlyLongRuns(Broken):
    """Draws a curve through its last logged value, which a run that was stopped early does not
    have.
    """

    fails = "check_report"

    @hookimpl(wrapper=True)
    def compute_loss(self) -> Yields:
        loss = yield
        return loss / 2

    def report(self, history: History) -> list[Section]:
        steps, losses = history.series("loss")
        figure = Figure()
        figure.subplots().plot(steps, losses)
        return [Section("Loss", f"It ended at {losses[-1]:.3g}.", figures=[figure])]
