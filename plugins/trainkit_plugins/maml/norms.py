"""Norm parameters of their own for every inner step (Antoniou et al. 2019)."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from .forward import predict
from .isolation import NormStatistics, isolate, norm_names


class PerStepNorms(nn.Module):
    """One copy of each norm parameter per inner step, [K, …], all starting as the model's.

    Args:
        model: whose norms.
        steps: K, at least 1.

    Raises:
        ValueError: the model has no norm with parameters.
    """

    def __init__(self, model: nn.Module, steps: int) -> None:
        super().__init__()
        named = dict(model.named_parameters())
        self.names = tuple(name for name in named if name in norm_names(model))
        if not self.names:
            raise ValueError("the model has no norm with parameters")
        values = [torch.stack([named[name].detach()] * max(steps, 1)) for name in self.names]
        self.values = nn.ParameterList(nn.Parameter(value) for value in values)

    def mappings(self) -> list[dict[str, Tensor]]:
        """Return for each step the parameters by the model's names."""
        steps = len(self.values[0])
        return [
            {name: value[k] for name, value in zip(self.names, self.values, strict=True)}
            for k in range(steps)
        ]


def error_of_a_pass(
    model: nn.Module, norm_statistics: NormStatistics, inputs: Tensor
) -> Exception | None:
    """Return what a task's copy of a model raises for `inputs` [N, …]; None: nothing.

    The model and torch's random numbers are left as they are: nothing in a copy draws.
    """
    try:
        with torch.no_grad():
            predict(isolate(model, norm_statistics), {}, inputs)
    except Exception as error:  # whatever a model raises
        return error
    return None


def what_forbids(norm_statistics: str, plugins: Collection[str]) -> str | None:
    """Return why batch norms cannot be what both an option and another plugin say, and what to do.

    Args:
        norm_statistics: see `trainkit_plugins.maml.inner.InnerLoop`.
        plugins: the names of all plugins that are on.
    """
    several = next(
        (name for name in ("ghost_batch_norm", "batch_group_norm") if name in plugins), None
    )
    if norm_statistics == "support" and several:
        return (
            f"the query is normalised by one set of statistics, and {several} makes several; choose"
            " batch, or drop it"
        )
    if norm_statistics != "running" and "example_weighing" in plugins:
        why = "example_weighing mixes into running averages, which batch norms of tasks do not use"
        return f"{why}; set it to running, or drop example_weighing"
    return None
