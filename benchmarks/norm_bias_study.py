"""What the recipes norm_bias, spectral_rank and local_minimum show, over seeds and against their
controls.

Run: python benchmarks/norm_bias_study.py RECIPE [--seeds 5] [--out FILE]
     python benchmarks/norm_bias_study.py --tables FILE

The first trains and writes one JSON line per training, the second prints means and paired
differences.

RECIPE is norm_bias, norm_bias_batch_norm, spectral_rank or local_minimum. Differences are paired
over seeds, to the first row of each table, with 95% intervals (Student's t).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from trainkit_plugins.norm_bias import squared_norm

from trainkit import Record, Recorder, Run
from trainkit.training.build import build, compose
from trainkit.training.checkpointer import Checkpointer
from trainkit.training.loop import evaluate, fit

RECIPES = Path(__file__).parents[1] / "recipes"
NONE, DECAY = "~plugins.norm_bias", "optimizer.weight_decay"
PULLS = {
    "none": [NONE],
    "weight decay 5e-4": [NONE, f"{DECAY}=5e-4"],
    "weight decay 5e-3": [NONE, f"{DECAY}=5e-3"],
    "mu_squared 0": ["plugins.norm_bias={mu_squared: 0}"],
    **{f"auto, {x} x": [f"plugins.norm_bias.auto_multiple={x}"] for x in (1, 3, 6, 12)},
    "auto, 6 x, form squared": [
        "plugins.norm_bias.auto_multiple=6",
        "plugins.norm_bias.form=squared",
    ],
}
BATCH_NORM = ["model.args.batch_norm=true"]
STUDIES: dict[str, tuple[str, dict[str, list[str]]]] = {
    "norm_bias": ("norm_bias.yaml", PULLS),
    "norm_bias_batch_norm": (
        "norm_bias.yaml",
        {arm: BATCH_NORM + pull for arm, pull in PULLS.items()},
    ),
    "spectral_rank": (
        "spectral_rank.yaml",
        {
            "neither": ["plugins.spectral_rank={mode: minimize, threshold: 0, every: 60}"],
            "maximize": ["plugins.spectral_rank.mode=maximize"],
            "minimize": ["plugins.spectral_rank.mode=minimize"],
        },
    ),
    "local_minimum": (
        "local_minimum.yaml",
        {
            "default start": ["~plugins.trap_init"],
            "affine start": [],
            "affine start, noise 0.01": ["plugins.trap_init.noise=0.01"],
            "affine start, lr 0.5": ["optimizer.lr=0.5"],
            "default start, lr 0.5": ["~plugins.trap_init", "optimizer.lr=0.5"],
        },
    ),
}
Row = dict[str, float]


def train(recipe: str, overrides: Sequence[str], seed: int) -> Row:
    """Train once and return what came of it."""
    recorder = Recorder()
    run = build(compose(RECIPES / recipe, [*overrides, f"seed={seed}"]), None, [recorder])
    start = time.process_time()
    fit(run, Checkpointer(None, run))
    seconds = time.process_time() - start
    row: Row = {
        **evaluate(run),
        "seconds": seconds,
        "squared_norm": squared_norm(run.model.parameters()).item(),
    }
    row |= training_data(run) | logged(recorder.records)
    if "norm_bias" in run.plugins:
        goal = run.plugins["norm_bias"].state_dict()["mu_squared"]
        if goal:
            row |= {"mu_squared": goal, "off": abs(row["squared_norm"] / goal - 1)}
    return row


@torch.no_grad()
def training_data(run: Run) -> Row:
    """Return loss and accuracy on the training data."""
    run.model.eval()
    loss, right, count = 0.0, 0, 0
    for batch in run.data.train.batches(0, 0):
        batch = run.hook.prepare_batch(batch=batch, run=run)
        loss += run.hook.compute_loss(model=run.model, batch=batch, run=run).item() * len(
            batch.targets
        )
        right += int((run.model(batch.inputs).argmax(1) == batch.targets).sum())
        count += len(batch.targets)
    return {"training_loss": loss / count, "training_accuracy": right / count}


def logged(records: Sequence[Record]) -> Row:
    """Return the last value of what the plugins logged; of ranks, the mean over layers, first
    and last.
    """
    found: Row = {}
    for prefix in ("spectral_rank/effective_rank/", "spectral_rank/changed/"):
        rows = [[v for k, v in r.values.items() if k.startswith(prefix)] for r in records]
        means = [statistics.fmean(row) for row in rows if row]  # type: ignore[arg-type]
        if means:
            found |= {
                f"{prefix.split('/')[1]}_first": means[0],
                f"{prefix.split('/')[1]}_last": means[-1],
            }
    for name in ("trap_init/affine_loss", "trap_init/active"):
        values = [r.values[name] for r in records if name in r.values]
        if values and isinstance(values[-1], float):
            found[name.split("/")[1]] = values[-1]
    return found


def half_width(values: Sequence[float]) -> float:
    """Return half of the 95% interval of a mean."""
    if len(values) < 2:
        return float("nan")
    return (
        float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    )


def tables(lines: Sequence[dict[str, Any]]) -> None:
    """Print one table per study: every measure's mean with its interval, and the paired
    difference to the first row.
    """
    for study in dict.fromkeys(line["study"] for line in lines):
        mine = [line for line in lines if line["study"] == study]
        arms = {
            arm: {line["seed"]: line["row"] for line in mine if line["arm"] == arm}
            for arm in dict.fromkeys(line["arm"] for line in mine)
        }
        first = next(iter(arms.values()))
        for arm, rows in arms.items():
            print(f"\n{study}: {arm} ({len(rows)} seeds)")
            for name in next(iter(rows.values())):
                values = [row[name] for row in rows.values()]
                text = f"  {name:24}{statistics.fmean(values):12.5g} ± {half_width(values):<10.3g}"
                both = [seed for seed in rows if seed in first and name in first[seed]]
                if rows is not first and both:
                    gains = [rows[seed][name] - first[seed][name] for seed in both]
                    text += f"{statistics.fmean(gains):+12.5g} ± {half_width(gains):<10.3g}"
                print(text)
        off = [row["off"] for rows in arms.values() for row in rows.values() if "off" in row]
        if off:
            print(f"\n{study}: farthest from a target: {max(off):.3%}")


def main() -> None:
    """Train, or print the tables of what was trained."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="?", choices=STUDIES)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tables", type=Path)
    options = parser.parse_args()
    if options.tables:
        tables([json.loads(line) for line in options.tables.read_text().splitlines()])
        return
    recipe, arms = STUDIES[options.recipe or parser.error("give a recipe, or --tables FILE")]
    lines = []
    for seed in range(options.seeds):
        for arm, overrides in arms.items():
            lines.append(
                {
                    "study": options.recipe,
                    "arm": arm,
                    "seed": seed,
                    "row": train(recipe, overrides, seed),
                }
            )
            text = json.dumps(lines[-1])
            print(text, file=sys.stderr)
            if options.out:
                with options.out.open("a") as file:
                    file.write(text + "\n")
    tables(lines)


if __name__ == "__main__":
    main()
