"""What each of the four changes to batch norm does in its recipe: arms paired over seeds 0 to 4.

Run: python benchmarks/batch_norm_study.py FILE [ARM …]      trains what FILE has not; default: every arm
     python benchmarks/batch_norm_study.py FILE --table      prints the tables of what FILE has

Each arm is a recipe with overrides. FILE gets one JSON line per training: its last validation, and for every alpha the
mean nll and accuracy of the same weights. Tables give means over seeds and mean paired differences to the first arm
with 95% intervals (Student's t). Alpha is judged by cross-fitting: each half of the validation images is measured with
the alpha that is best on the other half.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from trainkit_plugins.batch_norm import convert_batch_norm
from trainkit_plugins.batch_norm.choice import tune
from trainkit_plugins.batch_norm.tuning import ALPHAS, evaluating, sweep

from trainkit.build import build, compose
from trainkit.checkpoint import Keeper
from trainkit.loop import evaluate, fit

RECIPES = Path(__file__).parents[1] / "recipes"
SEEDS = range(5)


def off(recipe: str) -> list[str]:
    """Return the override that takes a recipe's plugin out."""
    return [f"~plugins.{recipe}"]


ARMS: dict[str, dict[str, tuple[str, list[str]]]] = {}


def train(recipe: str, overrides: list[str], seed: int) -> dict[str, Any]:
    """Train once; return the last validation, and what tuning alpha gives."""
    start = time.perf_counter()
    run = build(compose(RECIPES / f"{recipe}.yaml", [f"seed={seed}", *overrides]))
    fit(run, Keeper(None, run))
    measured = evaluate(run)
    seconds = time.perf_counter() - start
    convert_batch_norm(run.model, example_weight=0.0)
    with evaluating(run.model):
        scores = sweep(run.model, run.data.val, lambda batch: run.hook.evaluate_batch(run.model, batch, run), ALPHAS)
    found = tune(scores, ALPHAS, "nll")
    curve = [[point.alpha, point.nll, point.accuracy] for point in found.curve]
    gains = {"alpha": found.alpha, "alpha_nll": found.nll.mean, "alpha_accuracy": found.accuracy.mean}
    return {**measured, **gains, "curve": curve, "seconds": round(seconds, 1)}
