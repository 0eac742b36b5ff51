"""Parameters that a loss does not depend on: they never get a gradient, and several ranks would
wait for it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from trainkit.errors import TrainingError, some
from trainkit.hooks.run import Run

_HIDDEN = "CheckpointFunctionBackward"
"""What stands in a graph for a part of it that is made only in the backward pass."""


def unreached(loss: Tensor, model: nn.Module) -> list[str]:
    """Return the names of the parameters with `requires_grad` from which no path leads to
    `loss`.
    """
    found: set[int] = set()
    seen: set[Any] = set()
    waiting: list[Any] = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == _HIDDEN:
            return []  # nobody can tell
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        for following, _ in node.next_functions:
            waiting.append(following)
    return [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in found]


def look(run: Run, loss: Tensor) -> None:
    """Note which parameters the loss does not reach, before its first backward pass.

    Raises:
        TrainingError: there are such on any rank, and the gradients are averaged over several.
    """
    names = run.device.gather(unreached(loss, run.model))
    if not any(names):
        return
    everywhere = sorted(set().union(*names), key=max(names, key=len).index)
    what = f"no loss reaches {len(everywhere)} of the model's parameters: {some(everywhere)}"
    if run.device.world == 1:
        run.log.note(f"{what}; they have no gradient and stay as they are")
        return
    ranks = []
    for rank, found in enumerate(names):
        if found:
            ranks.append(str(rank))
    if len(ranks) < run.device.world:
        what = f"{what}, on rank {some(ranks)} of {run.device.world}"
    raise TrainingError(
        f"{what}; each rank would wait for a gradient that never comes: where the model is "
        "built, let requires_grad be False for them (a plugin that wraps build_model), or use "
        "one rank"
    )


class Arrivals:
    """Whether a backward pass has added to the gradient of every parameter that is trained.

    On several ranks the others wait for one that does not come, until torch gives up after minutes.
    The rank that does not wait is the one that can say which it is.

    Args:
        module: whose gradients are averaged over ranks; made before the backward pass.
    """

    def __init__(self, module: nn.Module) -> None:
        self._before = [(name, p, mark(p)) for name, p in module.named_parameters()]

    def check(self, run: Run) -> None:
        """Look at the gradients after the backward pass.

        Raises:
            TrainingError: some did not come on this rank.
        """
        late = [name for name, p, before in self._before if p.requires_grad and mark(p) == before]
        if not late:
            return
        names = [name.removeprefix("module.model.") for name in late]
        raise TrainingError(
            f"the loss of step {run.step + 1} on rank {run.device.rank} did not reach "
            f"{some(names)}, which an earlier one did; on several ranks every step must reach all "
            "parameters on each rank: add zero times a sum of those that a step leaves out"
        )


def mark(parameter: Tensor) -> tuple[int, int] | None:
    """Return what changes whenever something is added to a parameter's gradient."""
    gradient = parameter.grad
    return None if gradient is None else (id(gradient), gradient._version)
