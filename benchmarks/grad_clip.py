"""Time clipping against torch's, and a smoothness measurement against a training step.

Run: python benchmarks/grad_clip.py [--device cuda] [--threads 2] [--rounds 30]

Both sides run in one process, alternating; the tables give medians and the median of the paired
ratios.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, repeat

import torch
from torch import Tensor, nn
from trainkit_plugins.grad_clip import (
    clip_by_global_norm,
    global_norm,
    gradient_of,
    interior_grid,
    local_smoothness,
    preserve,
)


def resnet50_shapes() -> list[tuple[int, ...]]:
    """Return the shapes of ResNet-50's 161 parameters, 25.6 M numbers."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convs = [(width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                convs.append((4 * width, inputs, 1, 1))
            for conv in convs:
                shapes += [conv, (conv[0],), (conv[0],)]
            inputs = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def parameters(device: torch.device, dtype: torch.dtype) -> list[nn.Parameter]:
    """Return parameters of ResNet-50's shapes with standard normal gradients."""
    params = [nn.Parameter(torch.zeros(s, device=device, dtype=dtype)) for s in resnet50_shapes()]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def race(
    device: torch.device, rounds: int, ours: Callable[[], object], theirs: Callable[[], object]
) -> tuple[float, float, float]:
    """Return the median milliseconds of both and the median of their paired ratios."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for round_ in range(rounds + 3):
        pairs = list(zip(seconds, (ours, theirs), strict=True))
        for times, work in reversed(pairs) if round_ % 2 else pairs:
            _wait(device)
            start = time.perf_counter()
            work()
            _wait(device)
            if round_ >= 3:
                times.append(time.perf_counter() - start)
    ratio = statistics.median(a / b for a, b in zip(*seconds, strict=True))
    return statistics.median(seconds[0]) * 1e3, statistics.median(seconds[1]) * 1e3, ratio


def clipping(device: torch.device, rounds: int) -> None:
    """Print clipping against :func:`torch.nn.utils.clip_grad_norm_` on ResNet-50's shapes."""
    what = "clip_by_global_norm, 161 tensors, 25.6 M"
    print(f"{what:<44}{'ours ms':>9}{'torch ms':>10}{'ratio':>7}")
    limits: dict[str, Callable[[float], Iterator[float]]] = {
        # Lower each time, because the gradients of a round are those that the round before has
        # shortened.
        "shortened": lambda norm: (norm * 0.95**k for k in count(1)),
        "below the threshold": lambda norm: repeat(2 * norm),
        "max_norm=inf": lambda norm: repeat(math.inf),
    }
    for dtype in (torch.float32, torch.bfloat16):
        for name, limit in limits.items():
            sides = []
            for clip in (clip_by_global_norm, nn.utils.clip_grad_norm_):
                params = parameters(device, dtype)
                thresholds = limit(global_norm([p.grad for p in params]).item())
                sides.append(lambda c=clip, p=params, t=thresholds: c(p, next(t)))
            ours, theirs, ratio = race(device, rounds, *sides)
            print(f"{str(dtype)[6:] + ', ' + name:<44}{ours:>9.2f}{theirs:>10.2f}{ratio:>7.2f}")


def convnet() -> nn.Module:
    """Return four conv, batch-norm, ReLU layers and a classifier."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 64), (64, 64), (64, 128)):
        layers += [
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 4, 10))


def measuring(device: torch.device, rounds: int) -> None:
    """Print a smoothness measurement against a training step of the same batch."""
    what = "local_smoothness, convnet, 64 x 3 x 32 x 32"
    print(f"\n{what:<44}{'ours ms':>9}{'step ms':>10}{'ratio':>7}")
    model = convnet().to(device)
    params = list(model.parameters())
    optimizer = torch.optim.SGD(params, lr=1e-3)
    x, y = torch.randn(64, 3, 32, 32, device=device), torch.randint(10, (64,), device=device)
    start = [p.detach() + 1e-3 * torch.randn_like(p) for p in params]

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(x), y)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    gradient = gradient_of(loss, params, held=partial(preserve, model))
    for points in (1, 3):
        measure = partial(local_smoothness, gradient, params, start, grid=interior_grid(points))
        ours, theirs, ratio = race(device, rounds, measure, step)
        what = f"points={points}: {points + 1} gradients"
        print(f"{what:<44}{ours:>9.2f}{theirs:>10.2f}{ratio:>7.2f}")


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def main() -> None:
    """Run both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    print(
        f"torch {torch.__version__}, {device}, {options.threads} threads, {options.rounds} rounds"
    )
    clipping(device, options.rounds)
    measuring(device, options.rounds)


if __name__ == "__main__":
    main()
