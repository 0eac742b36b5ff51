"""`trap_init`: a ReLU network that starts in a suboptimal local minimum, as a plugin."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import ClassVar

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from trainkit import Batch, History, Plugin, Run, Section, figure, hookimpl

from ..paper import CITATION
from .affine import Affine, embed_affine, fit_affine, gradient_norm, largest_curvature
from .network import evaluating, hidden_units, inputs_of, linear_layers
from .plots import draw_active, draw_losses

_ATTAINED = 1e-5
"""Gradient norm above which a fit is not at a minimum; one that is has 1e-9 or so."""


class TrapInit(Plugin):
    """Start a plain ReLU network at its best affine model, a local minimum that training does not
    leave.

    The affine model that minimises the recipe's loss on the training data is written into the
    network, with every unit positive on every example (Lemma 1 of the paper). Compare with the same
    recipe without the plugin.
    """

    citation: ClassVar[str] = CITATION
    # What it puts before the network comes first: the trap is set for inputs as the network sees
    # them.
    before: ClassVar[tuple[str, ...]] = ("sparsity_norm",)

    margin: float = Field(
        1.0,
        gt=0,
        le=1e6,
        allow_inf_nan=False,
        description=(
            "how far above zero every hidden unit is on every training example; more makes the trap"
            " wider and its walls steeper"
        ),
    )
    noise: float = Field(
        0.0,
        ge=0,
        le=1e6,
        allow_inf_nan=False,
        description="standard deviation of noise on every parameter: does it fall back?",
    )

    _examples: Batch | None = PrivateAttr(default=None)
    _affine: Affine | None = PrivateAttr(default=None)
    _lines: list[str] = PrivateAttr(default_factory=list)

    @hookimpl(wrapper=True)
    def build_model(self, run: Run) -> Generator[None, nn.Module, nn.Module]:
        """Fit the affine model and write it into the network."""
        model = (yield).to(run.device.torch)
        layers = linear_layers(model, ahead=("sparsity_norm",))
        if isinstance(layers, str):
            why = f"needs a plain ReLU network, and {run.recipe.model.name} {layers}; mlp is one"
            self.refuse(run, "", f"{self.name} {why}", section="model")
        self._examples = examples = self._read(run)
        inputs = inputs_of(layers[0], model, examples.inputs)
        self._affine = affine = self._fit(layers, inputs, examples, run)
        try:
            embed_affine(layers, affine.weight, affine.bias, inputs, self.margin)
        except ValueError as error:
            self.refuse(run, "args", f"{self.name}: {error}", section="model")
        parameters = [p for layer in layers for p in layer.parameters() if p.requires_grad]
        self._lines = self._describe(model, parameters, affine, examples, run)
        self._disturb(model)
        return model

    def _read(self, run: Run) -> Batch:
        """Return all training examples as one batch."""
        if run.device.world > 1:
            self.refuse(
                run,
                "",
                f"fits a model to all training data, and each of {run.device.world} ranks reads a "
                "part; train on one",
            )
        if getattr(run.recipe.data, "augment", None) is not None:
            self.refuse(
                run,
                "augment",
                f"{self.name} needs a finite set of training examples; leave augmentation out",
                section="data",
            )
        batches = [run.device.move(batch) for batch in run.data.train.batches(0, 0)]
        if not all(isinstance(batch, Batch) for batch in batches):
            self.refuse(run, "", f"{self.name} needs batches of inputs and targets", section="data")
        return Batch(
            torch.cat([b.inputs for b in batches]), torch.cat([b.targets for b in batches])
        )

    def _fit(self, layers: list[nn.Linear], inputs: Tensor, examples: Batch, run: Run) -> Affine:
        def loss(predictions: Tensor) -> Tensor:
            return run.hook.compute_loss(model=_Given(predictions), batch=examples, run=run)

        with run.untouched():
            affine = fit_affine(loss, inputs, layers[-1].out_features)
            # Where the minimum lies at infinity the gradient vanishes too, but a map twice as large
            # is better still.
            predictions = torch.addmm(affine.bias, inputs.double(), affine.weight.t())
            with torch.no_grad():  # as a loss that nothing is to be learned from
                attained = (
                    affine.gradient_norm < _ATTAINED and not loss(2 * predictions) < affine.loss
                )
        if not attained:
            self.refuse(
                run,
                "loss",
                f"{self.name} found no affine model that minimises it on these data (gradient norm "
                f"{affine.gradient_norm:.2g} in the end), most likely because planes separate the "
                "classes; set train.loss.smoothing=0.1, or give inputs that say less, such as a "
                "smaller data.image_size",
                section="train",
            )
        return affine

    def _describe(
        self,
        model: nn.Module,
        parameters: list[nn.Parameter],
        affine: Affine,
        examples: Batch,
        run: Run,
    ) -> list[str]:
        """Say how the network stands, before noise, as far as these parameters go."""
        loss = partial(run.hook.compute_loss, model=model, batch=examples, run=run)
        with run.untouched():
            slope, curvature = (
                gradient_norm(loss, parameters),
                largest_curvature(loss, parameters, iterations=30),
            )
        lr, bound = run.peak_lr, 2 / curvature
        lines = [
            (
                f"starts as the affine model of {len(examples.inputs):,} training examples: loss "
                f"{affine.loss:.6g}, gradient norm {slope:.2g}"
            ),
            (
                f"largest curvature {curvature:.4g}: plain gradient descent stays at learning rates"
                f" below {bound:.3g}"
            ),
        ]
        if lr > bound:
            lines.append(f"optimizer.lr is {lr:g}, above that: training may jump out")
        return lines

    def _disturb(self, model: nn.Module) -> None:
        if self.noise > 0:
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(self.noise * torch.randn(p.shape, generator=self.generator()).to(p))
            self._lines.append(
                f"then noise of standard deviation {self.noise:g} on every parameter"
            )

    @hookimpl
    def on_fit_start(self, run: Run) -> None:
        """Measure where training starts; it is logged with the first step."""
        if run.step == 0:
            self._measure(run)

    @hookimpl
    def on_epoch_end(self, run: Run) -> None:
        """Measure where training stands."""
        self._measure(run)

    def _measure(self, run: Run) -> None:
        if self._examples is None or self._affine is None:
            return
        with run.untouched(), torch.no_grad(), evaluating(run.model):
            loss = run.hook.compute_loss(model=run.model, batch=self._examples, run=run)
            units = hidden_units(run.model, self._examples.inputs)
        run.log.record("trap_init/loss", loss)
        run.log.record("trap_init/affine_loss", self._affine.loss)
        run.log.record("trap_init/active", units.active)

    def explain(self, run: Run) -> list[str]:
        """Say where the network starts, and at which learning rates it stays there."""
        return self._lines

    def report(self, history: History) -> list[Section]:
        """Plot the training loss against that of the affine model, and how much of the network
        is still affine.
        """
        steps, rows = history.together(
            "trap_init/loss", "trap_init/affine_loss", "trap_init/active"
        )
        if not rows:
            return []
        losses, affine, active = (list(column) for column in zip(*rows, strict=True))
        text = (
            f"The loss on the training data was {losses[0]:.6g} at the start and {losses[-1]:.6g} "
            f"at the end; that of the best affine model is {affine[-1]:.6g}. In the end "
            f"{active[-1]:.1%} of the hidden values were positive: while all are, the network is "
            "affine on the training data and cannot do better."
        )
        drawn, (left, right) = figure(1, 2)
        draw_losses(left, steps, losses, affine[-1])
        draw_active(right, steps, active)
        return [Section("Training from the affine model", text, [drawn])]


class _Given(nn.Module):
    """A model whose predictions are already there."""

    def __init__(self, predictions: Tensor) -> None:
        super().__init__()
        self._predictions = [predictions]  # in a list: they are no parameter

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the predictions, whatever the inputs."""
        return self._predictions[0]
