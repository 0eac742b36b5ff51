"""Train a deep narrow network at four learning rates with RAdam and the controls of its paper.

    python benchmarks/radam_robustness.py            # 3 seeds, about a minute

A multilayer perceptron with 8 hidden ReLU layers of width 64 on scikit-learn's digits (1200 for
training, the other 597 for testing), batch 64, 600 steps. Such a network diverges easily, which is
what the learning rate's robustness is about. Each cell shows the mean test accuracy, its standard
deviation over seeds, and the mean training loss.
"""

import argparse
import time
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from trainkit_plugins.radam import Adam2k, AdamEps, AdamWarmup, RAdam

LEARNING_RATES = (0.03, 0.01, 0.003, 0.001)
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], float], Optimizer]] = {
    "Adam": lambda p, lr: AdamWarmup(p, lr, warmup_steps=0),
    "warm-up 100": lambda p, lr: AdamWarmup(p, lr, warmup_steps=100),
    "Adam-2k (200)": lambda p, lr: Adam2k(p, lr, freeze_steps=200),
    "Adam-eps": lambda p, lr: AdamEps(p, lr),
    "RAdam": lambda p, lr: RAdam(p, lr),
    "RAdam skip": lambda p, lr: RAdam(p, lr, unrectified="skip"),
}


def digits() -> tuple[Tensor, Tensor]:
    """Return the 1797 digits, shuffled once, as standardised vectors of 64 and their labels."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(x, dtype=torch.float32)[order]
    return (images - images[:1200].mean()) / images[:1200].std(), torch.tensor(y)[order]


def network() -> nn.Sequential:
    """Return the perceptron."""
    layers: list[nn.Module] = [nn.Linear(64, 64), nn.ReLU()]
    for _ in range(7):
        layers += [nn.Linear(64, 64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def train(
    build: Callable[[list[nn.Parameter], float], Optimizer], lr: float, seed: int, steps: int
) -> tuple[float, float]:
    """Return test accuracy and training loss after training."""
    x, y = digits()
    torch.manual_seed(seed)
    model = network()
    optimizer = build(list(model.parameters()), lr)
    for _ in range(steps):
        batch = torch.randint(1200, (64,))
        optimizer.zero_grad()
        cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        accuracy = (model(x[1200:]).argmax(1) == y[1200:]).float().mean().item()
        return accuracy, cross_entropy(model(x[:1200]), y[:1200]).item()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    print(
        f"test accuracy (standard deviation) training loss; {options.steps} steps, {options.seeds} "
        "seeds\n"
    )
    print("lr     " + "".join(f"{name:>21}" for name in OPTIMIZERS))
    for lr in LEARNING_RATES:
        cells = []
        for build in OPTIMIZERS.values():
            runs = torch.tensor(
                [train(build, lr, seed, options.steps) for seed in range(options.seeds)]
            )
            (accuracy, loss), (spread, _) = (
                runs.mean(0).tolist(),
                runs.std(0, correction=min(1, len(runs) - 1)).tolist(),
            )
            cells.append(f"{accuracy:.3f} ({spread:.3f}) {loss:.2f}")
        print(f"{lr:<7}" + "".join(f"{cell:>21}" for cell in cells), flush=True)
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
