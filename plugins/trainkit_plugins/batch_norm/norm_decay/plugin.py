"""`norm_decay`: weight decay of the scale and shift of batch norms, as a plugin."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, ClassVar, Literal

from pydantic import Field, PrivateAttr
from torch import nn
from torch.optim import Optimizer

from trainkit import Plugin, Run, hookimpl

from ..paper import CITATION
from .decay import batch_norms, decay_groups, decay_toward_one, scales_and_shifts
from .exposure import is_batch_norm

ParamGroups = list[dict[str, Any]]


class NormDecay(Plugin):
    """Decay the scale and shift of batch norms, each with its own strength, the scale toward one or
    zero.

    Only where no later norm undoes it, unless told otherwise. The optimizer decays them by its own
    rule, as it decays weights: in the gradient with SGD (the authors' penalty), decoupled with
    AdamW and its kind. Toward one it is shown scale - 1 during its step. Core gives norms no weight
    decay, so nothing decays twice.
    """

    citation: ClassVar[str] = CITATION
    neutral: ClassVar[dict[str, Any]] = {"where": "none"}

    scale: float = Field(
        1e-4, ge=0, allow_inf_nan=False, description="weight decay of the scales (gamma)"
    )
    shift: float = Field(
        1e-4,
        ge=0,
        allow_inf_nan=False,
        description="weight decay of the shifts (beta), toward zero",
    )
    toward: Literal["one", "zero"] = Field("one", description="where the scales decay to")
    where: Literal["exposed", "all", "none"] = Field(
        "exposed",
        description=(
            "which batch norms: with a path to the output that passes no further norm, all, none"
        ),
    )

    _norms: dict[str, nn.Module] = PrivateAttr(default_factory=dict)

    @hookimpl(wrapper=True)
    def build_param_groups(
        self, model: nn.Module, run: Run
    ) -> Generator[None, ParamGroups, ParamGroups]:
        """Give scales and shifts groups of their own."""
        groups = yield
        if self.where == "none":
            return groups
        try:
            self._norms = batch_norms(model, None if self.where == "all" else run.data.input_size)
        except ValueError as error:
            self.refuse(run, "", str(error))
        scale = self.scale, f"{self.where} batch norms, toward {self.toward}"
        shift = self.shift, f"{self.where} batch norms, toward zero"
        return decay_groups(
            groups, *scales_and_shifts(self._norms.values()), scale=scale, shift=shift
        )

    @hookimpl(wrapper=True)
    def build_optimizer(self, run: Run) -> Generator[None, Optimizer, Optimizer]:
        """Let the decay of the scales pull toward one."""
        optimizer = yield
        scales, _ = scales_and_shifts(self._norms.values())
        if self.toward == "one" and self.scale > 0 and scales:
            try:
                decay_toward_one(optimizer, scales)
            except ValueError as error:
                self.refuse(run, "", f"{error}; set toward to zero, or choose another optimizer")
        return optimizer

    def explain(self, run: Run) -> list[str]:
        """Say which norms decay, why these, and by which rule."""
        norms, total = len(self._norms), sum(map(is_batch_norm, run.model.modules()))
        if not norms:
            return ["no batch norm decays"]
        why = "where: all"
        if self.where == "exposed":
            why = "a path to the output passes no further norm"
        name = type(run.optimizer).__name__
        rule = f"{name}'s own weight decay, as optimizer.weight_decay is for other weights"
        lines = [f"{norms} of {total} batch norms decay ({why}): {', '.join(self._norms)}"]
        if norms < total:
            lines.append(f"the other {total - norms} do not: a later norm undoes what it would do")
        lines.append(
            f"scale by {self.scale:g} toward {self.toward}, shift by {self.shift:g} toward zero: "
            f"{rule}"
        )
        return lines
