"""RAdam, the controls of its paper and their monitor as plugins. The arithmetic is in the other
modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from trainkit import History, Plugin, Run, Section, figure, hookimpl

from . import optimizers
from .measure import adaptive_rate_quantiles, gradient_histogram, steps_taken
from .plots import draw_gradients, draw_rates, draw_rectification
from .rectification import first_rectified_step, rectification, rho, rho_inf, steps_until

if TYPE_CHECKING:
    from torch.optim import Optimizer

    ParamGroups = list[dict[str, Any]]

CITATION = """@inproceedings{liu2020variance,
  title={On the Variance of the Adaptive Learning Rate and Beyond},
  author={Liu, Liyuan and Jiang, Haoming and He, Pengcheng and Chen, Weizhu and Liu, Xiaodong
      and Gao, Jianfeng and
    Han, Jiawei},
  booktitle={International Conference on Learning Representations},
  year={2020}
}"""


class _AdamLike(Plugin):
    """The options that the four optimizers share. Weight decay comes with the parameter groups."""

    citation: ClassVar[str] = CITATION

    lr: float | None = Field(
        None,
        allow_inf_nan=False,
        gt=0,
        description="peak learning rate; default: optimizer.lr of the recipe",
    )
    betas: tuple[float, float] = Field(
        (0.9, 0.999), description="decay of the first and of the second moment"
    )
    eps: float = Field(
        1e-8, allow_inf_nan=False, ge=0, description="added to sqrt(v), before the bias correction"
    )

    @field_validator("betas")
    @classmethod
    def _check_betas(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError("both must be at least 0 and below 1")
        return betas

    def _settings(self, run: Run) -> dict[str, Any]:
        """Return the arguments that every optimizer of the room takes."""
        spec = run.recipe.optimizer
        if spec.args:
            run.log.note(f"{self.name} takes the place of {spec.name}: optimizer.args are not used")
        if self.lr is not None and spec.lr_base is not None:
            run.log.note(f"plugins.{self.name}.lr takes the place of optimizer.lr_base")
        lr = run.peak_lr if self.lr is None else self.lr
        return {"lr": lr, "betas": self.betas, "eps": self.eps, "weight_decay": spec.weight_decay}

    def explain(self, run: Run) -> list[str]:
        """Say what takes the place of the recipe's optimizer, and warn of two warm-ups at once."""
        spec = run.recipe.optimizer
        lr = f"{run.peak_lr:g} (optimizer.lr)"
        if self.lr is not None:
            lr = f"{self.lr:g}"
        lines = [
            f"takes the place of {spec.name}; lr {lr}, weight decay as the parameter groups have it"
        ]
        if run.recipe.scheduler.warmup_epochs > 0:
            lines.append(
                f"the schedule warms up too, for {run.recipe.scheduler.warmup_epochs:g} epochs, and"
                " multiplies; scheduler.warmup_epochs=0 leaves this one alone"
            )
        return lines


class RAdam(_AdamLike):
    """Damp Adam's first steps by how uncertain its second moment still is: RAdam.

    theta -= lr * r_t * m_hat * sqrt(1 - beta2^t) / (sqrt(v) + eps) once rho_t > 5; before that a
    step of momentum SGD, or none. Runs on torch's fused Adam kernel.
    """

    unrectified: Literal["sgd", "skip"] = Field(
        "sgd",
        description=(
            "the first steps, five for betas[1] from 0.9 up: momentum SGD at the same lr, or "
            "nothing"
        ),
    )

    @hookimpl
    def build_optimizer(self, param_groups: ParamGroups, run: Run) -> Optimizer:
        """RAdam over the given groups."""
        return optimizers.RAdam(param_groups, unrectified=self.unrectified, **self._settings(run))

    def explain(self, run: Run) -> list[str]:
        """Say how long the implicit warm-up lasts, next to the length of the run."""
        beta2 = self.betas[1]
        first = first_rectified_step(beta2)
        before = "momentum SGD" if self.unrectified == "sgd" else "no update"
        if first is None:
            line = (
                f"rho_inf = {rho_inf(beta2):.4g} is not above 5: {before} for the whole run; raise "
                "betas[1]"
            )
        else:
            line = (
                f"{before} before step {first}; r_t reaches 0.5 at step {steps_until(0.5, beta2)} "
                f"and 0.9 at step {steps_until(0.9, beta2)}, and this run has {run.total_steps}"
            )
        return [*super().explain(run), line]

    def idle(self, run: Run) -> dict[str, str]:
        """Say that no step is rectified."""
        first = first_rectified_step(self.betas[1])
        before = "momentum SGD" if self.unrectified == "sgd" else "no update"
        if first is not None and first <= run.total_steps:
            return {}
        when = "never" if first is None else f"from step {first}"
        return {
            "betas": (
                f"rectified {when}, and this run has {run.total_steps:,} steps: {before} in all of "
                "them"
            )
        }


class AdamWarmup(_AdamLike):
    """Warm up Adam's learning rate linearly, in the optimizer: the heuristic that RAdam explains.

    lr_t = lr * t / warmup_steps until then, also for the weight decay; eps in the paper's place. A
    control for RAdam.
    """

    warmup_steps: int = Field(
        100, ge=0, description="length of the warm-up; the paper tries 100, 200, 500, 1000"
    )

    @hookimpl
    def build_optimizer(self, param_groups: ParamGroups, run: Run) -> Optimizer:
        """Adam with warm-up over the given groups."""
        return optimizers.AdamWarmup(
            param_groups, warmup_steps=self.warmup_steps, **self._settings(run)
        )

    def idle(self, run: Run) -> dict[str, str]:
        """Say that the warm-up does not end."""
        why = run.past_end(self.warmup_steps)
        return {"warmup_steps": why and f"{why}: lr is never reached"}


