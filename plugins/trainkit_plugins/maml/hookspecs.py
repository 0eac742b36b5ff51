"""The hooks that `maml` publishes: methods of its family wrap them instead of writing an inner loop
of their own.

`maml` answers the values. A plugin that wraps them declares `requires = ("maml",)` and `after =
("maml",)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from trainkit import moment, value

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainkit import Batch, Run

    from .plan import Phase, TaskPlan


class MamlHooks:
    """What happens to one task, and where a method may have its say. Core makes no test, so the
    moment at which one begins is published here.
    """

    @value
    def plan_task(
        self,
        params: Mapping[str, Tensor],
        support: Batch,
        query_size: int,
        ways: int,
        phase: Phase,
        draw: int,
        run: Run,
    ) -> TaskPlan:
        """Value: how a task adapts, from the meta-learned parameters and its support set. Default:
        the options'.

        Called for the tasks one after the other, in order, on the main thread: draw from
        `self.generator()` here. A wrapper that needs noise later puts a `torch.Generator` of the
        task's own into `plan.extras`.

        `ways` is the number of the task's classes, `draw` counts 0 … predictive_draws - 1; `phase`
        is train, validate or test.
        """
        raise NotImplementedError

    @moment
    def on_test_start(self, name: str, run: Run) -> None:
        """Moment: training is over and a test begins, with random streams of its own.

        `name` is test, or test_NAME of a further data set.
        """

    @value
    def inner_loss(
        self,
        model: nn.Module,
        params: Mapping[str, Tensor],
        plan: TaskPlan,
        support: Batch,
        run: Run,
    ) -> Tensor:
        """Value: one draw of a task's support loss at `params`, a scalar. Default: cross entropy,
        class-weighted.

        Called from several threads at once, each with its own copy of the model's modules (the
        `Parameter` objects are the same). State that belongs to a task therefore lives on modules
        of `model` or in `plan.extras`, and forward hooks are bound methods of modules in the
        model's tree: closures are not copied.
        """
        raise NotImplementedError
