"""Which plugins go together: every pair in both orders, and each plugin under every switch of
`train:`.

    python -m benchmarks.pairs                    # all of it; exit code 1 if a run fails without a
    reason python -m benchmarks.pairs maml smoothness    # the pairs and switches of these plugins
    python -m benchmarks.pairs --write            # all of it, into docs/compatibility.md

Each run is a few steps on a tiny recipe, in a process of its own that is forked from one that has
imported torch. It is `ok`, or `refused` with the recipe's line and a reason, or `failed`. The two
orders are compared bit for bit.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.pairs_page import SWITCHES, Job, Result, page
from trainkit.config.locations import dump
from trainkit.config.raw import merge
from trainkit.errors import UserError
from trainkit.hooks.discovery import installed
from trainkit.testing.training import TINY, train
from trainkit.training.build import compose

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"
SECONDS = 120.0
"""After which a run counts as one that does not end."""

FEW_SHOT = ("maml", "meta_sgd", "meta_dropout", "learning_to_balance")
NORMS = ("batch_group_norm", "example_weighing", "ghost_batch_norm", "norm_decay")

OPTIONS: dict[str, dict[str, Any]] = {
    "maml": (
        {"ways": 3, "shots": 2, "queries": 3, "tasks": 2, "steps": 2, "inner_lr": 0.1, "workers": 1}
        | {"steps_per_epoch": 3, "val_episodes": 2, "test_episodes": 2}
    ),
    "learning_to_balance": {"draws": 2},
    "meta_dropout": {"test_samples": 2},
    "ghost_batch_norm": {"size": 4},
    "batch_group_norm": {"channel_groups": 4},
    "norm_decay": {"where": "all"},
    "grad_clip": {"max_norm": 0.5},
    "smoothness": {"every": 2},
    "spectral_rank": {"every": 2},
    "wandb": {} if find_spec("wandb") else {"mode": "disabled"},
}
"""What plugins need to have something to do in three steps; the others have their defaults."""


def recipe_of(job: Job) -> dict[str, Any]:
    """Return the smallest recipe in which all plugins of a job have something to act on."""
    names = [
        *(["maml"] if job.pair & set(FEW_SHOT) and "maml" not in job.plugins else []),
        *job.plugins,
    ]
    data: dict[str, Any] = {"train": dict(SWITCHES.get(job.switch, {}))}
    if "maml" in names:
        # conv4 has norms of its own, which the plugins of batch norms do not change.
        small = not job.pair & set(NORMS) and job.switch != "checkpointing"
        conv4 = {"name": "conv4", "in_chans": 1, "args": {"channels": 4}}
        data["model"] = conv4 if small else {"name": "test_resnet", "in_chans": 1}
        data["data"] = {
            "name": "glyphs",
            "image_size": 16 if small else 32,
            "letters": 12,
            "variants": 1,
        }
        data["optimizer"] = {"name": "adam", "weight_decay": 0.0}
        return {**data, "train": {**TINY["train"], **data["train"]}, "plugins": _options(names)}
    if "trap_init" in names:
        data["model"] = {"name": "mlp", "args": {"hidden": [32]}}
        data["data"] = {"image_size": 8}
        data["train"]["loss"] = {"smoothing": 0.1}
    if "norm_bias" in names:
        data["optimizer"] = {"weight_decay": 0.0}  # which norm_bias takes the place of
    recipe = merge(TINY, data)
    if "trap_init" in names:
        recipe["model"]["args"].pop("drop_rate")
    return recipe | {"plugins": _options(names)}


def _options(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    return {name: OPTIONS.get(name, {}) for name in names}


def attempt(job: Job) -> Result:
    """Train a job's recipe in this process."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(dump(recipe_of(job)), encoding="utf-8")
        try:
            trace = train(lambda: compose(path))
        except UserError as error:
            placed = re.fullmatch(re.escape(str(path)) + r":\d+: (.+)", str(error).splitlines()[0])
            if placed is None:
                return Result("failed", f"refused without a place: {error}")
            return Result("refused", placed[1])
        except Exception as error:  # whatever it is, it is the result
            at = traceback.extract_tb(error.__traceback__)[-1]
            return Result(
                "failed",
                f"{type(error).__name__}: {str(error)[:300]} "
                f"({Path(at.filename).name}:{at.lineno})",
            )
    logged = [(record.step, *sorted(record.values.items())) for record in trace.records]
    return Result("ok", state=digest([sorted(trace.state["model"].items()), logged]))


