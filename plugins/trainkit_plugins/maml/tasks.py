"""Many tasks: side by side on threads, each with a copy of the model of its own, summed in a fixed
order.

The arrays of a few-shot task are small, and most operations on them do not fill two cores. So cores
are given to tasks: every thread works on one task at a time, with as many threads inside an
operation as are left over. Each task's graph ends with the task. The gradients that come out reach
the rest of a training loop as the gradient of one scalar, so that loss scaling, gradient
accumulation and DistributedDataParallel need not know of any of this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .inner import InnerLoop, Loss, support_loss
from .isolation import NormStatistics, isolate, refresh
from .outer import TaskResult, task_loss
from .plan import Examples, TaskPlan

T = TypeVar("T")


class Workers:
    """Copies of one model, and the threads on which they work.

    Args:
        model: its parameters are shared by all copies.
        norm_statistics: see `InnerLoop`.
        count: copies and threads; one works in the caller's thread. Together they use as many
            threads inside operations as the caller has (`torch.get_num_threads()`), at least one
            each.
    """

    def __init__(
        self, model: nn.Module, norm_statistics: NormStatistics = "batch", count: int = 1
    ) -> None:
        self.model = model
        self.count = count
        self._copies: SimpleQueue[nn.Module] = SimpleQueue()
        for _ in range(count):
            self._copies.put(isolate(model, norm_statistics))
        self._pool: ThreadPoolExecutor | None = None
        if count > 1:
            threads = torch.get_num_threads()
            self._pool = ThreadPoolExecutor(
                count, "task", torch.set_num_threads, (max(1, threads // count),)
            )

    def map(self, work: Callable[[nn.Module, int], T], tasks: int) -> Iterator[T]:
        """Yield work(copy, i) for i = 0 … tasks - 1 in this order, whichever is done first."""
        if self._pool is None:
            yield from (self._do(work, i) for i in range(tasks))
            return
        threads = torch.get_num_threads()
        waiting: list[Future[T]] = [self._pool.submit(self._do, work, i) for i in range(tasks)]
        try:
            for i in range(tasks):
                yield waiting[i].result()
                waiting[i] = Future()  # forget what came of it
        finally:
            for future in waiting:
                future.cancel()
            # A starting thread's setting is also the process's default for threads to come.
            torch.set_num_threads(threads)

    def _do(self, work: Callable[[nn.Module, int], T], i: int) -> T:
        twin = self._copies.get()
        try:
            refresh(twin, self.model)
            return work(twin, i)
        finally:
            self._copies.put(twin)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


class Task(NamedTuple):
    """One task: how it adapts, and its two sets."""

    plan: TaskPlan
    support: Examples
    query: Examples


class MetaGradient(NamedTuple):
    """Mean query loss over tasks, its gradient for each parameter asked for, and each task's
    query logits [M, ways].
    """

    loss: Tensor
    gradients: list[Tensor]
    logits: list[Tensor]


def meta_gradient(
    workers: Workers,
    tasks: Sequence[Task],
    parameters: Sequence[Tensor],
    loop: InnerLoop,
    loss: Loss = support_loss,
    *,
    step_weights: Sequence[float] = (),
) -> MetaGradient:
    """Return the mean over tasks of the query loss and of its gradient.

    The result does not depend on the number of workers as long as each has as many threads inside
    operations.

    Args:
        workers: copies of the model.
        tasks: their plans must not share parts of a graph except its leaves.
        parameters: leaves to differentiate by; one that no task uses has gradient zero.
        loop: how tasks adapt.
        loss: the support loss.
        step_weights: see `task_loss`.
    """

    def work(model: nn.Module, i: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        plan, support, query = tasks[i]
        found: TaskResult = task_loss(
            model, plan, support, query, loop, loss, step_weights=step_weights
        )
        value = found.loss
        if loop.scale != 1:
            value = value * loop.scale
        gradients = torch.autograd.grad(
            value, parameters, allow_unused=True, materialize_grads=True
        )
        # Sums are taken in place, and the zeros that torch 2.8 makes for an unused parameter
        # require a gradient.
        return (
            found.loss.detach(),
            found.logits.detach(),
            [gradient.detach() for gradient in gradients],
        )

    losses: list[Tensor] = []
    logits: list[Tensor] = []
    total: list[Tensor] | None = None
    for value, predicted, gradients in workers.map(work, len(tasks)):
        losses.append(value)
        logits.append(predicted)
        if total is None:
            total = gradients
        else:
            torch._foreach_add_(total, gradients)
    assert total is not None  # there is at least one task
    torch._foreach_div_(total, len(tasks) * loop.scale)
    return MetaGradient(torch.stack(losses).mean(), total, logits)


class _Deliver(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, gradients: Sequence[Tensor], *parameters: Tensor
    ) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *torch._foreach_mul(ctx.gradients, scale)


def deliver(value: Tensor, gradients: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Return `value` as a tensor whose backward pass gives each parameter its gradient, times
    what comes in.
    """
    result: Tensor = _Deliver.apply(value, gradients, *parameters)
    return result


def average(logits: Sequence[Tensor]) -> Tensor:
    """Return the logits of the mean of several predictions' probabilities; one is returned as it
    is.
    """
    if len(logits) == 1:
        return logits[0]
    return torch.stack([z.log_softmax(-1) for z in logits]).logsumexp(0) - math.log(len(logits))
