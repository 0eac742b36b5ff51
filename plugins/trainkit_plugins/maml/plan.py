"""What one task's inner loop works with, as frozen data that plugins may replace parts of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor

Phase = Literal["train", "validate", "test"]
"""Methods sample in training, take a mean in validation, or draw often in the test."""


class Examples(Protocol):
    """A support or query set: inputs [N, …] and classes [N] in 0 … ways - 1."""

    @property
    def inputs(self) -> Tensor:
        """Inputs [N, …]."""

    @property
    def targets(self) -> Tensor:
        """Classes [N], counted inside the episode."""


@dataclass(frozen=True)
class TaskPlan:
    """How one task adapts. Change it with `dataclasses.replace`.

    Attributes:
        params: the task's initial parameters by the model's names: all of the backbone, never those
            under `meta.`.
        adapt: which of them the inner loop moves.
        step_sizes: for each adapted name, what its gradient is multiplied by: a scalar, or anything
            that broadcasts to the parameter. In units of the mean loss.
        class_weights: [ways], summing to one; the inner loss is ways/N * sum_i w[y_i] * CE_i. None
            weighs all alike.
        penalty: a scalar added to this task's query loss.
        inner_samples: how often `inner_loss` is called at each step; the losses are averaged.
        predictive_draws: how often planning, adapting and predicting are repeated; probabilities
            are averaged.
        step_scales: further factors of the step sizes for single steps: one mapping per step, the
            last one holding for all steps after it.
        step_params: parameters that are swapped in at single steps and never adapted (norms of
            their own for every step); one mapping per step, the last one holding for all after it.
            The query uses its last step's.
        extras: private values of plugins, by plugin name. A `torch.Generator` that is a value here
            is rewound where a step is computed a second time (gradient checkpointing).
    """

    params: Mapping[str, Tensor]
    adapt: tuple[str, ...]
    step_sizes: Mapping[str, Tensor]
    class_weights: Tensor | None = None
    penalty: Tensor | None = None
    inner_samples: int = 1
    predictive_draws: int = 1
    step_scales: Sequence[Mapping[str, Tensor]] = ()
    step_params: Sequence[Mapping[str, Tensor]] = ()
    extras: Mapping[str, Any] = field(default_factory=dict)
