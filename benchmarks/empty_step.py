"""What trainkit's loop costs over a hand-written one: an empty recipe on test_resnet at 32 px, side by side.

Run: python benchmarks/empty_step.py [--epochs 23]

Epochs of the two loops alternate in one process, on the same images, with equal models, optimizers and schedules;
the table gives the median over epochs of the time per step, and the median of the ratios of neighbouring epochs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import timm
import torch
from spread import quartiles
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trainkit import hookimpl
from trainkit.build import build, compose
from trainkit.checkpoint import Keeper
from trainkit.loop import fit

BATCH, WARM_UP = 32, 2
RECIPE = """
model: {name: test_resnet, in_chans: 1}
data: {name: digits, image_size: 32, batch_size: 32, drop_last: true}
train: {epochs: 1}
optimizer: {name: adamw, lr: 1e-3, weight_decay: 0.05}
scheduler: {name: constant}
"""


class Clock:
    """Notes when the first step of an epoch could begin and when its last has ended."""

    def __init__(self) -> None:
        self.start = self.end = 0.0

    @hookimpl
    def on_epoch_start(self) -> None:
        """The epoch's first step is next."""
        self.start = time.perf_counter()

    @hookimpl
    def on_evaluate_start(self) -> None:
        """The epoch's last step is over."""
        self.end = time.perf_counter()


def by_hand(model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> Any:
    """Return a function that trains one epoch as anybody would write it and returns the seconds it took."""
    loader = DataLoader(TensorDataset(images, targets), batch_size=BATCH, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    criterion = nn.CrossEntropyLoss()
    losses: list[float] = []

    def epoch() -> float:
        model.train()
        start = time.perf_counter()
        for x, y in loader:
            optimizer.zero_grad(set_to_none=True)
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        return time.perf_counter() - start

    return epoch


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=23, help="after the first two, which warm up")
    epochs = WARM_UP + parser.parse_args().epochs
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.yaml"
        path.write_text(RECIPE)
        clock = Clock()
        run = build(compose(path), Path(folder), [clock])
        keeper = Keeper(run.folder, run)
        images, targets = (torch.cat(parts) for parts in zip(*run.data.train.batches(0, 0), strict=True))
        model = timm.create_model("test_resnet", in_chans=1, num_classes=10)
        epoch = by_hand(model, images, targets)
        steps = run.data.train.steps_per_epoch
        ours, theirs = [], []
        for _ in range(epochs):
            run.epoch = run.step = 0
            fit(run, keeper)
            ours.append((clock.end - clock.start) / steps * 1e3)
            theirs.append(epoch() / steps * 1e3)
    ratios = [a / b for a, b in zip(ours[WARM_UP:], theirs[WARM_UP:], strict=True)]
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {len(ratios)} epochs of {steps} steps each")
    print(f"hand-written loop  {statistics.median(theirs[WARM_UP:]):7.3f} ms a step")
    print(f"trainkit, empty    {statistics.median(ours[WARM_UP:]):7.3f} ms a step")
    low, middle, high = quartiles(ratios)
    print(f"ratio              {middle:7.3f} (quartiles {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
