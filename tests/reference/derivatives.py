"""Derivatives of a loss by central differences, beside autograd's: of each group of parameters
by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

FLAT = 1e-7
"""Below it a derivative of a loss near 1 is rounding: 1e-14 over the step."""


class Derivative(NamedTuple):
    """The derivative of a loss along one direction: by autograd, and measured."""

    exact: float
    measured: float

    def agrees(self) -> bool:
        return abs(self.exact - self.measured) <= 1e-5 * abs(self.measured) + FLAT


def fill(module: nn.Module, deviation: float = 0.3, seed: int = 0) -> None:
    """Draw every parameter from a normal distribution, the same for every release of torch.

    What torch.nn.init draws from a seed is not: truncated normals changed. A test that meets a kink
    of the loss (a ReLU or a maximum that turns over) must meet it everywhere or nowhere.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(deviation * drawn)


def by_part(module: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return what is trained: of the model by its outermost modules, of plugins by their layers."""
    found: dict[str, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            parts = name.split(".")
            part = ".".join(parts[: 3 if parts[0] == "meta" else 1])
            found.setdefault(part, []).append(parameter)
    return found


def derivatives(
    loss: Callable[[], Tensor], groups: Mapping[str, Sequence[Tensor]], h: float = 1e-7
) -> dict[str, Derivative]:
    """Return the derivative of a loss along a random direction of each group.

    Args:
        loss: a function of the tensors in the groups, which are float64.
        groups: leaves of the graph.
        h: step of the differences.

    Raises:
        ValueError: the loss is not smooth within the step, so that the difference measures nothing.
    """
    leaves = [tensor for group in groups.values() for tensor in group]
    found = torch.autograd.grad(loss(), leaves, allow_unused=True)
    gradients = dict(zip(map(id, leaves), found, strict=True))
    generator = torch.Generator().manual_seed(1)
    result = {}
    for name, group in groups.items():
        direction = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in group]
        exact = 0.0
        for tensor, d in zip(group, direction, strict=True):
            gradient = gradients[id(tensor)]
            exact += 0.0 if gradient is None else float((gradient * d).sum())
        result[name] = Derivative(exact, _measure(loss, group, direction, h))
        if not result[name].agrees():
            wide, narrow = result[name].measured, _measure(loss, group, direction, h / 2)
            if abs(wide - narrow) > 1e-3 * abs(wide) + 10 * FLAT:
                raise ValueError(f"the loss turns over within {h:g} of {name}; take other values")
    return result


def _measure(
    loss: Callable[[], Tensor], tensors: Sequence[Tensor], direction: Sequence[Tensor], h: float, /
) -> float:
    start = [tensor.detach().clone() for tensor in tensors]
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for tensor, origin, d in zip(tensors, start, direction, strict=True):
                tensor.copy_(origin + sign * h * d)
        values.append(loss().item())
    with torch.no_grad():
        for tensor, origin in zip(tensors, start, strict=True):
            tensor.copy_(origin)
    return (values[0] - values[1]) / (2 * h)