def digest(value: Any) -> str:
    """Return a short digest of tensors and values in containers."""
    found = hashlib.blake2b(digest_size=8)

    def take(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            found.update(
                part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            )
        elif isinstance(part, Mapping):
            for key in part:
                found.update(str(key).encode())
                take(part[key])
        elif isinstance(part, list | tuple):
            for inner in part:
                take(inner)
        else:
            found.update(repr(part).encode())

    take(value)
    return found.hexdigest()


def warm_up() -> None:
    """Import and draw once what every child would import and draw again."""
    os.environ["WANDB_SILENT"] = "true"
    for job in (Job(("ema",)), Job(("maml",)), Job(("ghost_batch_norm", "maml"))):
        attempt(job)


def _child(job: Job, end: multiprocessing.connection.Connection) -> None:
    end.send(attempt(job))
    end.close()


def run_all(
    jobs: Sequence[Job], side_by_side: int = 1, seconds: float = SECONDS
) -> Iterator[tuple[Job, Result]]:
    """Yield each job with its result, as they end; each runs in a forked process and is ended
    after `seconds`.
    """
    warm_up()
    context = multiprocessing.get_context("fork")
    waiting, running = list(reversed(jobs)), []
    while waiting or running:
        while waiting and len(running) < side_by_side:
            job = waiting.pop()
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(job, theirs))
            process.start()
            theirs.close()
            running.append((job, process, mine))
        job, process, mine = running.pop(0)
        try:
            result = (
                mine.recv()
                if mine.poll(seconds)
                else Result("failed", f"does not end in {seconds:g} s")
            )
        except EOFError:
            process.join()
            result = Result("failed", f"the process ended with code {process.exitcode}")
        if process.is_alive() and result.text.startswith("does not end"):
            process.kill()
        process.join()
        yield job, result


def jobs_of(names: Sequence[str], among: Sequence[str]) -> list[Job]:
    """Return the runs of some plugins with all of `among`, in both orders, and under every
    switch.
    """
    pairs = [
        Job(pair) for pair in itertools.permutations(sorted(among), 2) if set(pair) & set(names)
    ]
    return [*pairs, *(Job((name,), switch) for name in sorted(names) for switch in SWITCHES)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print; with --write make the page anew. Return 1 if something failed."""
    known = sorted(installed())
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "plugins", nargs="*", metavar="PLUGIN", help="only the runs of these plugins"
    )
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument(
        "--results", type=Path, help="keep results in this file, and do not run again what it has"
    )
    chosen = parser.parse_args(argv)
    if unknown := sorted(set(chosen.plugins) - set(known)):
        parser.error(f"no such plugin: {', '.join(unknown)}")
    if chosen.write and chosen.plugins:
        parser.error("--write makes the whole page; name no plugins")
    results = read(chosen.results)
    jobs = [job for job in jobs_of(chosen.plugins or known, known) if job not in results]
    for job, result in run_all(jobs, chosen.jobs):
        results[job] = result
        print(f"{job}: {result.status} {result.text}".rstrip(), flush=True)
        keep(chosen.results, job, result)
    if chosen.write:
        PAGE.write_text(page(known, results), encoding="utf-8")
    failed = [job for job, result in results.items() if result.status == "failed"]
    print(f"{len(results)} runs, {len(failed)} failed")
    return bool(failed)


def read(path: Path | None) -> dict[Job, Result]:
    """Return the results that a file of an earlier call has."""
    rows = path.read_text().splitlines() if path is not None and path.exists() else []
    found = {}
    for plugins, switch, *result in map(json.loads, rows):
        found[Job(tuple(plugins), switch)] = Result(*result)
    return found


def keep(path: Path | None, job: Job, result: Result) -> None:
    """Add a result to a file."""
    if path is not None:
        with path.open("a") as file:
            file.write(
                json.dumps([job.plugins, job.switch, result.status, result.text, result.state])
                + "\n"
            )


if __name__ == "__main__":
    sys.exit(main())
