"""Time the generalized layer against torch's BatchNorm and against chunking, forward and backward.

Run: python benchmarks/batch_norm.py [--device cuda] [--threads 2] [--ghost 8] [--seconds 0.2]

"chunked" is the usual ghost batch norm: split, normalize each part, concatenate. Composer's
GhostBatchNorm is timed too where it is installed; its newest release brings torch 2.7.0, so not
beside torch 2.15. All sides run interleaved in one process; the tables give medians, as ratios to
the plain layer.
"""

import argparse
import importlib.util
import random
import statistics
import time
from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn
from trainkit_plugins.batch_norm import convert_batch_norm

MODELS = (("resnet18", (64, 3, 64, 64)), ("mobilenetv3_small_050", (64, 3, 64, 64)))
SHAPES = (
    (32, 64, 56, 56),
    (64, 64, 32, 32),
    (64, 96, 28, 28),
    (128, 128, 16, 16),
    (128, 256, 8, 8),
    (128, 512, 4, 4),
    (32, 512, 7, 7),
    (128, 64, 8, 8),
    (64, 32, 8, 8),
    (32, 24, 14, 14),
    (128, 256, 1, 1),
)
Step = Callable[[], tuple[float, float]]


def chunked(ghost: int) -> Callable[[nn.Module], Callable[[Tensor], Tensor]]:
    """Return the usual ghost batch norm of a layer."""
    return lambda layer: lambda x: torch.cat([layer(part) for part in x.split(ghost)])


def ours(ghost: int, blocks: str) -> Callable[[nn.Module], nn.Module]:
    """Return our ghost batch norm of a layer."""

    def convert(layer: nn.Module) -> nn.Module:
        convert_batch_norm(layer, ghost_size=ghost, blocks=blocks)
        return layer

    return convert


def sides(ghost: int) -> dict[str, Callable[[nn.Module], Callable[[Tensor], Tensor]]]:
    """Return what is compared, by name: each turns a plain layer into the layer to time."""
    found = {
        "plain": lambda layer: layer,
        "chunked": chunked(ghost),
        "any": ours(ghost, "any"),
        "strided": ours(ghost, "strided"),
        "consecutive": ours(ghost, "consecutive"),
    }
    if importlib.util.find_spec("composer"):
        from composer.algorithms.ghost_batchnorm.ghost_batchnorm import _GhostBatchNorm2d

        found["composer"] = lambda layer: _GhostBatchNorm2d(ghost, layer)
    return found


def step_of(f: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor, params: list[Tensor]) -> Step:
    """Return a function that runs forward and backward once and returns the seconds of each."""

    def step() -> tuple[float, float]:
        start = now(x.device)
        y = f(x)
        middle = now(x.device)
        torch.autograd.grad(y, (x, *params), dy)
        return middle - start, now(x.device) - middle

    return step


def now(device: torch.device) -> float:
    """Return the time when the device has finished."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def race(steps: dict[str, Step], seconds: float) -> dict[str, tuple[float, float]]:
    """Return each side's median seconds, forward and backward, over interleaved rounds."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(3):
        for step in steps.values():
            step()
    end = time.perf_counter() + seconds * len(steps)
    order = list(steps)
    while time.perf_counter() < end or len(times["plain"]) < 9:
        for name in order:
            times[name].append(steps[name]())
        # A side's arrays are in the cache or not, depending on the side before it.
        random.shuffle(order)
    return {
        k: (statistics.median(a for a, _ in v), statistics.median(b for _, b in v))
        for k, v in times.items()
    }


def layers(device: torch.device, ghost: int, seconds: float, layout: torch.memory_format) -> None:
    """Print one layer of many shapes."""
    names = list(sides(ghost))[1:]
    print(
        f"{'N, C, H, W':<20}{'plain us':>16}" + "".join(f"{n + ' fwd bwd both':>26}" for n in names)
    )
    for shape in SHAPES:
        x, dy = (torch.randn(shape, device=device).to(memory_format=layout) for _ in range(2))
        x.requires_grad_()
        steps = {}
        for name, make in sides(ghost).items():
            layer = nn.BatchNorm2d(shape[1], device=device)
            steps[name] = step_of(make(layer), x, dy, list(layer.parameters()))
        found = race(steps, seconds)
        f, b = found["plain"]
        cells = (
            f"{found[n][0] / f:14.2f}{found[n][1] / b:6.2f}{sum(found[n]) / (f + b):6.2f}"
            for n in names
        )
        print(
            f"{', '.join(map(str, shape)):<20}{f * 1e6:8.0f}{b * 1e6:8.0f}" + "".join(cells),
            flush=True,
        )


def models(device: torch.device, ghost: int, seconds: float, layout: torch.memory_format) -> None:
    """Print training steps of whole models, plain and converted, and evaluation with example
    weighing.
    """
    for name, shape in MODELS:
        x = torch.randn(shape, device=device).to(memory_format=layout)
        x.requires_grad_()
        steps, evals = {}, {}
        for side in ("plain", "any", "strided", "consecutive"):
            model = timm.create_model(name, num_classes=10).to(device, memory_format=layout)
            if side != "plain":
                convert_batch_norm(model, ghost_size=ghost, blocks=side, example_weight=0.1)
            steps[side] = step_of(
                model, x, torch.ones(shape[0], 10, device=device), list(model.parameters())
            )
            if side in ("plain", "any"):
                twin = (
                    timm.create_model(name, num_classes=10).to(device, memory_format=layout).eval()
                )
                if side != "plain":
                    convert_batch_norm(twin, example_weight=0.1)
                evals[side] = evaluation_of(twin, x.detach())
        trained, evaluated = race(steps, seconds), race(evals, seconds)
        plain = sum(trained["plain"])
        ratios = ", ".join(f"{k} {sum(v) / plain:.2f}" for k, v in trained.items() if k != "plain")
        alpha = evaluated["any"][0] / evaluated["plain"][0]
        print(
            f"{name}, {shape}: step {plain * 1e3:.0f} ms, {ratios}; evaluation with example_weight "
            f"{alpha:.2f}"
        )


def evaluation_of(model: nn.Module, x: Tensor) -> Step:
    """Return a function that evaluates once and returns (seconds, 0)."""

    def step() -> tuple[float, float]:
        start = now(x.device)
        with torch.no_grad():
            model(x)
        return now(x.device) - start, 0.0

    return step


def main() -> None:
    """Run all tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--ghost", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.2, help="for each side of each row")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    print(
        f"torch {torch.__version__}, {device}, {options.threads} threads, ghost size "
        f"{options.ghost}"
    )
    for layout in (torch.contiguous_format, torch.channels_last):
        print(f"\n{layout}")
        layers(device, options.ghost, options.seconds, layout)
        models(device, options.ghost, options.seconds * 4, layout)


if __name__ == "__main__":
    main()
