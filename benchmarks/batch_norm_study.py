"""What each of the four changes to batch norm does in its recipe: arms paired over seeds 0 to 4.

Run: python benchmarks/batch_norm_study.py FILE [TABLE …]    trains what FILE has not, and prints
    the tables

Each arm is a recipe with overrides. FILE gets one JSON line per training: its last validation, and
for every alpha the mean nll and accuracy of the same weights. Tables give means over seeds and mean
paired differences to the first arm with 95% intervals (Student's t). Alpha is judged by
cross-fitting: each half of the validation images is measured with the alpha that is best on the
other half.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from itertools import combinations
from pathlib import Path
from typing import Any

from scipy.stats import t as student
from trainkit_plugins.batch_norm import convert_batch_norm
from trainkit_plugins.batch_norm.alphas import ALPHAS, evaluating, sweep
from trainkit_plugins.batch_norm.worth import tune

from trainkit.training.build import Setup, build, compose
from trainkit.training.checkpointer import Checkpointer
from trainkit.training.loop import evaluate, fit

RECIPES = Path(__file__).parents[1] / "recipes"
SEEDS = range(5)


Arm = tuple[str, list[str]]


def _ghost() -> dict[str, Arm]:
    arms = {
        f"blocks of {size}": ("ghost_batch_norm", [f"plugins.ghost_batch_norm.size={size}"])
        for size in SIZES
    }
    return {"plain": ("ghost_batch_norm", ["~plugins.ghost_batch_norm"])} | arms


def _decay() -> dict[str, Arm]:
    arms: dict[str, Arm] = {"no decay": ("norm_decay", ["~plugins.norm_decay"])}
    for strength in ("1e-4", "1e-2", "1e-1"):
        one = f"scale: {strength}, shift: {strength}"
        arms[f"exposed, toward one, {strength}"] = "norm_decay", [f"plugins.norm_decay={{{one}}}"]
    for further in ("toward: zero", "where: all"):
        options = f"scale: 1e-2, shift: 1e-2, {further}"
        arms[f"1e-2, {further}"] = "norm_decay", [f"plugins.norm_decay={{{options}}}"]
    return arms


def _group() -> dict[str, Arm]:
    arms: dict[str, Arm] = {"plain": ("batch_group_norm", ["~plugins.batch_group_norm"])}
    for groups, examples in ((32, 2), (8, 2), (8, 4)):
        options = f"{{channel_groups: {groups}, examples: {examples}}}"
        arms[f"{groups} groups, {examples} examples"] = (
            "batch_group_norm",
            [f"plugins.batch_group_norm={options}"],
        )
    own = [
        "plugins.batch_group_norm={channel_groups: 8, examples: 1}",
        "plugins.example_weighing.alpha=1",
    ]
    return arms | {"group norm: 8 groups, alpha 1": ("batch_group_norm", own)}


def _weighing() -> dict[str, Arm]:
    # Alpha is chosen after training: these arms differ in training alone, and each is its own
    # baseline.
    recipe, out = "example_weighing", "~plugins.example_weighing"
    return {
        "batches of 128": (recipe, [out]),
        "batches of 16": (recipe, [out, "data.batch_size=16", "optimizer.lr=0.02"]),
        "blocks of 16": (recipe, [out, "plugins.ghost_batch_norm.size=16"]),
    }


def _subsets() -> dict[str, Arm]:
    names = ("ghost_batch_norm", "batch_group_norm", "norm_decay")
    arms = {}
    for kept in (subset for count in range(4) for subset in combinations(names, count)):
        out = [f"~plugins.{name}" for name in names if name not in kept]
        label = (
            " + ".join(kept)
            .replace("_batch_norm", "")
            .replace("batch_group_norm", "group")
            .replace("norm_", "")
        )
        arms[label or "plain"] = "batch_norm_all_four", [*out, "~plugins.example_weighing"]
    return arms


SIZES = (4, 8, 16, 32)
TABLES = {
    "ghost": _ghost,
    "decay": _decay,
    "group": _group,
    "weighing": _weighing,
    "subsets": _subsets,
}


def train(setup: Setup) -> dict[str, Any]:
    """Train once; return the last validation, and what tuning alpha gives."""
    start = time.perf_counter()
    run = build(setup)
    fit(run, Checkpointer(None, run))
    measured = evaluate(run)
    seconds = time.perf_counter() - start
    convert_batch_norm(run.model, example_weight=0.0)
    with evaluating(run.model):
        scores = sweep(
            run.model,
            run.data.val,
            lambda batch: run.hook.evaluate_batch(model=run.model, batch=batch, run=run),
            ALPHAS,
        )
    found = tune(scores, ALPHAS, "nll")
    curve = [[point.alpha, point.nll, point.accuracy] for point in found.curve]
    gains = {
        "alpha": found.alpha,
        "alpha_nll": found.nll.mean,
        "alpha_accuracy": found.accuracy.mean,
    }
    return {**measured, **gains, "curve": curve, "seconds": round(seconds, 1)}


def interval(values: list[float]) -> str:
    """Return the mean of `values` with its 95% interval (Student's t)."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.4f}"
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:+.4f} ± {half:.4f}"


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print one table: means, differences to the first arm, and what tuning alpha adds in each."""
    arms: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        if row["table"] == title:
            arms.setdefault(row["arm"], {})[row["seed"]] = row
    if not arms:
        return
    first = next(iter(arms.values()))
    print(
        f"\n{title}, seeds {sorted(first)}; of {len(first)} seeds the mean, and paired differences "
        "with 95% intervals"
    )
    print(
        f"{'arm':34}{'accuracy':>9}{'difference':>19}{'nll':>8}{'difference':>19}{'ece':>7} | "
        "alphas, nll and accuracy"
    )
    for label, found in arms.items():
        both = sorted(found.keys() & first.keys())
        line = f"{label:34}"
        for name in ("accuracy", "nll"):
            width = 9 if name == "accuracy" else 8
            line += f"{statistics.mean(row[name] for row in found.values()):{width}.4f}"
            gains = [found[seed][name] - first[seed][name] for seed in both]
            line += f"{'' if found is first else interval(gains):>19}"
        line += f"{statistics.mean(row['calibration_error'] for row in found.values()):7.4f}"
        alphas = " ".join(f"{found[seed]['alpha']:g}" for seed in sorted(found))
        tuned = [
            interval([row[f"alpha_{name}"] for row in found.values()])
            for name in ("nll", "accuracy")
        ]
        print(f"{line} | {alphas}; {tuned[0]}; {tuned[1]}")


def main() -> None:
    """Train what is missing and print every table asked for."""
    file, *asked = sys.argv[1:]
    path = Path(file)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["table"], row["arm"], row["seed"]) for row in rows}
    same: dict[str, dict[str, Any]] = {
        row["recipe"]: row for row in rows
    }  # arms of two tables may be one recipe
    for seed in SEEDS:
        for table in asked or TABLES:
            for label, (recipe, overrides) in TABLES[table]().items():
                if (table, label, seed) in done:
                    continue
                setup = compose(RECIPES / f"{recipe}.yaml", [f"seed={seed}", *overrides])
                text = setup.recipe.dump()
                if text not in same:
                    same[text] = {**train(setup), "recipe": text}
                rows.append({**same[text], "table": table, "arm": label, "seed": seed})
                with path.open("a") as lines:
                    lines.write(json.dumps(rows[-1]) + "\n")
    for table in asked or TABLES:
        show(table, rows)


if __name__ == "__main__":
    main()
