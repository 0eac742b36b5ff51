"""`norm_bias`: a pull of the parameters' norm toward a chosen value, as a plugin. The arithmetic
is in `norm.py`.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from statistics import fmean
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from trainkit import History, Plugin, Run, Section, decaying_parameters, figure, hookimpl

from .norm import push_to_norm, squared_norm
from .paper import CITATION
from .plots import draw_distance, draw_squared_norm


def _number_or_auto(value: Any) -> Any:
    # One message, where the union would give one for each of its members.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value != "auto" and not (number and 0 <= value < math.inf):
        raise ValueError(f"should be a number of at least 0, or auto; got {value!r}")
    return value


class NormBias(Plugin):
    """Pull the sum of squared parameters N toward a value instead of toward zero: norm-bias weight
    decay.

    gradient += coefficient * sign(N - mu_squared) * parameter, once per step, before clipping and
    momentum. The coefficient is that of weight decay, which mu_squared 0 is: the paper's equation
    (2) has half of it as lambda.
    """

    citation: ClassVar[str] = CITATION
    neutral: ClassVar[dict[str, Any]] = {"coefficient": 0.0}
    before: ClassVar[tuple[str, ...]] = ("grad_clip",)

    mu_squared: Annotated[
        Annotated[float, Field(ge=0, allow_inf_nan=False)] | Literal["auto"],
        BeforeValidator(_number_or_auto),
    ] = Field(
        "auto",
        description=(
            "where N is pulled: a number (0 is weight decay), or auto: auto_multiple times N at the"
            " start"
        ),
    )
    auto_multiple: float = Field(
        2.0,
        gt=0,
        allow_inf_nan=False,
        description="auto: target as a multiple of N before the first step",
    )
    coefficient: float = Field(
        5e-3,
        ge=0,
        allow_inf_nan=False,
        description="strength of the pull, counted as weight decay is; 0 only measures",
    )
    form: Literal["absolute", "squared"] = Field(
        "absolute",
        description=(
            "a pull of the same strength on either side (the paper's), or one that fades near the "
            "target: coefficient * (N / mu_squared - 1)"
        ),
    )
    target: Literal["all", "weights"] = Field(
        "all",
        description="what counts in N: every trainable parameter, or only matrices and kernels",
    )
    pushed: Literal["target", "weights"] = Field(
        "target",
        description="what is pushed: everything that counts, or of that only matrices and kernels",
    )
    with_weight_decay: bool = Field(
        False,
        description=(
            "allow the optimizer to decay weights at the same time, which pulls them to zero"
        ),
    )

    _counted: list[Tensor] = PrivateAttr(default_factory=list)
    _pushed: list[Tensor] = PrivateAttr(default_factory=list)
    _goal: float | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _check(self) -> NormBias:
        if (
            self.mu_squared != "auto"
            and self.auto_multiple != type(self).model_fields["auto_multiple"].default
        ):
            raise ValueError(
                "auto_multiple does nothing when mu_squared is a number; drop it, or set "
                "mu_squared: auto"
            )
        if self.mu_squared == 0 and self.form == "squared":
            raise ValueError(
                "form squared is relative to mu_squared and has no meaning at 0; use form: absolute"
            )
        return self

    @hookimpl(wrapper=True)
    def build_optimizer(self, run: Run) -> Generator[None, Optimizer, Optimizer]:
        """Refuse an optimizer that pulls the same parameters to zero, unless that is asked for."""
        optimizer = yield
        counted, pushed = self._parameters(run.model, optimizer)
        if not counted:
            kinds = {"weights": "matrices or kernels", "all": "parameters"}
            self.refuse(
                run,
                "target",
                f"{run.recipe.model.name} has no trainable {kinds[self.target]}, so there is no "
                "norm to pull",
            )
        mine = {id(p) for p in pushed}
        decay = 0.0
        for group in optimizer.param_groups:
            if any(id(p) in mine for p in group["params"]):
                decay = max(decay, group.get("weight_decay", 0.0))
        if self.coefficient > 0 and not self.with_weight_decay and decay > 0:
            value = f"{decay:g}"
            if "weight_decay" not in run.recipe.raw.data.get("optimizer", {}):
                value += " by default"
            self.refuse(
                run,
                "weight_decay",
                f"is {value} and pulls to zero what {self.name} pulls to its target; set "
                f"optimizer.weight_decay=0, or plugins.{self.name}.with_weight_decay=true if both "
                "are meant",
                section="optimizer",
            )
        return optimizer

    @hookimpl
    def on_fit_start(self, run: Run) -> None:
        """Look up what counts and what is pushed, and settle the target."""
        self._counted, self._pushed = self._parameters(run.model, run.optimizer)
        if self._goal is None:
            self._goal = self._settle(self._counted)

    @hookimpl
    def before_optimizer_step(self, run: Run) -> None:
        """Add the pull to the gradients."""
        goal = cast(float, self._goal)  # settled before the first step
        push = push_to_norm(
            self._pushed, goal, coefficient=self.coefficient, form=self.form, counted=self._counted
        )
        run.log.record("norm_bias/squared_norm", push.squared_norm)
        run.log.record("norm_bias/distance", push.squared_norm - goal)

    def _parameters(
        self, model: nn.Module, optimizer: Optimizer
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return what counts and what is pushed, in the optimizer's order."""
        trained: list[Tensor] = []
        for group in optimizer.param_groups:
            trained += [p for p in group["params"] if p.requires_grad]
        kernels = {id(p) for p in decaying_parameters(model).values()}
        weights = [p for p in trained if id(p) in kernels]
        counted = trained if self.target == "all" else weights
        return counted, counted if self.pushed == "target" else weights

    def _settle(self, counted: list[Tensor]) -> float:
        if self.mu_squared == "auto":
            return self.auto_multiple * squared_norm(counted).item()
        return self.mu_squared

    def state_dict(self) -> dict[str, Any]:
        """Return the target, which `auto` takes from parameters that have moved since."""
        return {} if self._goal is None else {"mu_squared": self._goal}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the target that the run began with."""
        self._goal = state.get("mu_squared")

    def explain(self, run: Run) -> list[str]:
        """Say where the norm stands, where it is pulled, by what, and how long the way is."""
        counted, pushed = self._parameters(run.model, run.optimizer)
        now = squared_norm(counted).item()
        goal = self._settle(counted) if self._goal is None else self._goal
        meaning = ""
        if self.mu_squared == "auto":
            meaning = f" ({self.auto_multiple:g} times that at the start)"
        lines = [
            (
                f"sum of squares of {_count(counted)} parameters: {now:.6g} now, pulled to "
                f"{goal:.6g}{meaning}; {_count(pushed)} of them are pushed"
            ),
        ]
        if not isinstance(run.optimizer, SGD):
            name = type(run.optimizer).__name__
            lines.append(
                f"{name} rescales gradients, and the pull with them; the authors pull under SGD"
            )
        elif self.form == "absolute" and self.coefficient > 0 and 0 < goal != now > 0:
            group = run.optimizer.param_groups[0]
            lr = run.peak_lr
            rate = 2 * lr * self.coefficient / (1 - group["momentum"])
            steps, all_steps = (
                abs(math.log(goal / now)) / rate,
                run.recipe.train.epochs * run.data.train.steps_per_epoch,
            )
            lines.append(
                f"the pull alone takes about {steps:,.0f} steps to get there at lr {lr:g}; this run"
                f" has {all_steps:,}"
            )
        return lines

    def report(self, history: History) -> list[Section]:
        """Plot the squared norm beside its target, and the distance between them."""
        steps, rows = history.together("norm_bias/squared_norm", "norm_bias/distance")
        finite = [
            (step, *row) for step, row in zip(steps, rows, strict=True) if math.isfinite(row[0])
        ]
        if not finite:
            return []
        at, norms, distances = (list(column) for column in zip(*finite, strict=True))
        goal = norms[-1] - distances[-1]
        tail = slice(-max(1, len(at) // 10), None)
        text = (
            f"The sum of squares was {norms[0]:.6g} at the first step and {norms[-1]:.6g} at the "
            "last"
        )
        if goal > 0:
            off = [abs(distance) / goal for distance in distances[tail]]
            text += (
                f"; its target is {goal:.6g}. Over the last tenth of the steps it was "
                f"{fmean(off):.2%} away on average, {max(off):.2%} at most."
            )
            if fmean(off) > 0.01:
                text += (
                    " It has not arrived: the run is too short for this coefficient and learning "
                    "rate, or the loss pulls as strongly the other way."
                )
        else:
            text += "; its target is 0, which is weight decay."
        drawn, (top, bottom) = figure(2, width=9.6, height=3.9, sharex=True)
        draw_squared_norm(top, at, norms, goal)
        draw_distance(bottom, at, distances)
        return [Section("Squared norm and its target", text, [drawn])]


def _count(tensors: list[Tensor]) -> str:
    return f"{sum(t.numel() for t in tensors):,}"
