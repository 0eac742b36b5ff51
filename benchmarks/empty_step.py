"""What trainkit's loop costs over a hand-written one: an empty recipe on test_resnet at 32 px, side
by side.

Run: python benchmarks/empty_step.py [--epochs 23]

Steps of the two loops alternate in one process, on the same images, with equal models, optimizers
and schedules; the table gives the median over epochs of the time per step, and the median of the
epochs' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import chain, count
from pathlib import Path

import timm
import torch
from spread import quartiles
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trainkit import hookimpl
from trainkit.training.build import build, compose
from trainkit.training.checkpointer import Checkpointer
from trainkit.training.loop import fit

BATCH, WARM_UP = 32, 2
RECIPE = """
model: {name: test_resnet, in_chans: 1}
data: {name: digits, image_size: 32, batch_size: 32, drop_last: true}
train: {epochs: 1}
optimizer: {name: adamw, lr: 1e-3, weight_decay: 0.05}
scheduler: {name: constant}
"""


class Alternating:
    """Takes a step by hand after each of trainkit's, and keeps the two's times apart.

    Attributes:
        ours: the seconds of each epoch of trainkit's loop, from its first step to the end of its
            last.
        theirs: those of the loop by hand.
    """

    def __init__(self, step: Callable[[], None]) -> None:
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self._step = step
        self._start = self._between = 0.0

    @hookimpl
    def on_epoch_start(self) -> None:
        """The epoch's first step is next."""
        self._between, self._start = 0.0, time.perf_counter()

    @hookimpl
    def after_optimizer_step(self) -> None:
        """Take the other loop's step."""
        start = time.perf_counter()
        self._step()
        self._between += time.perf_counter() - start

    @hookimpl
    def on_evaluate_start(self) -> None:
        """The epoch's last step is over."""
        self.ours.append(time.perf_counter() - self._start - self._between)
        self.theirs.append(self._between)


def by_hand(images: torch.Tensor, targets: torch.Tensor) -> Callable[[], None]:
    """Return a function that takes the next step as anybody would write it."""
    model = timm.create_model("test_resnet", in_chans=1, num_classes=10).train()
    loader = DataLoader(
        TensorDataset(images, targets), batch_size=BATCH, shuffle=True, drop_last=True
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    criterion = nn.CrossEntropyLoss()
    batches = chain.from_iterable(loader for _ in count())
    losses: list[float] = []

    def step() -> None:
        x, y = next(batches)
        optimizer.zero_grad(set_to_none=True)
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())

    return step


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=23, help="after the first two, which warm up")
    epochs = WARM_UP + parser.parse_args().epochs
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.yaml"
        path.write_text(RECIPE)
        data = build(compose(path), Path(folder)).data
        images, targets = (
            torch.cat(parts) for parts in zip(*data.train.batches(0, 0), strict=True)
        )
        times = Alternating(by_hand(images, targets))
        run = build(compose(path), Path(folder), [times])
        checkpointer = Checkpointer(run.folder, run)
        for _ in range(epochs):
            run.epoch = run.step = 0
            fit(run, checkpointer)
    steps = run.data.train.steps_per_epoch
    ours, theirs = ([t / steps * 1e3 for t in own[WARM_UP:]] for own in (times.ours, times.theirs))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {len(ratios)} epochs of "
        f"{steps} steps each"
    )
    print(f"hand-written loop  {statistics.median(theirs):7.3f} ms a step")
    print(f"trainkit, empty    {statistics.median(ours):7.3f} ms a step")
    low, middle, high = quartiles(ratios)
    print(f"ratio              {middle:7.3f} (quartiles {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
