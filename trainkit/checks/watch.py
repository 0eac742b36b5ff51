"""Watches that no number which is not finite is trained on unseen, and that none reaches a file.

Nothing waits for the device: the sizes of a step's gradients stay there until the log is flushed,
which waits anyway. On a CPU, where they would cost one or two hundredths of a step, the next loss
tells: it is read at once, and weights that a step has spoilt are found before another step moves
them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainkit.checks.run_tensors import RunTensors, owned_by
from trainkit.checks.states import magnitudes
from trainkit.errors import PluginError, TrainingError
from trainkit.hooks.run import Run
from trainkit.log.records import Record

IN_A_ROW = 20
"""So many skipped steps one after the other are said at once, and not only at the end."""


def at_hand(device: torch.device) -> bool:
    """Return whether a number can be read without waiting for what else the device does."""
    return device.type == "cpu"


@dataclass
class _Step:
    """What is known of a step before its values are on the host."""

    step: int
    loss: Tensor
    before: str | None = None
    """What was wrong with the weights before the step, where its loss is not finite and they
    were looked at.
    """
    parameters: Sequence[Tensor] = ()
    sizes: Tensor | None = None
    """Of the gradient of each parameter."""
    skipped: Tensor | None = None


class Watch:
    """Follows one run from its first step on; the same on every rank.

    Args:
        run: the run, complete.

    Attributes:
        last_good: where the newest checkpoint is, in words.
        skipped: how many steps the scaler of fp16 has left out.
    """

    def __init__(self, run: Run) -> None:
        self.last_good = "none yet"
        self.skipped = 0
        self._in_a_row = 0
        self._run = run
        self._steps: list[_Step] = []
        self._scale: Tensor | None = None
        self._said: str | None = None
        self._is_at_hand = at_hand(run.device.torch)
        self._tensors = RunTensors(run)

    def note_loss(self, loss: Tensor) -> None:
        """Note the loss of the step that is under way."""
        step = _Step(self._run.step + 1, loss.detach())
        if self._is_at_hand and all(earlier.before is None for earlier in self._steps[-1:]):
            step.before = None if math.isfinite(step.loss) else self._spoilt_weights()
        self._steps.append(step)

    def note_gradients(self) -> None:
        """Note the gradients that the optimizer is about to use."""
        scaler, step = self._run.device.scaler, self._steps[-1]
        if not self._is_at_hand:
            self._measure(step)
        self._scale = scaler.scale(step.loss.new_ones(())) if scaler.is_enabled() else None

    def _measure(self, step: _Step) -> None:
        """Take the sizes of the gradients that the parameters have now."""
        parameters, gradients = [], []
        for parameter in owned_by(self._run.optimizer):
            if parameter.grad is not None and parameter.grad.numel():
                parameters.append(parameter)
                gradients.append(_values(parameter.grad))
        step.parameters = parameters
        if gradients:
            step.sizes = magnitudes(gradients)
            if step.skipped is not None:
                step.sizes = torch.where(step.skipped, 0.0, step.sizes)

    def note_step(self) -> None:
        """Note whether the step was taken, or left out because its gradients overflowed in fp16."""
        if self._scale is None:
            return
        scale, step = self._run.device.scaler.scale(torch.ones_like(self._scale)), self._steps[-1]
        step.skipped = (scale < self._scale) | (scale == 0)
        step.sizes = None if step.sizes is None else torch.where(step.skipped, 0.0, step.sizes)
        self._run.log.record("fp16/skipped", step.skipped)

    def look(self, records: Sequence[Record]) -> tuple[int, str] | None:
        """Return the first step that cannot have been right and what is wrong with it, now that
        the log is flushed.
        """
        if self._steps and self._steps[-1].sizes is None:
            self._measure(self._steps[-1])  # of the last step the gradients are still there
        steps, self._steps = self._steps, []
        self._count(steps)
        losses = {}
        for record in records:
            losses[record.step] = record.values.get("loss")
        fault = self._first(steps, losses)
        if not self._run.device.any(fault is not None):
            return None
        faults: list[tuple[int, str] | None] = self._run.device.gather(fault)
        step, self._said = min(filter(None, faults))
        return step, self._said

    def cause(self) -> str | None:
        """Return what was not finite before something else failed; looks at this rank alone."""
        if self._said is not None:
            return self._said
        if self._steps and self._steps[-1].sizes is None:
            self._measure(self._steps[-1])
        losses = {}
        for step in self._steps:
            losses[step.step] = float(step.loss)
        if fault := self._first(self._steps, losses):
            return fault[1]
        said = self._tensors.first_fault(self._tensors.of_model())
        if said is None:
            return None
        return self._spoiled(said)

    def admit(self, state: Mapping[str, Any], *, written: bool = True) -> None:
        """Refuse a state that must not be saved.

        Args:
            state: of `run_state`.
            written: whether it will be written, and must be readable then.

        Raises:
            PluginError: a part could be saved and not read back.
            TrainingError: a number in it is not finite.
        """
        unread = None
        if written:
            unread = self._tensors.unreadable(state)
        if said := self._agreed(unread):
            raise PluginError(said)
        self._refuse_not_finite(state)

    def admit_weights(self) -> None:
        """Refuse weights that must not be kept as best.

        Raises:
            TrainingError: a number in them is not finite.
        """
        self._refuse_not_finite({"model": self._run.model.state_dict()})

    def _refuse_not_finite(self, state: Mapping[str, Any]) -> None:
        fault = self._tensors.not_finite(state)
        if said := self._agreed(None if fault is None else self._spoiled(fault)):
            raise TrainingError(said)

    def sum_up(self) -> None:
        """Say at the end of a run how many steps the scaler left out."""
        if self.skipped:
            end = ""
            if self.skipped == self._run.step:
                end = ": no weight has moved"
            self._run.log.note(
                f"fp16: {self.skipped} of {self._run.step} steps were skipped because gradients "
                f"overflowed; the learning-rate schedule counts them{end}"
            )

    def state_dict(self) -> dict[str, int]:
        """Return what has been counted."""
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Put it back."""
        self.skipped, self._in_a_row = state.get("skipped", 0), state.get("in_a_row", 0)

    def _count(self, steps: Sequence[_Step]) -> None:
        flags = [step.skipped for step in steps if step.skipped is not None]
        for step, skipped in zip(steps, torch.stack(flags).tolist() if flags else (), strict=False):
            self.skipped += skipped
            self._in_a_row = self._in_a_row + 1 if skipped else 0
            if self._in_a_row == IN_A_ROW:
                self._run.log.note(
                    f"fp16: the {IN_A_ROW} steps up to step {step.step} were all skipped, because "
                    "gradients overflowed; bf16 has the range of fp32 (train.precision=bf16)"
                )

    def _first(self, steps: Sequence[_Step], losses: Mapping[int, Any]) -> tuple[int, str] | None:
        """Return the first step whose loss or gradient is not finite, and what to say of it."""
        bad = _spoilt(steps)
        for i, step in enumerate(steps):
            loss = losses.get(step.step)
            if isinstance(loss, float) and not math.isfinite(loss):
                if step.before:
                    return step.step - 1, step.before
                return step.step, self._message(step.step, f"the loss is {loss} at", "")
            if i == bad and step.sizes is not None:
                worst = int((~step.sizes.isfinite()).nonzero()[0])
                name, size = self._tensors.name_of(step.parameters[worst]), float(step.sizes[worst])
                what = f"the gradient of {name} is {size} at"
                return step.step, self._message(step.step, what, " while the loss is finite")
        return None

    def _spoilt_weights(self) -> str | None:
        """Return what is not finite in the weights that the step before this one left, and what
        to say of it.
        """
        said = self._tensors.first_fault(dict(self._run.model.named_parameters()), "became")
        if said is None or self._run.step == 0:
            return None
        return self._message(self._run.step, f"{said} at", " while the loss is finite")

    def _message(self, step: int, what: str, but: str) -> str:
        data = self._run.data.train
        epoch, position = divmod(step - 1, data.steps_per_epoch)
        return (
            f"{what} step {step} (epoch {epoch + 1}, batch {position}: "
            f"{data.describe(epoch, position)}){but}; last good checkpoint: {self.last_good}. "
            "Lower the learning rate, lengthen the warm-up, or clip gradients"
        )

    def _spoiled(self, what: str) -> str:
        return (
            f"{what} after step {self._run.step} (epoch {self._run.epoch + 1}); last good "
            f"checkpoint: {self.last_good}. Lower the learning rate, or look for what writes it: a "
            "division by zero, a root or logarithm of zero"
        )

    def _agreed(self, said: str | None) -> str | None:
        """Return what the first rank with something to say says: all must stop together."""
        if not self._run.device.any(said is not None):
            return None
        texts: list[str | None] = self._run.device.gather(said)
        self._said = next(filter(None, texts))
        return self._said


def _values(gradient: Tensor) -> Tensor:
    if gradient.layout == torch.strided:
        return gradient
    return gradient.coalesce().values()


def _spoilt(steps: Sequence[_Step]) -> int:
    """Return the place of the first step with a gradient that is not finite, or the number of
    steps.
    """
    places, sizes = [], []
    for place, step in enumerate(steps):
        if step.sizes is not None:
            places.append(place)
            sizes.append(step.sizes)
    if sizes and not bool(torch.cat(sizes).isfinite().all()):  # the one wait
        for place, size in zip(places, sizes, strict=True):
            if not bool(size.isfinite().all()):
                return place
    return len(steps)
