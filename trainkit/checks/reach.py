"""Parameters that a loss does not depend on: they never get a gradient, and several ranks would
wait for it.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from trainkit.errors import TrainingError, some
from trainkit.hooks.run import Run

_HIDDEN = "CheckpointFunctionBackward"
"""What stands in a graph for a part of it that is made only in the backward pass."""

_LATE = re.compile(r"did not receive grad for rank \d+: ([\d ]+)")


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
        waiting += [following for following, _ in node.next_functions]
    return [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in found]


def look(run: Run, loss: Tensor) -> None:
    """Note which parameters the loss does not reach, before its backward pass.

    Raises:
        TrainingError: there are such, and the gradients are averaged over ranks.
    """
    names = unreached(loss, run.model)
    if not run.device.any(bool(names)):
        return
    what = f"no loss reaches {len(names)} of the model's parameters: {some(names)}"
    if run.device.world > 1:
        raise TrainingError(
            f"{what}; each rank would wait for a gradient that never comes: where the model is "
            "built, let requires_grad be False for them (a plugin that wraps build_model), or use "
            "one rank"
        )
    run.log.note(f"{what}; they have no gradient and stay as they are")


def explained(error: RuntimeError, module: nn.Module) -> Exception:
    """Return what to raise for an error of a forward pass: torch's own words for a gradient that
    did not come are long.

    Args:
        error: what was raised.
        module: whose gradients are averaged over ranks.
    """
    missing = _LATE.search(str(error))
    if missing is None:
        return error
    names = []
    for name, p in module.named_parameters():
        if p.requires_grad:
            names.append(name.removeprefix("module.model."))
    late = [names[int(i)] for i in missing[1].split()]
    return TrainingError(
        f"the last step's loss did not reach {some(late)}, which it reached before; on several "
        "ranks every step must reach all parameters: add zero times a sum of those that a step "
        "leaves out"
    )
