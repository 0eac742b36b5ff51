"""Ways to treat missing inputs, side by side on the three recipes of sparsity_norm, paired over
seeds.

Run: python benchmarks/sparsity_norm_study.py FILE.jsonl [SETTING …]
Then: python benchmarks/sparsity_norm_study.py FILE.jsonl --table

Each training adds a line to FILE.jsonl; what is there already is not trained again. The settings
are the recipes ratings, table and images; ratings_relu, the first with another activation; and
convnet, the last with timm's test_resnet on enlarged digits of which one rectangle is hidden.
Tables give means over seeds with 95% intervals (Student's t), and differences to zero imputation,
paired by seed.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from scipy.stats import t as student
from trainkit_plugins.sparsity_norm import mean_logit, sparsity_bias

import trainkit

RECIPES = Path(__file__).parents[1] / "recipes"
CONVNET = [
    "model.name=test_resnet",
    "~model.args",
    "data.image_size=32",
    "data.missing.kind=blocks",
    "data.val_fraction=0.5",
]
CONVNET += ["train.epochs=8", "optimizer.lr=3e-3"]
SETTINGS: dict[str, tuple[str, list[str], int]] = {
    "ratings": ("sparsity_norm_ratings.yaml", [], 5),
    "ratings_relu": ("sparsity_norm_ratings.yaml", ["model.args.act=relu"], 5),
    "table": ("sparsity_norm_table.yaml", [], 5),
    "images": ("sparsity_norm_images.yaml", [], 5),
    "convnet": ("sparsity_norm_images.yaml", CONVNET, 3),
}
METHODS = {
    "zero": {"method": "zero", "center": "false"},
    "mean": {"method": "mean", "center": "true"},
    "zero, centred": {"method": "zero", "center": "true"},
    "zero and mask": {"method": "zero_and_mask", "center": "false"},
    "zero and mask, centred": {"method": "zero_and_mask", "center": "true"},
    "inverted dropout": {"method": "inverted_dropout", "center": "false"},
    "sparsity norm": {"method": "sparsity_norm", "center": "false"},
    "sparsity norm, centred": {"method": "sparsity_norm", "center": "true"},
}
Row = dict[str, Any]


def train(setting: str, method: str, seed: int) -> Row:
    """Train once; return metrics and correlations of the best validation (numbers) or of the
    last (classes).
    """
    file, over, _ = SETTINGS[setting]
    options = [f"plugins.sparsity_norm.{name}={value}" for name, value in METHODS[method].items()]
    # The data's own seed goes with the recipe's, so that intervals are over data sets too.
    own = "data.seed" if "ratings" in file else "data.missing.seed"
    overrides = [*over, *options, f"seed={seed}", f"{own}={seed}"]
    with TemporaryDirectory() as folder:
        result = trainkit.train(RECIPES / file, *overrides, run_dir=f"{folder}/run", progress=False)
    run, epochs = result.run, result.history.epochs()
    numbers = run.data.targets == "numbers"
    epoch = result.best["epoch"] - 1 if numbers else epochs[-1].epoch
    found: Row = {"setting": setting, "method": method, "seed": seed, "epoch": epoch}
    for record in result.history.records:
        if record.epoch == epoch:
            found |= measured(record)
    if not numbers:
        bias = sparsity_bias(run.model, run.data.val, mean_logit)
        found["logit_correlation"] = bias.correlation.value
    found["seconds"] = round(result.summary["seconds"], 1)
    return found


def measured(record: trainkit.Record) -> Row:
    """Return what a validation or the monitor logged."""
    return {
        name: value
        for name, value in record.values.items()
        if name.startswith(("val/", "sparsity_bias/")) and not isinstance(value, list)
    }


def columns(rows: list[Row]) -> dict[str, str]:
    """Return which values a table of these rows has, and their headings."""
    names = {"val/rmse": "RMSE", "val/accuracy": "accuracy", "val/nll": "nll"}
    names |= {
        "sparsity_bias/correlation": "corr",
        "logit_correlation": "corr |logit|",
        "sparsity_bias/true_correlation": "corr truth",
    }
    return {name: heading for name, heading in names.items() if all(name in row for row in rows)}


def interval(values: list[float]) -> float:
    """Return half of the 95% interval of a mean."""
    return (
        float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    )


def table(setting: str, rows: list[Row]) -> Iterator[str]:
    """Yield the lines of a setting's table, in Markdown."""
    shown = columns(rows)
    by = {
        method: {row["seed"]: row for row in rows if row["method"] == method} for method in METHODS
    }
    seeds = sorted(set.intersection(*(set(found) for found in by.values() if found)))
    if len(seeds) < 2:
        return
    main = next(iter(shown))
    yield f"\n{setting}, seeds {', '.join(map(str, seeds))}\n"
    yield f"| method | {' | '.join(shown.values())} | {shown[main]} less that of zero |"
    yield "|---" * (len(shown) + 2) + "|"
    for method, found in by.items():
        if not found:
            continue
        values = {name: [found[seed][name] for seed in seeds] for name in shown}
        cells = [f"{statistics.mean(v):.3f} ± {interval(v):.3f}" for v in values.values()]
        gains = [found[seed][main] - by["zero"][seed][main] for seed in seeds]
        difference = (
            f"{statistics.mean(gains):+.3f} ± {interval(gains):.3f}" if method != "zero" else ""
        )
        yield f"| {method} | {' | '.join(cells)} | {difference} |"


def main() -> None:
    """Train what is missing, or print the tables."""
    path, *wanted = Path(sys.argv[1]), *sys.argv[2:]
    rows: list[Row] = (
        [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    )
    if wanted == ["--table"]:
        for setting in SETTINGS:
            chosen = [row for row in rows if row["setting"] == setting]
            if chosen:
                print("\n".join(table(setting, chosen)))
        return
    done = {(row["setting"], row["method"], row["seed"]) for row in rows}
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for setting in wanted or SETTINGS:
        for seed in range(SETTINGS[setting][2]):
            for method in METHODS:
                if (setting, method, seed) not in done:
                    row = train(setting, method, seed)
                    with path.open("a") as file:
                        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
