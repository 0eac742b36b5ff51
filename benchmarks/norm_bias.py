"""Time the push of norm-bias, alone and against plain weight decay and an optimizer step; and
spectral projections.

Run: python benchmarks/norm_bias.py [--device cuda] [--threads 2] [--rounds 30]

All sides run in one process, in turn; the tables give medians, and the median of the ratios of one
round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch
from torch import nn
from trainkit_plugins.norm_bias import push_to_norm, squared_norm
from trainkit_plugins.norm_bias.spectral_rank import (
    Geometry,
    geometry,
    input_sizes,
    project,
    spectrum,
)

Work = Callable[[], object]

PUSHED = (("resnet50", torch.float32), ("resnet50", torch.bfloat16), ("test_resnet", torch.float32))
PROJECTED = ("test_resnet", "resnet10t")


def race(device: torch.device, rounds: int, sides: dict[str, Work]) -> None:
    """Print the median milliseconds of each side, and the median of its ratios to the first."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(rounds + 3):
        order = list(sides) if round_ % 2 else list(reversed(sides))
        for name in order:
            _wait(device)
            start = time.perf_counter()
            sides[name]()
            _wait(device)
            if round_ >= 3:
                seconds[name].append(time.perf_counter() - start)
    first = next(iter(seconds.values()))
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, first, strict=True))
        print(f"  {name:44}{statistics.median(times) * 1e3:>10.2f} ms{ratio:>8.2f}")


def parameters(model: nn.Module, device: torch.device, dtype: torch.dtype) -> list[nn.Parameter]:
    """Return copies of a model's parameters with normal gradients."""
    params = [nn.Parameter(p.detach().to(device, dtype)) for p in model.parameters()]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def pushing(name: str, device: torch.device, rounds: int, dtype: torch.dtype) -> None:
    """Print the push beside torch's weight decay and a step of SGD with momentum."""
    model = timm.create_model(name)
    params = parameters(model, device, dtype)
    grads = [p.grad for p in params if p.grad is not None]
    stepped = parameters(model, device, dtype)
    optimizer = torch.optim.SGD(stepped, lr=1e-9, momentum=0.9)
    decaying = parameters(model, device, dtype)
    decay = torch.optim.SGD(decaying, lr=1e-9, momentum=0.9, weight_decay=1e-9)
    target = 2 * squared_norm(params).item()
    count = sum(p.numel() for p in params)
    print(f"\n{name}, {len(params)} tensors, {count / 1e6:.1f} M numbers, {str(dtype)[6:]}")
    with torch.no_grad():
        race(
            device,
            rounds,
            {
                "gradients += c * parameters (foreach)": lambda: torch._foreach_add_(
                    grads, params, alpha=1e-9
                ),
                "push toward a target": lambda: push_to_norm(params, target, coefficient=1e-9),
                "push, form squared": lambda: push_to_norm(
                    params, target, coefficient=1e-9, form="squared"
                ),
                "squared norm alone (coefficient 0)": lambda: push_to_norm(
                    params, target, coefficient=0
                ),
                "step of SGD with momentum": optimizer.step,
                "the same with weight decay": decay.step,
            },
        )


def projecting(name: str, size: int, device: torch.device) -> None:
    """Print what one projection of every layer takes, beside a training step on 32 images."""
    model = timm.create_model(name).to(device)
    images = torch.randn(32, 3, size, size, device=device)
    sizes = input_sizes(model, lambda: model(images[:1]))
    layers = [
        (m.weight.detach(), geometry(m, sizes.get(n)))
        for n, m in model.named_modules()
        if hasattr(m, "weight")
    ]
    mine = [(w, g) for w, g in layers if isinstance(g, Geometry) and w.ndim > 1]
    print(f"\n{name} at {size} pixels: {len(mine)} layers")

    def step() -> None:
        model(images).square().mean().backward()

    race(
        device,
        2,
        {
            "forward and backward pass, 32 images": step,
            "spectra of all layers": lambda: [spectrum(w, g) for w, g in mine],
            "projection of all layers": lambda: [project(w, g, "maximize", 1.5) for w, g in mine],
        },
    )


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def main() -> None:
    """Run all tables."""
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
    for name, dtype in PUSHED:
        pushing(name, device, options.rounds, dtype)
    for name in PROJECTED:
        projecting(name, 32, device)


if __name__ == "__main__":
    main()
