"""Small random tasks for tests of maml."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from trainkit_plugins.maml import Task, plan_for


class Examples(NamedTuple):
    inputs: Tensor
    targets: Tensor


def examples(
    seed: int, ways: int = 3, each: int = 2, channels: int = 3, side: int = 32
) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    return Examples(
        torch.randn(ways * each, channels, side, side, generator=generator),
        torch.arange(ways).repeat(each),
    )


def tasks(model: nn.Module, count: int = 3, lr: float = 0.05) -> list[Task]:
    plan = plan_for(model, lr)
    return [Task(plan, examples(2 * i), examples(2 * i + 1)) for i in range(count)]
