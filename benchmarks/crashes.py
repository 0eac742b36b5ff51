"""Runs that are stopped, killed and starved of disk again and again must end as if nothing had
happened.

Run: python benchmarks/crashes.py [--signals 50] [--kills 100] [--full 20] [--seed 0]

Signals: SIGTERM to the whole process group at random moments of building, training, validating,
    saving and finishing,
with 0 and 2 data workers on 1 and 2 ranks; nothing that was done may be lost. Kills: kill -9
instead. Full: the disk has no room for a file of the run; one line must say which. Every run then
goes on, or starts anew where it had saved nothing, and must equal one that never stopped: last.pt
with every plugin's state, metrics.jsonl and weights bit for bit, and the summary but for its
seconds. The report has no plots here; they take longer than all the rest. Ends with 1 if anything
differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import jinja2  # noqa: F401 - what a report needs is loaded once, here
import matplotlib.pyplot  # noqa: F401
from crash_jobs import PHASES, Job, full_disk

from trainkit.commands.verify import differences
from trainkit.training.checkpoint import read_state

RECIPE = """
seed: 3
model: {name: test_resnet, in_chans: 1, args: {drop_rate: 0.2}}
data: {name: digits, image_size: 16, batch_size: 160}
train: {epochs: 2, log_every: 1, device: cpu}
checkpoint: {every_steps: 2, keep_best: 2}
plugins:
  mixup: {mixup_alpha: 0.2}
  radam: {lr: 3e-3}
  grad_clip: {max_norm: 0.5}
  ema: {decay: 0.9}
  early_stopping: {patience: 50}
