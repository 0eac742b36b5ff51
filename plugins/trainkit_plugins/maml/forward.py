"""One forward pass of a model at a task's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from .isolation import swapped
from .operations import TaskOperations


def predict(model: nn.Module, params: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Return the model's output for `inputs` [N, …] at `params`, which are swapped in for this call
    only.

    Args:
        model: a copy from `isolate`: its batch norms may write into its buffers.
        params: by the model's names; those it leaves out are the model's own.
        inputs: of the forward pass.
    """
    with swapped(model, params), TaskOperations():
        return cast(Tensor, model(inputs))
