"""`ema`: timm's ModelEmaV3 as a plugin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr, model_validator

from trainkit import Batch, Plugin, Run, hookimpl

from .exchange import Values, exchange
from .statistics import average_statistics, batch_norms

if TYPE_CHECKING:
    from torch import Tensor, nn


class Ema(Plugin):
    """Validate and keep an exponential moving average of the weights.

    average <- decay * average + (1 - decay) * weights after every step, by timm's ModelEmaV3.
    Training itself does not change; validation and the weights that are kept use the average.
    """

    citation: ClassVar[str] = """\
@article{polyak1992acceleration,
  title={Acceleration of stochastic approximation by averaging},
  author={Polyak, Boris T. and Juditsky, Anatoli B.},
  journal={SIAM Journal on Control and Optimization},
  volume={30},
  number={4},
  pages={838--855},
  year={1992}
}"""
    neutral: ClassVar[dict[str, Any]] = {"decay": 0.0, "buffers": "copy"}

    decay: float = Field(
        0.9998, ge=0, lt=1, description="share of the old average that a step keeps, once warmed up"
    )
    warmup: bool = Field(
        True,
        description=(
            "start at decay 0 and approach `decay`: 1 - (1 + step/warmup_gamma)^-warmup_power"
        ),
    )
    warmup_gamma: float = Field(
        1.0, allow_inf_nan=False, gt=0, description="steps over which the warm-up stretches"
    )
    warmup_power: float = Field(
        2 / 3,
        allow_inf_nan=False,
        gt=0,
        description="how fast it approaches; 1 with warmup_gamma 1 is the plain mean of all steps",
    )
    min_decay: float = Field(0.0, ge=0, lt=1, description="lowest decay while warming up")
    start_step: int = Field(
        0, ge=0, description="steps during which the average just follows the weights"
    )
    buffers: Literal["copy", "average", "recompute"] = Field(
        "average",
        description=(
            "batch-norm statistics of the average: the trained model's own; their average; or "
            "measured with the averaged weights before each validation"
        ),
    )
    recompute_batches: int = Field(
        50, ge=1, description="recompute: training batches per rank on which to measure them"
    )

    _live: Values | None = PrivateAttr(default=None)
    _ema: Any = PrivateAttr(default=None)
    _updates: int = PrivateAttr(default=0)
    _saved: dict[str, Any] = PrivateAttr(default_factory=dict)
    _statistics: dict[str, Tensor] = PrivateAttr(default_factory=dict)
    _exchanged: bool = PrivateAttr(default=False)

    @model_validator(mode="after")
    def _check(self) -> Ema:
        if self.min_decay > self.decay:
            raise ValueError(
                f"min_decay {self.min_decay} is above decay {self.decay}; lower it, or raise decay"
            )
        return self

    def _average_of(self, values: nn.Module) -> Any:
        from timm.utils.model_ema import ModelEmaV3

        return ModelEmaV3(
            values,
            decay=self.decay,
            min_decay=self.min_decay,
            update_after_step=self.start_step,
            use_warmup=self.warmup,
            warmup_gamma=self.warmup_gamma,
            warmup_power=self.warmup_power,
        )

    @hookimpl
    def on_fit_start(self, run: Run) -> None:
        """Begin with the weights as they are, or with the average that was saved."""
        self._live = Values(run.model, buffers=self.buffers == "average")
        self._ema = self._average_of(self._live)
        if self._saved:
            self._updates = self._saved["updates"]
            self._ema.module.restore(self._saved["average"])
            self._saved = {}

    @hookimpl
    def after_optimizer_step(self, run: Run) -> None:
        """Move the average."""
        self._updates += 1
        decay = self._ema.get_decay(self._updates)
        if decay == 0.0:
            # Interpolating by a weight of 1 turns -0.0 into 0.0 here and there; a copy is the
            # weights bit for bit.
            self._ema.set(self._live)
        else:
            self._ema.update(self._live, step=self._updates)
        run.log.record("ema/decay", decay)

    @hookimpl
    def on_evaluate_start(self, model: nn.Module, run: Run) -> None:
        """Put the average into the model."""
        if self._live is None or self._exchanged:
            return
        if not self._live.holds(run.model):
            raise ValueError(
                "ema: some parameters or buffers of the model were replaced after training began, "
                "so their average is of tensors that the model no longer has; write into them in "
                "place instead"
            )
        exchange(self._live, self._ema.module)
        self._exchanged = True
        if self.buffers == "recompute":
            self._recompute(run)

    @hookimpl
    def on_evaluate_end(self, model: nn.Module, run: Run) -> None:
        """Put the trained weights and statistics back, bit for bit."""
        if not self._exchanged or self._live is None:
            return
        exchange(self._live, self._ema.module)
        self._exchanged = False
        for name, buffer in run.model.named_buffers():
            if name in self._statistics:
                buffer.copy_(self._statistics[name])
        self._statistics = {}

    def _recompute(self, run: Run) -> None:
        import torch

        layers = [
            layer for layer in batch_norms(run.model) if layer.training
        ]  # frozen ones stay as they are
        own = {id(b) for layer in layers for b in layer.buffers(recurse=False)}
        mine = {name: b for name, b in run.model.named_buffers() if id(b) in own}
        self._statistics = {name: b.clone() for name, b in mine.items()}
        # Compiled code would be compiled anew for the momentum of every batch.
        compiled = run.recipe.train.compile
        with (
            run.device.autocast(),
            torch.compiler.set_stance("force_eager") if compiled else nullcontext(),
        ):
            average_statistics(run.model, self._inputs(run), layers)
        if run.device.world > 1:
            self._average_over_ranks([b for b in mine.values() if b.is_floating_point()], run)

    def _average_over_ranks(self, measured: list[Tensor], run: Run) -> None:
        import torch

        means = iter(
            run.device.average(torch.cat([b.flatten() for b in measured]).tolist())
            if measured
            else []
        )
        for buffer in measured:
            buffer.copy_(torch.tensor(list(islice(means, buffer.numel()))).view_as(buffer))

    def _inputs(self, run: Run) -> Iterator[Tensor]:
        # Not through the hook: what plugins make of a batch may draw from their random streams, and
        # a validation must not change what the next epoch sees.
        for batch in islice(run.data.train.batches(run.epoch, 0), self.recompute_batches):
            if not isinstance(batch, Batch):
                self.refuse(
                    run,
                    "buffers",
                    "recompute needs batches of images, and these data give "
                    f"{type(batch).__name__}; use copy or average",
                )
            yield run.device.move(batch).inputs

    def state_dict(self) -> dict[str, Any]:
        """Return the average and how many steps it has seen."""
        if self._live is None:
            return self._saved
        values = self._live if self._exchanged else self._ema.module
        return {"updates": self._updates, "average": values.export()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the state until the model is there."""
        self._saved = dict(state)

    def idle(self, run: Run) -> dict[str, str]:
        """Say that the average never begins, where it does not."""
        if self.start_step < run.total_steps - 1:
            return {}
        return {
            "start_step": (
                f"this run has {run.total_steps:,} steps: the average only follows the weights"
            )
        }

    def explain(self, run: Run) -> list[str]:
        """Say what is averaged, over how many steps, and where the statistics come from."""
        import torch
        from torch import nn

        values = Values(run.model, buffers=self.buffers == "average")
        steps = run.recipe.train.epochs * run.data.train.steps_per_epoch
        last = self._average_of(nn.ParameterList([nn.Parameter(torch.zeros(1))])).get_decay(steps)
        layers = len(batch_norms(run.model))
        how = {
            "copy": "taken from the trained model",
            "average": "averaged like the weights",
            "recompute": (
                f"measured on {self.recompute_batches} training batches before each validation"
            ),
        }[self.buffers]
        count = sum(t.numel() for t in values.tensors())
        return [
            (
                f"averages {count:,} values; decay {last:.6g} at the last step ({steps}): about the"
                f" last {min(steps, round(1 / (1 - last))):,} steps count"
            ),
            f"statistics of {layers} batch-norm layers: {how}",
        ]
