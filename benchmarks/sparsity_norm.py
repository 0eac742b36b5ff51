"""What sparsity normalization costs: a training step with the layer over one without, and the layer
beside a copy.

Run: python benchmarks/sparsity_norm.py [--rounds 30]

Both are measured in turn, in one process. The step is of resnet10t on images without gaps, so that
both models compute the same; the copy reads the input once and writes it once, which is the least
that any layer can do.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch
from spread import quartiles
from torch import Tensor, nn
from trainkit_plugins.sparsity_norm import MissingInput, SparsityNorm, ZeroImputation, attach

SIZE, BATCH = 64, 32


def step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """Return a function that computes gradients once."""

    def run() -> None:
        model.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(x), y).backward()

    return run


def seconds(run: Callable[[], object], repeat: int) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    for _ in range(repeat):
        run()
    return (time.perf_counter() - start) / repeat


def compare(
    title: str, first: Callable[[], object], second: Callable[[], object], repeat: int, rounds: int
) -> None:
    """Print the ratio of two functions' times, measured in turn: median and quartiles."""
    first(), second()
    pairs = [(seconds(first, repeat), seconds(second, repeat)) for _ in range(rounds)]
    low, middle, high = quartiles([a / b for a, b in pairs])
    times = " against ".join(
        f"{1e3 * statistics.median(t):.2f} ms" for t in zip(*pairs, strict=True)
    )
    print(f"{title:44}{middle:6.2f} ({low:.2f} to {high:.2f})   {times}")


def fitted(layer: MissingInput, x: Tensor) -> MissingInput:
    """Return the layer, having learned from `x`."""
    layer.fit([x])
    return layer


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    torch.manual_seed(0)
    x, y = torch.randn(BATCH, 3, SIZE, SIZE), torch.randint(10, (BATCH,))
    plain, normalized = (timm.create_model("resnet10t", num_classes=10) for _ in range(2))
    attach(normalized, fitted(SparsityNorm(center=True), x), (3, SIZE, SIZE))
    compare(
        "resnet10t, a step with it over one without",
        step(normalized, x, y),
        step(plain, x, y),
        1,
        rounds,
    )
    gappy = x.masked_fill(torch.rand(x.shape) < 0.5, float("nan"))
    for name, layer in (
        ("sparsity norm", SparsityNorm()),
        ("sparsity norm, centred", SparsityNorm(center=True)),
        ("zero imputation", ZeroImputation()),
    ):
        ready = fitted(layer, gappy)
        title = f"{name} over a copy of the input"
        compare(title, lambda ready=ready: ready(gappy), lambda: gappy.clone(), 10, rounds)


if __name__ == "__main__":
    main()
