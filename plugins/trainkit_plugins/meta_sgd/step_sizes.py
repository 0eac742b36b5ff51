"""Step sizes that are meta-learned along with the initial parameters.

Meta-SGD (Li et al. 2017): theta' = theta - alpha o grad L, one alpha for each entry of theta, of
either sign. MAML++ (Antoniou et al. 2019) has one for each tensor and inner step instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

Per = Literal["element", "tensor", "layer"]


class StepSizes(nn.Module):
    """The step sizes of some parameters.

    Args:
        params: the parameters that adapt, by name; only names, shapes and kinds are used.
        per: what has a step size of its own: each entry, each tensor, or each module (its weight
            and bias together).
        initial: where every step size starts.
        steps: have separate ones for so many inner steps; 0 for the same ones at all steps.
    """

    def __init__(
        self, params: Mapping[str, Tensor], per: Per, initial: float, steps: int = 0
    ) -> None:
        super().__init__()
        self.steps = steps
        self.groups = {name: name for name in params}
        if per == "layer":
            self.groups = {name: name.rpartition(".")[0] for name in params}
        values: dict[str, nn.Parameter] = {}
        for name, p in params.items():
            shape = p.shape
            if per != "element":
                shape = p.shape[:0]
            if steps:
                shape = torch.Size((steps, *shape))
            group = self.groups[name]
            if group not in values:
                values[group] = nn.Parameter(
                    torch.full(shape, initial, dtype=p.dtype, device=p.device)
                )
        self._index = {group: i for i, group in enumerate(values)}
        self.values = nn.ParameterList(values.values())

    def at(self, step: int = 0) -> dict[str, Tensor]:
        """Return the step size of each parameter, which broadcasts to it, at an inner step."""
        found = {name: self.values[self._index[group]] for name, group in self.groups.items()}
        if self.steps:
            found = {name: alpha[step] for name, alpha in found.items()}
        return found
