"""Whether the training aids help on the digits: paired over seeds, half of the images held out.

Run: python benchmarks/training_aids_study.py [averaging | mixing | stopping] ...

Averaging does not change training, so each training without it is also the training under every averaging. Tables give
means over seeds, and the mean paired difference to the first row with its 95% interval (Student's t).
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from trainkit_plugins.early_stopping.plugin import EarlyStopping
from trainkit_plugins.ema.plugin import Ema
from trainkit_plugins.mixup.plugin import Mixup

from trainkit import Plugin, Run, hookimpl
from trainkit.build import Setup, build, compose
from trainkit.checkpoint import Keeper
from trainkit.errors import Mark
from trainkit.loop import evaluate, fit
from trainkit.manager import Entry

RECIPE = """
seed: {seed}
model: {{name: resnet10t, in_chans: 1}}
data: {{name: digits, image_size: 32, batch_size: 64, val_fraction: 0.5}}
train: {{epochs: {epochs}, evaluate_every: {every}}}
optimizer: {{name: adamw, lr: 3e-3, weight_decay: 0.05}}
scheduler: {{name: {schedule}, warmup_epochs: 1}}
"""
AVERAGES = {f"ema, buffers: {b}": {"buffers": b} for b in ("copy", "average", "recompute")} | {
    "ema, average, no warm-up": {"warmup": False, "buffers": "average"}
}
MIXES: dict[str, dict[str, Any]] = {
    "mixup, alpha 0.2": {"mixup_alpha": 0.2},
    "mixup, alpha 1": {"mixup_alpha": 1.0},
    "CutMix, alpha 1": {"mixup_alpha": 0.0, "cutmix_alpha": 1.0},
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


class Curve:
    """Keeps what every validation found."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    @hookimpl
    def on_evaluate_end(self, metrics: Row) -> None:
        """Keep it."""
        self.rows.append(dict(metrics))


def train(
    seed: int,
    schedule: str,
    epochs: int,
    plugin: Plugin | None = None,
    observers: Iterable[Any] = (),
    every: int | None = None,
) -> Run:
    """Train once and return the run; validate every so many epochs, by default once at the end."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.yaml"
        path.write_text(RECIPE.format(seed=seed, schedule=schedule, epochs=epochs, every=every or epochs))
        setup = compose(path)
    entries = []
    if plugin is not None:
        plugin.bind("plugin", seed)
        entries = [Entry("plugin", plugin, Mark("study"))]
    run = build(Setup(setup.recipe, entries), None, list(observers))
    fit(run, Keeper(None, run))
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
            line += f"{statistics.mean(gains):+12.3f} ± {half:<9.3f}" if found is not first else " " * 24
        print(line.rstrip())


def averaging(schedule: str, seeds: range) -> None:
    """Validate the weights and their averages at the end of 10 epochs."""
    rows: dict[str, list[Row]] = {label: [] for label in ("weights as trained", *AVERAGES)}
    for seed in seeds:
        followers = {label: Follower(options) for label, options in AVERAGES.items()}
        run = train(seed, schedule, 10, observers=followers.values())
        rows["weights as trained"].append(evaluate(run))
        for label, follower in followers.items():
            rows[label].append(follower.measure(run))
    table(f"Averaging, {schedule} schedule, 10 epochs", rows)


def mixing(epochs: int, seeds: range) -> None:
    """Compare the ends of trainings with and without mixing."""
    curves: dict[str, list[Curve]] = {label: [Curve() for _ in seeds] for label in ("no mixing", *MIXES)}
    for label, found in curves.items():
        for seed, curve in zip(seeds, found, strict=True):
            plugin = Mixup.model_validate(MIXES[label]) if label in MIXES else None
            train(seed, "cosine", epochs, plugin, [curve])
    rows = {label: [curve.rows[-1] for curve in found] for label, found in curves.items()}
    table(f"Mixing, cosine schedule, {epochs} epochs", rows)


def stopping(seeds: range) -> None:
    """Compare where a patience would have ended a run of 20 epochs with its whole course."""
    print("\nEarly stopping, constant schedule, 20 epochs: epochs trained, best accuracy then, best accuracy of all 20")
    for seed in seeds:
        curve = Curve()
        run = train(seed, "constant", 20, observers=[curve], every=1)
        best = max(row["accuracy"] for row in curve.rows)
        line = f"seed {seed}: "
        for patience in (3, 5, 10):
            stop = EarlyStopping(patience=patience)
            run.stop_reason = ""
            epochs = 0
            while epochs < len(curve.rows) and not run.stop_reason:
                stop.on_evaluate_end(curve.rows[epochs], run)
                epochs += 1
            at = max(row["accuracy"] for row in curve.rows[:epochs])
            line += f"  patience {patience}: {epochs:2d} {100 * at:.2f}"
        print(f"{line}  all: {100 * best:.2f}")


def main() -> None:
    """Run every comparison."""
    parts = {
        "averaging": lambda: [averaging(schedule, range(5)) for schedule in ("constant", "cosine")],
        "mixing": lambda: mixing(10, range(3)),
        "stopping": lambda: stopping(range(3)),
    }
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for name in sys.argv[1:] or parts:
        parts[name]()


if __name__ == "__main__":
    main()
