"""What the training aids cost: a step with each of them beside a step without, and what EMA adds to
a validation.

Run: python benchmarks/training_aids.py [MODEL [IMAGE_SIZE]] [--rounds 60]

Runs that differ only in one plugin take their steps in turn, in one process, on the same batches;
the table gives the median time of a step and the median over rounds of its ratio to the step
without plugins in the same round.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from spread import quartiles
from trainkit_plugins.early_stopping.plugin import EarlyStopping
from trainkit_plugins.ema.plugin import Ema
from trainkit_plugins.loggers.plugin import TensorBoard
from trainkit_plugins.mixup.plugin import Mixup

from trainkit import Plugin, Run
from trainkit.errors import Location
from trainkit.hooks.order import Entry
from trainkit.training.build import Setup, build, compose
from trainkit.training.checkpointer import Checkpointer
from trainkit.training.loop import flush_log, train_step
from trainkit.training.window import StepLoss

WARM_UP = 5
RECIPE = """
model: {{name: {model}, in_chans: 1}}
data: {{name: digits, image_size: {size}, batch_size: 64, drop_last: true}}
train: {{epochs: 1}}
optimizer: {{name: adamw, lr: 1e-3}}
"""
VARIANTS: dict[str, tuple[str, Callable[[], Plugin | None]]] = {
    "none": ("none", lambda: None),
    "ema, buffers: copy": ("ema", lambda: Ema(buffers="copy")),
    "ema, buffers: average": ("ema", lambda: Ema(buffers="average")),
    "mixup, mode: batch": ("mixup", lambda: Mixup(cutmix_alpha=1.0)),
    "mixup, mode: pair": ("mixup", lambda: Mixup(cutmix_alpha=1.0, mode="pair")),
    "mixup, mode: elem": ("mixup", lambda: Mixup(cutmix_alpha=1.0, mode="elem")),
    "early_stopping": ("early_stopping", EarlyStopping),
    "tensorboard": ("tensorboard", TensorBoard),
}


class Stepper:
    """A run that takes one step at a time, over and over through its first epoch."""

    def __init__(self, recipe: Path, name: str, plugin: Plugin | None) -> None:
        setup = compose(recipe)
        entries = [] if plugin is None else [Entry(name, plugin, Location("benchmark"))]
        if plugin is not None:
            plugin.bind(name, 0)
        folder = Path(tempfile.mkdtemp(dir=recipe.parent))
        self.run: Run = build(Setup(setup.recipe, entries), folder)
        self.checkpointer = Checkpointer(self.run.folder, self.run)
        self.loss = self.run.device.replicate(StepLoss(self.run))
        self.run.hook.on_fit_start(run=self.run)
        self.position = 0

    def step(self) -> float:
        """Take a step and hand on what it logged; return the seconds."""
        if self.position == 0:
            self.batches = self.run.data.train.batches(0, 0)
        start = time.perf_counter()
        train_step(self.run, self.loss, self.checkpointer.watch, self.position, self.batches)
        flush_log(self.run, self.checkpointer)
        seconds = time.perf_counter() - start
        self.position = (self.position + 1) % self.run.data.train.steps_per_epoch
        return seconds


def validation_extra(recipe: Path, buffers: str) -> float:
    """Return the median seconds that EMA spends before and after a validation."""
    stepper = Stepper(
        recipe, "ema", Ema.model_validate({"buffers": buffers, "recompute_batches": 10})
    )
    stepper.step()
    times = []
    for _ in range(7):
        start = time.perf_counter()
        stepper.run.hook.on_evaluate_start(model=stepper.run.model, run=stepper.run)
        stepper.run.hook.on_evaluate_end(model=stepper.run.model, metrics={}, run=stepper.run)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="resnet10t")
    parser.add_argument("size", nargs="?", type=int, default=32)
    parser.add_argument(
        "--rounds", type=int, default=60, help="after the first five, which warm up"
    )
    options = parser.parse_args()
    model, size = options.model, options.size
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "aids.yaml"
        recipe.write_text(RECIPE.format(model=model, size=size))
        steppers = {
            label: Stepper(recipe, name, make()) for label, (name, make) in VARIANTS.items()
        }
        times: dict[str, list[float]] = {label: [] for label in steppers}
        for _ in range(WARM_UP + options.rounds):
            for label, stepper in steppers.items():
                times[label].append(stepper.step())
        print(
            f"{model} at {size} px, batches of 64, {torch.get_num_threads()} threads, torch "
            f"{torch.__version__}"
        )
        print(f"{'plugin':24}{'ms a step':>12}{'ratio':>9}   quartiles")
        for label, taken in times.items():
            ratios = [a / b for a, b in zip(taken[WARM_UP:], times["none"][WARM_UP:], strict=True)]
            low, middle, high = quartiles(ratios)
            print(
                f"{label:24}{statistics.median(taken[WARM_UP:]) * 1e3:12.2f}{middle:9.3f}  "
                f" {low:.3f} to {high:.3f}"
            )
        step = statistics.median(times["none"][WARM_UP:])
        print("\nEMA around one validation (recompute: 10 batches)")
        for buffers in ("copy", "average", "recompute"):
            extra = validation_extra(recipe, buffers)
            print(
                f"buffers: {buffers:15}{extra * 1e3:12.2f} ms = {extra / step:.2f} training steps"
            )


if __name__ == "__main__":
    main()
