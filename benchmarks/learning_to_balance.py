"""What Learning to Balance costs over the Meta-SGD that it sits on, on the same tasks.

Run: python benchmarks/learning_to_balance.py [--rounds 15]

Any-shot 5-way tasks of up to 10 shots of glyphs, 10 queries a class, conv4, 3 inner steps, second
order, 4 tasks. Each round times one training step (loss and meta-gradient) of every arm on the same
tasks, and one test of 4 tasks; the order of the arms alternates. Ratios are medians over rounds of
the time divided by Meta-SGD's in that round, with quartiles.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from spread import quartiles

from trainkit import Run
from trainkit.training.build import build, compose

RECIPE = """
model: {{name: conv4, in_chans: 1, args: {{channels: {channels}}}}}
data: {{name: glyphs, image_size: {size}}}
plugins:
  maml: {{max_shot: 10, queries: 10, steps: 3, head: zero, steps_per_epoch: 100, val_episodes: 4,
      test_episodes: 0}}
  meta_sgd: {{}}
  learning_to_balance: {{draws: 10}}
"""
ARMS = {
    "Meta-SGD": ["~plugins.learning_to_balance"],
    "1/shots": [
        f"plugins.learning_to_balance.{o}" for o in ("omega=inverse", "gamma=false", "z=false")
    ],
    "Learning to Balance": [],
}


def training_step(run: Run, batch: Any) -> float:
    """Return the seconds of one loss and meta-gradient."""
    start = time.perf_counter()
    run.hook.compute_loss(model=run.model, batch=batch, run=run).backward()
    return time.perf_counter() - start


def test(run: Run, tasks: Any) -> float:
    """Return the seconds of one test of some tasks."""
    maml: Any = run.plugins["maml"]
    start = time.perf_counter()
    maml.predict_tasks(run.model, tasks, "test", run)
    return time.perf_counter() - start


def compare(channels: int, size: int, rounds: int) -> None:
    """Print the ratios for one network."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(RECIPE.format(channels=channels, size=size))
        runs = {name: build(compose(path, overrides)) for name, overrides in ARMS.items()}
    trained: dict[str, list[float]] = {name: [] for name in runs}
    tested: dict[str, list[float]] = {name: [] for name in runs}
    first = next(iter(runs.values()))
    tasks = next(iter(first.data.val))
    for number, batch in zip(range(-1, rounds), first.data.train.batches(0, 0), strict=False):
        for name, run in runs.items() if number % 2 else reversed(runs.items()):
            seconds = training_step(run, batch), test(run, tasks)
            if number >= 0:  # the first round warms up
                trained[name].append(seconds[0])
                tested[name].append(seconds[1])
    print(
        f"\nconv4, {channels} filters, {size} px: milliseconds of Meta-SGD, and ratios to it "
        "(quartiles)"
    )
    for what, times in (("training step", trained), ("test of 4 tasks", tested)):
        base = times["Meta-SGD"]
        print(f"  {what:18}{1000 * statistics.median(base):8.1f} ms")
        for name in list(times)[1:]:
            low, middle, high = quartiles([a / b for a, b in zip(times[name], base, strict=True)])
            print(f"    {name:22}{middle:7.3f}  ({low:.3f} to {high:.3f})")


def main() -> None:
    """Compare on the network of the study and on the paper's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print(f"{torch.get_num_threads()} thread(s), torch {torch.__version__}")
    for channels, size in ((16, 16), (32, 28)):
        compare(channels, size, rounds)


if __name__ == "__main__":
    main()
