"""Runs that are killed without warning, again and again, end as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainkit.commands.verify import differences
from trainkit.training.checkpoint import read_state

KILLS = 5
SMALL = """
seed: 3
model: {name: test_resnet, in_chans: 1, args: {drop_rate: 0.2}}
data: {name: digits, image_size: 32, batch_size: 64}
train: {epochs: 3, log_every: 1}
checkpoint: {every_steps: 3, keep_best: 2}
"""
RECIPES = {
    "plain": SMALL,
    "accumulate_bf16": SMALL.replace(
        "log_every: 1", "log_every: 1, accumulate: 2, precision: bf16"
    ),
    "augment_workers": SMALL.replace(
        "batch_size: 64", "batch_size: 64, workers: 2, augment: {color_jitter: 0}"
    ),
    "plugins": SMALL
    + """
plugins:
  mixup: {mixup_alpha: 0.2}
  radam: {lr: 3e-3}
  radam_monitor: {}
  grad_clip: {max_norm: 0.5}
  smoothness: {every: 4}
  ema: {decay: 0.9}
  early_stopping: {patience: 50}
""",
}


def trainkit(*arguments: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "trainkit", "train", *arguments]
    # A session of its own: killing the group leaves no data workers behind.
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )


def steps_logged(folder: Path) -> int:
    log = folder / "metrics.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def kill_at(process: subprocess.Popen[bytes], folder: Path, lines: int) -> bool:
    """Kill the process as soon as that many lines are logged; return whether it was still alive."""
    while process.poll() is None:
        if steps_logged(folder) >= lines:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.002)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_killed_runs_end_with_the_same_bits(name, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPES[name])
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert trainkit(str(recipe), "--run-dir", str(whole)).wait() == 0
    total = steps_logged(whole)
    dice = random.Random(name)
    process = trainkit(str(recipe), "--run-dir", str(killed))
    # The first kill comes after a checkpoint; each later one further on, so that all of them
    # strike.
    for at in sorted(dice.sample(range(5, total - 4), KILLS)):
        assert kill_at(process, killed, at)
        process = trainkit("--resume", str(killed))
    assert process.wait() == 0
    ends = [read_state(folder / "checkpoints" / "last.pt") for folder in (whole, killed)]
    assert list(differences(*ends)) == []
    assert (whole / "metrics.jsonl").read_bytes() == (killed / "metrics.jsonl").read_bytes()
    assert (whole / "weights.safetensors").read_bytes() == (
        killed / "weights.safetensors"
    ).read_bytes()
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, killed)]
    assert {k: v for k, v in summaries[0].items() if k != "seconds"} == {
        k: v for k, v in summaries[1].items() if k != "seconds"
    }
