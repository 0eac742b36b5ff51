"""Lookahead around another optimizer, as timm's names `lookahead_…` ask for it.

Zhang, Lucas, Hinton and Ba, Lookahead Optimizer: k steps forward, 1 step back, NeurIPS 2019: slow
weights follow the optimizer's every few steps, and the optimizer goes on from there. The wrapper is
timm's, with its alpha of 0.5 and k of 6; its slow weights begin where the fast ones are at the
first of these moments, not at the start as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm.optim
from torch.optim import Optimizer

from trainkit.hooks.run import Run
from trainkit.hooks.specs import hookimpl

PREFIX = "lookahead_"


def base_name(name: str) -> str:
    """Return the name of the optimizer in a recipe's name, without `lookahead_`."""
    return name.removeprefix(PREFIX)


class Lookahead(timm.optim.Lookahead):  # type: ignore[misc]  # timm is half typed
    """timm's, with the state of the optimizer inside to be seen, and steps that no hook surrounds.

    A hook that moved the weights during a step would not do so where slow weights are looked up at
    the end of an epoch. torch patches a class for hooks at the first `zero_grad`, unless the name
    that it gives to the profiler is there already.

    Args:
        base: the optimizer that takes the fast steps.
    """

    def __init__(self, base: Optimizer) -> None:
        super().__init__(base)
        self.base = base
        self.state = base.state
        self._zero_grad_profile_name = "Optimizer.zero_grad#Lookahead.zero_grad"

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step of the optimizer inside, and every k of them one of the slow weights."""
        return super().step(closure)  # of this class, which nobody else patches

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back the state of the optimizer inside, slow weights among it."""
        super().load_state_dict(state_dict)
        self.state = self.base.state


class EpochEnds:
    """Moves to the slow weights at the end of each epoch, before it is validated, as timm's script
    does.
    """

    @hookimpl(trylast=True)
    def after_optimizer_step(self, run: Run) -> None:
        """Look up the slow weights after the last step of an epoch, if any step was taken."""
        optimizer = run.optimizer
        if run.step % run.data.train.steps_per_epoch or not isinstance(optimizer, Lookahead):
            return
        if optimizer.param_groups[0]["lookahead_step"]:  # in fp16 none may have been
            optimizer.sync_lookahead()
