"""Time one optimizer step on 25.6 M parameters: this room's RAdam against torch's, timm's and fused
Adam.

    python benchmarks/radam.py                 # CPU, two threads
    python benchmarks/radam.py --device cuda

The tensors have the shapes of a ResNet-50. All optimizers live in one process and take turns, one
step each per round, so that a busy machine slows all of them; the table shows medians and the
median ratio to fused Adam of the same round. All steps timed are rectified ones (t > 6).
"""

import argparse
import importlib.util
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import Parameter
from trainkit_plugins.radam import RAdam

BASE = "torch Adam, fused"


def resnet50_shapes() -> list[tuple[int, ...]]:
    """Return the shapes of the 161 parameters of a ResNet-50 with 1000 classes."""
    shapes: list[tuple[int, ...]] = []

    def conv(out: int, inp: int, size: int) -> None:
        shapes.extend([(out, inp, size, size), (out,), (out,)])

    conv(64, 3, 7)
    inp = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            conv(width, inp, 1)
            conv(width, width, 3)
            conv(4 * width, width, 1)
            if block == 0:
                conv(4 * width, inp, 1)
            inp = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def contenders() -> dict[str, Callable[[list[Parameter]], torch.optim.Optimizer]]:
    """Return the optimizers to time; timm's and pytorch_optimizer's only where they are
    installed.
    """
    table: dict[str, Callable[[list[Parameter]], torch.optim.Optimizer]] = {
        BASE: lambda p: torch.optim.Adam(p, fused=True),
        "torch AdamW, fused, wd 0.05": lambda p: torch.optim.AdamW(
            p, weight_decay=0.05, fused=True
        ),
        "RAdam (default: fused)": lambda p: RAdam(p),
        "RAdam (default: fused), wd 0.05": lambda p: RAdam(p, weight_decay=0.05),
        "RAdam, foreach": lambda p: RAdam(p, foreach=True),
        "RAdam, one tensor at a time": lambda p: RAdam(p, foreach=False),
        "torch RAdam, default": lambda p: torch.optim.RAdam(p),
        "torch RAdam, foreach": lambda p: torch.optim.RAdam(p, foreach=True),
    }
    if importlib.util.find_spec("timm"):
        from timm.optim.radam import RAdamLegacy

        table["timm RAdamLegacy"] = RAdamLegacy
    if importlib.util.find_spec("pytorch_optimizer"):
        from pytorch_optimizer import RAdam as OtherRAdam

        table["pytorch_optimizer RAdam"] = OtherRAdam
    return table


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)

    gradients = [torch.randn(shape, device=device, dtype=dtype) for shape in resnet50_shapes()]
    optimizers = {}
    for name, build in contenders().items():
        parameters = [Parameter(torch.zeros_like(g)) for g in gradients]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizers[name] = build(parameters)
        for _ in range(8):
            optimizers[name].step()

    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(options.rounds):
        for name, optimizer in optimizers.items():
            times[name].append(milliseconds(optimizer, device))

    count = sum(g.numel() for g in gradients)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{options.threads} threads"
    print(
        f"{count:,} parameters in {len(gradients)} tensors, {options.dtype}, {platform.machine()} "
        f"{where}"
    )
    print(f"torch {torch.__version__}; medians of {options.rounds} rounds\n")
    print(f"{'optimizer':<34}{'ms/step':>9}{'x fused Adam':>14}")
    for name, some in times.items():
        ratio = statistics.median(t / base for t, base in zip(some, times[BASE], strict=True))
        print(f"{name:<34}{statistics.median(some):>9.2f}{ratio:>14.3f}")


def milliseconds(optimizer: torch.optim.Optimizer, device: torch.device) -> float:
    """Return the time of one step."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
