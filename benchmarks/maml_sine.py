"""The sine regression of the MAML paper: after one step on five points, MAML against pre-training
on all tasks.

    python benchmarks/maml_sine.py                     # 10,000 iterations of 25 tasks, seed 0
    python benchmarks/maml_sine.py --iterations 70000  # as many as the authors'

Finn et al. 2017, section 5.1: y = A sin(x - phase), A in [0.1, 5], phase in [0, pi], x in [-5, 5];
a network 1-40-40-1 with ReLU; squared error; inner step size 0.01, one inner step in training; Adam
at 0.001. The baseline is the same network trained on points of all tasks at once, then fine-tuned
on a task's points with the same step size. Tasks stand side by side in the parameters' first axis,
so that one call of `adapt` adapts them all. Prints one JSON line per seed and method: mean squared
error on 100 new points of 600 test tasks after 0 to 10 steps, and its 95% interval over tasks.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from trainkit_plugins.maml import InnerLoop, TaskPlan, adapt, isolate, plan_for, predict, trajectory

TASKS, LR, WIDTH = 25, 0.01, 40


class Points(NamedTuple):
    """Points [tasks, points, 1] and their values."""

    inputs: Tensor
    targets: Tensor


class Network(nn.Module):
    """1-40-40-1; its parameters may have an axis of tasks in front."""

    def __init__(self) -> None:
        super().__init__()
        for i, (inputs, outputs) in enumerate(((1, WIDTH), (WIDTH, WIDTH), (WIDTH, 1))):
            setattr(
                self,
                f"w{i}",
                nn.Parameter(nn.init.trunc_normal_(torch.empty(inputs, outputs), std=0.3)),
            )
            setattr(self, f"b{i}", nn.Parameter(torch.zeros(1, outputs)))

    def forward(self, x: Tensor) -> Tensor:
        """Return values [tasks, points, 1]."""
        x = (x @ self.w0 + self.b0).relu()
        x = (x @ self.w1 + self.b1).relu()
        return x @ self.w2 + self.b2


def draw(tasks: int, *counts: int, generator: torch.Generator) -> list[Points]:
    """Return sets of points of the same tasks."""
    amplitude = torch.rand(tasks, 1, 1, generator=generator) * 4.9 + 0.1
    phase = torch.rand(tasks, 1, 1, generator=generator) * torch.pi
    sets = [torch.rand(tasks, count, 1, generator=generator) * 10 - 5 for count in counts]
    return [Points(x, amplitude * torch.sin(x - phase)) for x in sets]


def squared_error(
    model: nn.Module, params: Mapping[str, Tensor], plan: TaskPlan, points: Points
) -> Tensor:
    """Return the sum over tasks of the mean squared error: each task's parameters get their own
    gradient.
    """
    return (predict(model, params, points.inputs) - points.targets).square().mean((1, 2)).sum()


def plan(model: nn.Module, tasks: int) -> TaskPlan:
    """Return a plan in which every task has its own copy of the parameters, all of the model's
    values.
    """
    shared = plan_for(model, LR)
    return replace(
        shared, params={name: p.expand(tasks, *p.shape) for name, p in shared.params.items()}
    )


def train(
    model: nn.Module, shots: int, iterations: int, steps: int, generator: torch.Generator
) -> None:
    """Minimise the query error after `steps` inner steps; 0 steps are pre-training on all tasks."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    twin = isolate(model)
    for _ in range(iterations):
        support, query = draw(TASKS, shots, shots, generator=generator)
        here = plan(model, TASKS)
        fast = adapt(twin, here, support, InnerLoop(steps), squared_error)
        optimizer.zero_grad()
        (squared_error(twin, fast, here, query) / TASKS).backward()
        optimizer.step()


def measure(
    model: nn.Module, shots: int, steps: int, tasks: int = 600
) -> tuple[list[float], list[float]]:
    """Return the error after each number of steps, on tasks that are the same for everyone, and
    the half interval.
    """
    support, query = draw(tasks, shots, 100, generator=torch.Generator().manual_seed(1_000_000))
    twin, here = isolate(model), plan(model, tasks)
    means, intervals = [], []
    for params in trajectory(
        twin, here, support, InnerLoop(steps), squared_error, differentiable=False
    ):
        with torch.no_grad():
            errors = (predict(twin, params, query.inputs) - query.targets).square().mean((1, 2))
        means.append(round(errors.mean().item(), 4))
        intervals.append(round(1.96 * errors.std().item() / tasks**0.5, 4))
    return means, intervals


def main() -> None:
    """Train both and print what they reach."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=10_000)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        for name, steps in (("maml", 1), ("pre-training on all tasks", 0)):
            torch.manual_seed(seed)
            model = Network()
            train(
                model, options.shots, options.iterations, steps, torch.Generator().manual_seed(seed)
            )
            means, intervals = measure(model, options.shots, 10)
            print(
                json.dumps({"seed": seed, "method": name, "mse": means, "interval": intervals}),
                flush=True,
            )


if __name__ == "__main__":
    main()
