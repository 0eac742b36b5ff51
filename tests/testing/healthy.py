"""Plugins that do things right which are easy to do wrong."""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated, Any, ClassVar

import torch
from matplotlib.figure import Figure
from pydantic import Field, PrivateAttr
from torch import Tensor, nn
from torch.optim import Optimizer

from trainkit import Batch, History, Plugin, Run, Section, hookimpl, moment
from trainkit.data.types import Data, Window

Yields = Generator[None, Any, Any]


class Noise(Plugin):
    """Adds noise to gradients, from its own generator."""

    citation: ClassVar[str] = (
        "@article{neelakantan2015noise, title = {Adding Gradient Noise}, year = {2015}}"
    )
    neutral: ClassVar[dict[str, Any]] = {"scale": 0.0}
    scale: float = Field(0.01, ge=0, description="standard deviation of the noise")

    @hookimpl
    def before_optimizer_step(self, model: nn.Module) -> None:
        for parameter in model.parameters():
            if parameter.grad is not None and self.scale > 0:
                noise = torch.randn(parameter.shape, generator=self.generator())
                parameter.grad.add_(noise, alpha=self.scale)


class Averages(Plugin):
    """Validates with averaged weights; keeps them in its state."""

    citation: ClassVar[str] = ""
    neutral: ClassVar[dict[str, Any]] = {"decay": 0.0}
    decay: float = Field(0.5, ge=0, lt=1, description="what an average keeps at each step")
    _average: list[Tensor] = PrivateAttr(default_factory=list)
    _own: list[Tensor] = PrivateAttr(default_factory=list)

    @hookimpl
    def on_fit_start(self, run: Run) -> None:
        if not self._average:
            self._average = [p.detach().clone() for p in run.model.parameters()]

    @hookimpl
    def after_optimizer_step(self, model: nn.Module) -> None:
        for average, parameter in zip(self._average, model.parameters(), strict=True):
            average.mul_(self.decay).add_(parameter.detach(), alpha=1 - self.decay)

    @hookimpl
    def on_evaluate_start(self, model: nn.Module) -> None:
        self._own = [p.detach().clone() for p in model.parameters()]
        if self._average:  # there is none where weights are measured that were kept
            self._put(model, self._average)

    @hookimpl
    def on_evaluate_end(self, model: nn.Module) -> None:
        self._put(model, self._own)

    @staticmethod
    @torch.no_grad()
    def _put(model: nn.Module, values: list[Tensor]) -> None:
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self._average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._average = list(state["average"])


class Watches(Plugin):
    """A monitor: logs how far the gradient turns, explains itself, and draws."""

    citation: ClassVar[str] = ""
    neutral: ClassVar[dict[str, Any]] = {}
    _before: Tensor | None = PrivateAttr(default=None)

    @hookimpl
    def before_optimizer_step(self, model: nn.Module, run: Run) -> None:
        gradient = torch.cat(
            [p.grad.detach().flatten() for p in model.parameters() if p.grad is not None]
        )
        if self._before is not None:
            run.log.record(
                "watches/cosine", nn.functional.cosine_similarity(gradient, self._before, dim=0)
            )
        self._before = gradient

    def state_dict(self) -> dict[str, Any]:
        return {"before": self._before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before = state["before"]

    def explain(self, run: Run) -> list[str]:
        return [f"watches {sum(p.numel() for p in run.model.parameters())} numbers"]

    def report(self, history: History) -> list[Section]:
        steps, values = history.series("watches/cosine")
        if not steps:
            return []
        figure = Figure()
        figure.subplots().plot(steps, values)
        return [Section("Turning", figures=[figure])]


class Writes(Plugin):
    """A monitor that only leaves a file in the run folder."""

    citation: ClassVar[str] = ""
    neutral: ClassVar[dict[str, Any]] = {}

    @hookimpl
    def on_fit_end(self, run: Run) -> None:
        if run.folder is not None:
            (run.folder / "parameters.txt").write_text(
                "\n".join(n for n, _ in run.model.named_parameters())
            )


class Momentum(Plugin):
    """Provides the optimizer; its options are numbers in a tuple and one that may be left out."""

    citation: ClassVar[str] = ""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.8, 0.9), description="momentum of layers with and without weight decay"
    )
    lr: float | None = Field(None, gt=0, description="learning rate; default: the recipe's")
    centre: float = Field(0.0, allow_inf_nan=False, description="any number: where decay pulls to")

    @hookimpl
    def build_optimizer(self, param_groups: list[dict[str, Any]], run: Run) -> Optimizer:
        for group, beta in zip(param_groups, self.betas, strict=False):
            group["momentum"] = beta
        return torch.optim.SGD(param_groups, lr=self.lr or run.peak_lr)


class TinyNet(Plugin):
    """Provides a model small enough to train in no time, with batch statistics and dropout."""

    citation: ClassVar[str] = ""

    @hookimpl
    def build_model(self, run: Run) -> nn.Module:
        channels, height, _ = run.data.input_size
        side = (height - 3) // 2 + 1
        return nn.Sequential(
            nn.Conv2d(channels, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(run.recipe.model.args.get("drop_rate", 0.0)),
            nn.Linear(8 * side * side, run.data.num_classes),
        )


class SpeaksHooks:
    """What `Speaks` publishes."""

    @moment
    def on_word(self, word: str, run: Run) -> None:
        """Moment: a word was said."""


class Speaks(Plugin):
    """Publishes a hook of its own, and logs."""

    citation: ClassVar[str] = ""
    hookspecs = SpeaksHooks

    @hookimpl
    def before_optimizer_step(self, run: Run) -> None:
        run.hook.on_word(word="step", run=run)  # type: ignore[attr-defined]
        run.log.record("speaks/words", 1.0)


class Listens(Plugin):
    """Acts on the hook of another plugin, without which it cannot be."""

    citation: ClassVar[str] = ""
    requires = ("Speaks",)

    @hookimpl
    def on_word(self, word: str, run: Run) -> None:
        run.log.record("listens/length", float(len(word)))


class Blobs(Plugin):
    """Provides data: two blobs of light, one class each, as a pure function of the recipe's
    seed.
    """

    citation: ClassVar[str] = ""
    strength: float = Field(2.0, gt=0, description="brightness of the blobs")

    @hookimpl
    def build_data(self, run: Run) -> Data:
        generator = torch.Generator().manual_seed(run.recipe.seed)
        targets = torch.arange(4) % 2
        inputs = torch.randn(5, 4, 1, 32, 32, generator=generator)
        inputs[:, targets == 1, :, :16] += self.strength
        batches = [Batch(image, targets) for image in inputs]
        return Data(Listed(batches[:3]), batches[3:], 2, (1, 32, 32), "blobs")


class Listed:
    """The same batches in every epoch."""

    def __init__(self, batches: list[Batch]) -> None:
        self.all, self.steps_per_epoch, self.examples_per_step = batches, len(batches), 4

    def window(self, epoch: int, position: int) -> Window:
        return Window((1.0,), 4)

    def batches(self, epoch: int, position: int) -> Any:
        return iter(self.all[position:])

    def describe(self, epoch: int, position: int) -> str:
        return f"batch {position}"
