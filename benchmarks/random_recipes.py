"""Every option with every kind of value, and random recipes: each is accepted, or refused with its
place, in time.

Run: python benchmarks/random_recipes.py [--count 5000] [--seed 0] [--only TEXT] [--every 1]
    [--limit 5]

First every option of core and of every installed plugin is given every kind of value, one at a
time; then come `--count` random recipes, bundled ones with a few keys changed, removed, added or
moved. Each is planned in a process of its own, with `--limit` seconds of processor time and 4 GB.
The exit status is 1 if any ended otherwise than accepted or refused with a message that says where;
the smallest example of each distinct place is printed.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import torch
from recipe_cases import Case, mutated, systematic
from recipe_trial import Outcome, in_a_child

from trainkit.commands.schema import recipe_schema


def campaign(count: int, seed: int, only: str, seconds: float, every: int = 1) -> int:
    """Try all, and print what came of it; return how many ended wrongly."""
    schema = recipe_schema()
    draw = random.Random(seed)
    cases = [
        *islice(systematic(schema), seed % every, None, every),
        *(mutated(schema, draw) for _ in range(count)),
    ]
    cases = [case for case in cases if only in case.what]
    counts: Counter[str] = Counter()
    smallest: dict[Outcome, Case] = {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        for i, case in enumerate(cases):
            path.write_text(case.text, encoding="utf-8", errors="backslashreplace")
            outcome = in_a_child(path, seconds)
            counts[outcome.kind] += 1
            if outcome.kind not in ("accepted", "refused"):
                if outcome not in smallest:
                    print(f"{outcome.kind}: {outcome.place}\n    {case.what}", flush=True)
                smallest[outcome] = min(
                    case, smallest.get(outcome, case), key=lambda c: len(c.text)
                )
            if sys.stderr.isatty() and i % 20 == 0:
                print(f"\r{i}/{len(cases)}", end="", file=sys.stderr)
    print(f"\n{len(cases)} recipes in {time.monotonic() - began:.0f} s: {dict(counts)}")
    for outcome, case in sorted(smallest.items(), key=lambda item: (item[0].kind, item[0].place)):
        print(
            f"\n{outcome.kind}: {outcome.place}\n  {case.what}\n"
            + "".join(f"    {line[:160]}\n" for line in case.text.splitlines())
        )
    return sum(number for kind, number in counts.items() if kind not in ("accepted", "refused"))


def main() -> int:
    """Read the command line; return how many recipes ended wrongly."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=5000, help="random recipes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="only cases whose description has this text")
    parser.add_argument(
        "--every",
        type=int,
        default=1,
        help="of the options with every kind of value, each Nth only",
    )
    parser.add_argument("--limit", type=float, default=5, help="seconds of processor time for each")
    given = parser.parse_args()
    torch.set_num_threads(1)
    return campaign(given.count, given.seed, given.only, given.limit, given.every)


if __name__ == "__main__":
    sys.exit(main() > 0)
