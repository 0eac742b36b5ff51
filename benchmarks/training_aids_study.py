"""Whether averaging the weights helps on the digits: paired over seeds, half of the images held
out.

Run: python benchmarks/training_aids_study.py [--seeds 5] [--epochs 10]

Averaging does not change training, so each training without it is also the training under every
averaging. Tables give means over seeds, and the mean paired difference to the first row with its
95% interval (Student's t).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from trainkit_plugins.ema.plugin import Ema

from trainkit import Run, hookimpl
from trainkit.training.build import build, compose
from trainkit.training.checkpointer import Checkpointer
from trainkit.training.loop import evaluate, fit

RECIPE = """
seed: {seed}
model: {{name: resnet10t, in_chans: 1}}
data: {{name: digits, image_size: 32, batch_size: 64, val_fraction: 0.5}}
train: {{epochs: {epochs}, evaluate_every: {epochs}}}
optimizer: {{name: adamw, lr: 3e-3, weight_decay: 0.05}}
scheduler: {{name: {schedule}, warmup_epochs: 1}}
"""
AVERAGES = {f"ema, buffers: {b}": {"buffers": b} for b in ("copy", "average", "recompute")} | {
    "ema, average, no warm-up": {"warmup": False, "buffers": "average"}
}
Row = dict[str, float]


class Follower:
    """Lets an average follow a run without taking part in its validations."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.ema = Ema.model_validate(options)

    @hookimpl
    def on_fit_start(self, run: Run) -> None:
        """Begin to follow."""
        self.ema.on_fit_start(run)

    @hookimpl
    def after_optimizer_step(self, run: Run) -> None:
        """Follow."""
        self.ema.after_optimizer_step(run)

    def measure(self, run: Run) -> Row:
        """Validate the average."""
        run.epoch -= 1  # the epoch just trained, as in a validation inside the run
        self.ema.on_evaluate_start(run.model, run)
        found = evaluate(run)
        self.ema.on_evaluate_end(run.model, run)
        run.epoch += 1
        return found


def train(seed: int, schedule: str, epochs: int, observers: Iterable[Any] = ()) -> Run:
    """Train once, validating at the end, and return the run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.yaml"
        path.write_text(RECIPE.format(seed=seed, schedule=schedule, epochs=epochs))
        setup = compose(path)
    run = build(setup, None, list(observers))
    fit(run, Checkpointer(None, run))
    return run


def table(title: str, rows: dict[str, list[Row]]) -> None:
    """Print the means and the paired differences to the first row."""
    title += f", {len(next(iter(rows.values())))} seeds"
    print(f"\n{title}\n{'':28}{'accuracy':>9}{'difference':>24}{'nll':>9}{'difference':>24}")
    first = next(iter(rows.values()))
    for label, found in rows.items():
        line = f"{label:28}"
        for name, scale in (("accuracy", 100.0), ("nll", 1.0)):
            gains = [scale * (a[name] - b[name]) for a, b in zip(found, first, strict=True)]
            half = student.ppf(0.975, len(gains) - 1) * statistics.stdev(gains) / len(gains) ** 0.5
            line += f"{scale * statistics.mean(row[name] for row in found):9.3f}"
            line += (
                f"{statistics.mean(gains):+12.3f} ± {half:<9.3f}"
                if found is not first
                else " " * 24
            )
        print(line.rstrip())


def averaging(schedule: str, seeds: range, epochs: int) -> None:
    """Validate the weights and their averages at the end of training."""
    rows: dict[str, list[Row]] = {label: [] for label in ("weights as trained", *AVERAGES)}
    for seed in seeds:
        followers = {label: Follower(options) for label, options in AVERAGES.items()}
        run = train(seed, schedule, epochs, observers=followers.values())
        rows["weights as trained"].append(evaluate(run))
        for label, follower in followers.items():
            rows[label].append(follower.measure(run))
    table(f"Averaging, {schedule} schedule, {epochs} epochs", rows)


def main() -> None:
    """Run every comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="at least 2, for the intervals")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for schedule in ("constant", "cosine"):
        averaging(schedule, range(options.seeds), options.epochs)


if __name__ == "__main__":
    main()