class Adam2k(_AdamLike):
    """Spend Adam's first steps on the second moment alone: the paper's Adam-2k.

    For `freeze_steps` steps neither parameters nor the first moment nor weight decay move. A
    control for RAdam.
    """

    freeze_steps: int = Field(2000, ge=0, description="steps without an update; 2000 in the paper")

    @hookimpl
    def build_optimizer(self, param_groups: ParamGroups, run: Run) -> Optimizer:
        """Adam-2k over the given groups."""
        return optimizers.Adam2k(
            param_groups, freeze_steps=self.freeze_steps, **self._settings(run)
        )

    def idle(self, run: Run) -> dict[str, str]:
        """Say that no step moves the parameters."""
        why = run.past_end(self.freeze_steps + 1)
        return {
            "freeze_steps": (
                why and f"the first update comes after {self.freeze_steps:,} steps: there is none"
            )
        }


class AdamEps(_AdamLike):
    """Bound Adam's adaptive learning rate by a large eps: the paper's Adam-eps.

    eps is added to sqrt(v) before the bias correction, unlike torch's. A control for RAdam.
    """

    eps: float = Field(
        1e-4,
        allow_inf_nan=False,
        ge=0,
        description="added to sqrt(v), before the bias correction; 1e-4 in the paper",
    )

    @hookimpl
    def build_optimizer(self, param_groups: ParamGroups, run: Run) -> Optimizer:
        """Adam-eps over the given groups."""
        return optimizers.AdamEps(param_groups, **self._settings(run))


QUANTILES = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}
LOWEST, HIGHEST = -40, 8
"""Binary exponents between which the gradient histogram tells magnitudes apart."""


class RAdamMonitor(Plugin):
    """Watch what RAdam is about: rho_t, r_t, the spread of the adaptive learning rate, the first
    gradients' sizes.

    Works with every optimizer of the Adam family; r_t is then what RAdam would apply. Training is
    not touched. Gradients are seen as they are when this plugin's turn comes: list it before or
    after grad_clip accordingly.
    """

    citation: ClassVar[str] = CITATION
    neutral: ClassVar[dict[str, Any]] = {}

    first: int = Field(
        100, ge=0, description="measure after each of the first steps, gradients' sizes only there"
    )
    every: int = Field(20, ge=1, description="measure after every so many steps later on")
    sample: int = Field(
        65_536, ge=1, description="coordinates looked at, equally spaced through all parameters"
    )

    @hookimpl
    def before_optimizer_step(self, optimizer: Optimizer, run: Run) -> None:
        """Log the sizes of the gradient's coordinates during the first steps."""
        if run.step < self.first:
            gradients = [
                p.grad
                for group in optimizer.param_groups
                for p in group["params"]
                if p.grad is not None
            ]
            if gradients:
                shares = gradient_histogram(gradients, LOWEST, HIGHEST, self.sample)
                run.log.record("radam_monitor/gradient_exponents", shares)

    @hookimpl
    def after_optimizer_step(self, run: Run) -> None:
        """Log rho_t, r_t and the quantiles of the adaptive learning rate."""
        if run.step > self.first and run.step % self.every:
            return
        t = steps_taken(run.optimizer)
        if not t:
            if run.optimizer.state:
                kind = type(run.optimizer).__name__
                run.log.note(
                    f"radam_monitor: {kind} has no adaptive learning rate, so that only gradients "
                    "are logged"
                )
            return
        beta2 = run.optimizer.param_groups[0]["betas"][1]
        r = rectification(t, beta2)
        run.log.record("radam_monitor/rho", rho(t, beta2))
        if r is not None:
            run.log.record("radam_monitor/r", r)
        rates = adaptive_rate_quantiles(run.optimizer, list(QUANTILES.values()), self.sample)
        for name, rate in zip(QUANTILES, rates.unbind(), strict=True):
            run.log.record(f"radam_monitor/rate_{name}", rate)

    def report(self, history: History) -> list[Section]:
        """Draw the spread of the adaptive learning rate, r_t, and the gradient's sizes in the
        first steps.
        """
        sections = []
        steps, rates = history.together(*(f"radam_monitor/rate_{name}" for name in QUANTILES))
        if steps:
            text = (
                "1/sqrt of the bias-corrected second moment, over the coordinates that have had a "
                "gradient. Where it is large and unsettled at the start, r_t damps the step."
            )
            drawn, (left, right) = figure(1, 2)
            draw_rates(left, steps, rates)
            draw_rectification(right, *history.series("radam_monitor/r"))
            sections.append(Section("Adaptive learning rate", text, [drawn]))
        steps, shares = history.series("radam_monitor/gradient_exponents")
        if steps:
            text = (
                "Share of the gradient's coordinates by magnitude; those that are zero are left "
                "out."
            )
            drawn, axes = figure(width=9.6)
            image = draw_gradients(axes, steps, shares, LOWEST)
            drawn.colorbar(image, ax=axes, label="share of coordinates")
            sections.append(Section("Gradient in the first steps", text, [drawn]))
        return sections

    def idle(self, run: Run) -> dict[str, str]:
        """Say that nothing is measured after the first steps."""
        later = (self.first // self.every + 1) * self.every
        return {"every": "" if self.first >= run.total_steps else run.past_end(later)}
