"""What is made of adapted parameters: the query loss that meta-learning minimises, and
predictions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.precision import promoted
from .forward import predict
from .inner import InnerLoop, Loss, own_copy, support_loss, trajectory
from .operations import RecordStatistics, ReplayStatistics
from .plan import Examples, TaskPlan


class TaskResult(NamedTuple):
    """What came of a task: its query loss (a scalar, penalty included) and logits [M, ways] at
    theta_K.
    """

    loss: Tensor
    logits: Tensor


def task_loss(
    model: nn.Module,
    plan: TaskPlan,
    support: Examples,
    query: Examples,
    loop: InnerLoop,
    loss: Loss = support_loss,
    *,
    step_weights: Sequence[float] = (),
) -> TaskResult:
    """Return the mean query cross entropy after adaptation plus the plan's penalty, and the query
    logits.

    Args:
        model: the model, or a copy of it from `isolate`; it is left as it is.
        plan: where to start, what moves and how far.
        support: what is learned from.
        query: what the adapted parameters are judged by.
        loop: K, order, clipping.
        loss: the support loss.
        step_weights: of the query loss after each step (Antoniou et al. 2019); empty for the last
            step's alone.
    """
    model = own_copy(model, loop)
    weights = list(step_weights) or [0.0] * (loop.steps - 1) + [1.0] * (loop.steps > 0)
    if len(weights) != loop.steps:
        raise ValueError(f"{len(weights)} weights for {loop.steps} steps")
    total: Tensor | None = None
    for k, params in enumerate(trajectory(model, plan, support, loop, loss)):
        weight = weights[k - 1] if k else float(loop.steps == 0)
        if weight == 0 and k < loop.steps:
            continue
        with loop.autocast():
            logits = query_logits(model, params, support, query.inputs, loop)
            value = F.cross_entropy(logits, query.targets)
        if weight != 1:
            value = weight * value
        if total is not None:
            value = total + value
        total = value
    assert total is not None  # the last parameters always have their loss
    if plan.penalty is not None:
        total = total + plan.penalty
    return TaskResult(total, logits)


def query_logits(
    model: nn.Module,
    params: Mapping[str, Tensor],
    support: Examples,
    inputs: Tensor,
    loop: InnerLoop,
) -> Tensor:
    """Return logits [M, ways] of query inputs at adapted parameters, normalised as
    `loop.norm_statistics` says.
    """
    if loop.norm_statistics != "support":
        return promoted(predict(model, params, inputs))
    with RecordStatistics() as recorded:
        predict(model, params, support.inputs)
    with ReplayStatistics(recorded.found):
        return promoted(predict(model, params, inputs))


def predict_task(
    model: nn.Module,
    plan: TaskPlan,
    support: Examples,
    inputs: Tensor,
    loop: InnerLoop,
    loss: Loss = support_loss,
    *,
    every_step: bool = False,
) -> Tensor:
    """Adapt and return query logits [M, ways], or [K + 1, M, ways] after every step; nothing is
    differentiable.

    Args:
        model: the model, or a copy of it from `isolate`; it is left as it is.
        plan: where to start, what moves and how far.
        support: what is learned from.
        inputs: the query's [M, …].
        loop: K, clipping.
        loss: the support loss.
        every_step: also predict before the first step, and after every one.
    """
    model = own_copy(model, loop)
    found = []
    for k, params in enumerate(trajectory(model, plan, support, loop, loss, differentiable=False)):
        if every_step or k == loop.steps:
            with torch.no_grad(), loop.autocast():
                found.append(query_logits(model, params, support, inputs, loop))
    if every_step:
        return torch.stack(found)
    return found[0]


def step_weights(steps: int, epoch: int, epochs: int) -> list[float]:
    """Return the weights of the query losses after each step in `epoch`, which sum to one (Antoniou
    et al. 2019).

    All steps count alike at first; over `epochs` epochs the weight moves to the last one, and what
    is left of the others ends with them.
    """
    if epoch >= epochs:
        return [0.0] * (steps - 1) + [1.0] * (steps > 0)
    early = max(1 / steps - epoch / (steps * epochs), 0.03 / steps)
    return [early] * (steps - 1) + [1 - (steps - 1) * early]
