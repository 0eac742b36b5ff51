"""What Meta Dropout costs: time of one meta-gradient and of one test task, as ratios to plain
MAML's.

Run: python benchmarks/meta_dropout.py [--rounds 15]

conv4, one task at a time on one thread, 5 ways, second order. The arms take turns within each
round, and a ratio is of the same round; shown are the median and the quartiles over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from spread import quartiles
from torch import Tensor, nn
from trainkit_plugins.maml import (
    Conv4,
    InnerLoop,
    TaskPlan,
    adapt,
    isolate,
    plan_for,
    support_loss,
    task_loss,
)
from trainkit_plugins.meta_dropout import attach

from trainkit import Batch

WAYS = 5
SETTINGS = {
    "28 px, 64 filters, 1 shot, 15 queries, 5 steps": (28, 64, 1, 15, 5),
    "28 px, 32 filters, 5 shots, 15 queries, 5 steps": (28, 32, 5, 15, 5),
    "16 px, 16 filters, 1 shot, 5 queries, 3 steps": (16, 16, 1, 5, 3),
}


def images(count: int, size: int) -> Batch:
    """Return `count` images of noise for each class."""
    return Batch(torch.randn(WAYS * count, 1, size, size), torch.arange(WAYS).repeat(count))


def noisy_loss(
    model: nn.Module, params: Mapping[str, Tensor], plan: TaskPlan, support: Any
) -> Tensor:
    """Return the support loss with noise, as the plugin has it."""
    with model.meta["meta_dropout"].sampling(plan.extras["noise"]):
        return support_loss(model, params, plan, support)


def seconds(work: Any) -> float:
    """Time one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(setting: tuple[int, int, int, int, int], rounds: int) -> None:
    """Print the ratios of one setting."""
    size, channels, shots, queries, steps = setting
    torch.manual_seed(0)
    plain, gated = (Conv4(WAYS, 1, size, channels) for _ in range(2))
    attach(gated, torch.zeros(2, 1, size, size))
    plain, gated = isolate(plain), isolate(gated)
    support, query, loop = images(shots, size), images(queries, size), InnerLoop(steps)

    def work(model: nn.Module, noise: bool, samples: int, learn: bool) -> None:
        plan, loss = plan_for(model, 0.1), noisy_loss if noise else support_loss
        if noise:
            extras = {"noise": torch.Generator().manual_seed(0)}
            plan = replace(plan, inner_samples=samples, extras=extras)
        if learn:
            value = task_loss(model, plan, support, query, loop, loss).loss
            torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
        else:
            adapt(model, plan, support, loop, loss, differentiable=False)

    groups = {
        "meta-gradient": {
            "maml": partial(work, plain, False, 1, True),
            "gates only": partial(work, gated, False, 1, True),
            "sampled": partial(work, gated, True, 1, True),
        },
        "adapting alone": {
            "maml": partial(work, plain, False, 1, False),
            "1 sample": partial(work, gated, True, 1, False),
            "5 samples": partial(work, gated, True, 5, False),
            "30 samples": partial(work, gated, True, 30, False),
        },
    }
    for what, arms in groups.items():
        times: dict[str, list[float]] = {arm: [] for arm in arms}
        for number in range(rounds + 1):
            for arm, call in arms.items():
                taken = seconds(call)
                if number:  # the first round only warms up
                    times[arm].append(taken)
        line = f"  {what}: maml {1000 * statistics.median(times['maml']):.1f} ms"
        for arm in list(arms)[1:]:
            low, middle, high = quartiles(
                [a / b for a, b in zip(times[arm], times["maml"], strict=True)]
            )
            line += f"; {arm} {middle:.2f} ({low:.2f} to {high:.2f})"
        print(line, flush=True)


def main() -> None:
    """Measure every setting."""
    parser = argparse.ArgumentParser(description="Time Meta Dropout against MAML.")
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread, {rounds} rounds")
    for name, setting in SETTINGS.items():
        print(name)
        measure(setting, rounds)


if __name__ == "__main__":
    main()