"""
KINDS = tuple(product((0, 2), (1, 2)))
"""Data workers and ranks."""

SPREAD = {"building": 0.4, "training": 0.05, "validating": 0.05, "saving": 0.01, "finishing": 0.02}
"""Seconds within which a phase is struck."""

FILES = (
    *(
        "recipe.yaml",
        "environment.json",
        "metrics.jsonl",
        "last.pt",
        "best-",
        "weights.safetensors",
    ),
    *("metrics.csv", "report.html", "summary.json"),
)


@dataclass
class Tally:
    """What has been tried, and what went wrong."""

    tried: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Trial:
    """One recipe, with so many workers and ranks, and how it ends when nothing happens."""

    home: Path
    workers: int
    ranks: int

    @property
    def whole(self) -> Path:
        """The folder of the run that is left alone."""
        return self.home / f"whole-{self.workers}-{self.ranks}"

    def words(self, folder: Path) -> list[str]:
        """Return the command that begins the run."""
        sizes = [f"data.workers={self.workers}", f"data.batch_size={160 // self.ranks}"]
        return ["train", str(self.home / "recipe.yaml"), *sizes, "--run-dir", str(folder)]

    def go_on(self, folder: Path) -> Job:
        """Return the run gone on with; begun anew where it has saved nothing."""
        if (folder / "checkpoints" / "last.pt").exists():
            return Job(["train", "--resume", str(folder)], self.ranks)
        shutil.rmtree(folder, ignore_errors=True)
        return Job(self.words(folder), self.ranks)

    def faults(self, folder: Path, job: Job) -> Iterator[str]:
        """Yield how a run that has ended differs from one that was left alone."""
        codes = job.end()
        if any(codes) and "this run is finished" not in job.output:
            yield f"going on ended with {codes}: {job.output.strip()[-300:]}"
            return
        ends = [read_state(f / "checkpoints" / "last.pt") for f in (self.whole, folder)]
        yield from list(differences(*ends))[:2]
        for name in ("metrics.jsonl", "weights.safetensors"):
            if (self.whole / name).read_bytes() != (folder / name).read_bytes():
                yield f"{name} differs"
        told = [
            json.loads((f / "summary.json").read_text()) | {"seconds": 0}
            for f in (self.whole, folder)
        ]
        if told[0] != told[1]:
            yield "summary.json differs"
        for name in ("report.html", "metrics.csv"):
            if not (folder / name).exists():
                yield f"there is no {name}"
        yield from (f"{path.name} is left" for path in folder.rglob(".*"))


def strike(
    trial: Trial, folder: Path, phase: str, number: int, dice: random.Random
) -> tuple[str, list[str]]:
    """Send a signal at a random moment of a phase; return the phase that it met, and what is
    wrong then.
    """
    job = Job(trial.words(folder), trial.ranks)
    times = dice.randint(1, {"training": 18, "validating": 2, "saving": 10}.get(phase, 1))
    if job.wait_for(phase, times):
        time.sleep(dice.uniform(0, SPREAD[phase]))
    met = job.phase if job.alive() else "too late"
    if met != "too late":
        job.signal(number)
    codes, wrong = job.end(), []
    if number == signal.SIGTERM:
        # A rank that has not begun yet has nothing to put away.
        if not set(codes) <= ({0, 130, -signal.SIGTERM} if met == "building" else {0, 130}):
            wrong.append(f"exit codes {codes}: {job.output.strip()[-300:]}")
        wrong += (
            list(_lost(folder))
            if met in ("training", "validating", "saving") and 130 in codes
            else []
        )
    if "Traceback" in job.output or "HANGS" in job.output:
        wrong.append(job.output.strip()[-600:])
    return met, wrong


def _lost(folder: Path) -> Iterator[str]:
    """Yield what a run that was asked to stop has not saved of what it had done."""
    state = read_state(folder / "checkpoints" / "last.pt")
    steps = [
        row["step"]
        for line in (folder / "metrics.jsonl").read_text().splitlines()
        if "loss" in (row := json.loads(line))
    ]
    if steps[-1] != state["step"]:
        yield f"step {steps[-1]} was taken, and step {state['step']} saved"


def starve(trial: Trial, folder: Path, name: str, dice: random.Random) -> list[str]:
    """Let a file of the run find no room; return what is wrong then."""
    times = dice.randint(1, {"metrics.jsonl": 18, "last.pt": 10, "best-": 2}.get(name, 1))
    job = Job(trial.words(folder), trial.ranks, full_disk(name, times, dice.choice((0, 4))))
    codes, wrong = job.end(), []
    if codes[0] != 1 or not set(codes) <= {
        0,
        1,
    }:  # the second rank may have ended well: it writes nothing
        wrong.append(f"exit codes {codes}")
    said = [
        line
        for line in job.output.splitlines()
        if line.startswith("error: ") and "rank 1" not in line
    ]
    if len(said) != 1 or f"/{name}" not in said[0] or "Traceback" in job.output:
        wrong.append(f"said {job.output.strip()[-400:]}")
    wrong += [f"{path.name} is left" for path in folder.rglob(".*")]
    return wrong


def campaign(home: Path, signals: int, kills: int, full: int, dice: random.Random) -> Tally:
    """Try everything so often, and say how each trial went."""
    (home / "recipe.yaml").write_text(RECIPE)
    tally = Tally()
    trials = [Trial(home, workers, ranks) for workers, ranks in KINDS]
    for trial in trials:
        job = Job(trial.words(trial.whole), trial.ranks)
        assert not any(job.end()), job.output
    plans = [("SIGTERM", i) for i in range(signals)] + [("kill -9", i) for i in range(kills)]
    plans += [("full disk", i) for i in range(full)]
    for what, i in plans:
        trial, folder = trials[i % len(trials)], home / f"{what.replace(' ', '')}-{i}"
        if what == "full disk":
            met = FILES[i % len(FILES)]
            wrong = starve(trial, folder, met, dice)
        else:
            number = signal.SIGTERM if what == "SIGTERM" else signal.SIGKILL
            met, wrong = strike(trial, folder, PHASES[i // len(trials) % len(PHASES)], number, dice)
        wrong += trial.faults(folder, trial.go_on(folder))
        tally.tried[what, met] += 1
        where = f"{what} {i} ({met}; {trial.workers} workers, {trial.ranks} ranks)"
        tally.wrong += [f"{where}: {fault}" for fault in wrong]
        print(f"{where}: {'; '.join(wrong) or 'the same'}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
    return tally


def main() -> None:
    """Print a line per trial, then a table; end with 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name, default in (("signals", 50), ("kills", 100), ("full", 20), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        tally = campaign(
            Path(home), asked.signals, asked.kills, asked.full, random.Random(asked.seed)
        )
    print(f"\n{'what':10} {'met while':20} {'trials':>6}")
    for (what, met), count in sorted(tally.tried.items()):
        print(f"{what:10} {met:20} {count:6}")
    print(f"\n{sum(tally.tried.values())} trials, {len(tally.wrong)} faults")
    for fault in tally.wrong:
        print(fault)
    sys.exit(bool(tally.wrong))


if __name__ == "__main__":
    main()
