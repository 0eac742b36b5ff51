"""Two ranks on a CPU do what one does with the same global batch: weights to rounding, metrics
over all examples.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.reference.tiny import train, with_plugins
from tests.test_sources import make_folder
from trainkit.commands.verify import differences
from trainkit.training.checkpoint import read_state

ROOT = Path(__file__).parents[1]
# Rounding differs between one sum and two halves of it; SGD keeps such differences as small as they
# are.
COMMON = [
    "optimizer={name: sgd, lr: 0.05, weight_decay: 0.01}",
    "scheduler={name: constant}",
    "train.log_every=1",
]


def on_two_ranks(
    recipe: Path, folder: Path, *overrides: str, until: int = 0
) -> list[dict[str, Any]]:
    """Train under torchrun on two ranks; return what each ended with."""
    folder.mkdir(exist_ok=True)
    run = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0",
    ]
    script = [
        str(ROOT / "tests" / "reference" / "ranks.py"),
        str(recipe),
        str(folder),
        str(until),
        *COMMON,
    ]
    path = os.pathsep.join([str(ROOT), str(ROOT / "plugins"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *run, *script, *overrides],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def logged(folder: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def test_two_ranks_match_one_with_the_same_global_batch(tiny: Path, tmp_path: Path) -> None:
    # 22 examples: a window of 2 ranks x 2 micro-batches x 4 examples, and a short one of 3 on each
    # rank.
    two = on_two_ranks(tiny, tmp_path / "two", "data.batch_size=4", "train.accumulate=2")
    one = tmp_path / "one"
    one.mkdir()
    run, checkpointer = train(
        with_plugins(tiny, [*COMMON, "data.batch_size=8", "train.accumulate=2"]), one
    )

    assert [rank["examples_per_step"] for rank in two] == [16, 16]
    assert (run.step, two[0]["step"]) == (4, 4)
    first, second = (rank["weights"] for rank in two)
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name, tensor in run.model.state_dict().items():
        torch.testing.assert_close(first[name], tensor, rtol=1e-5, atol=1e-6)
    assert logged(tmp_path / "two", "loss") == pytest.approx(logged(one, "loss"), rel=1e-5)

    # Each rank measured five of the ten images, and knows the result over all ten.
    assert two[0]["metrics"] == two[1]["metrics"]
    assert two[0]["metrics"] == pytest.approx(checkpointer.outcome.final, rel=1e-4, abs=1e-6)
    assert not list((tmp_path / "two").rglob("*rank1*.jsonl"))


@pytest.mark.slow
def test_two_ranks_resume_exactly(tiny: Path, tmp_path: Path) -> None:
    overrides = [
        "model={name: test_resnet, args: {drop_rate: 0.2}}",
        "data.batch_size=2",
        "data.augment={}",
    ]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    through = on_two_ranks(tiny, whole, *overrides)
    on_two_ranks(tiny, stopped, *overrides, until=4)
    resumed = on_two_ranks(tiny, stopped, *overrides)
    assert next(differences(through[0]["weights"], resumed[0]["weights"]), None) is None
    states = [read_state(folder / "checkpoints" / "last.pt") for folder in (whole, stopped)]
    assert next(differences(*states), None) is None
    assert (whole / "metrics.jsonl").read_bytes() == (stopped / "metrics.jsonl").read_bytes()
    # Dropout differs between ranks, or two of them would see less than two masks.
    assert len(states[0]["random"]) == 2
    assert next(differences(*states[0]["random"]), None) is not None


STOP = '''
from trainkit import Plugin, hookimpl

class Stop(Plugin):
    """Ends training in a hook that rank 0 alone is told."""

    @hookimpl
    def on_log(self, run):
        run.stop("seen enough")
'''


@pytest.mark.slow
def test_ranks_stop_together_when_only_one_is_told(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "stop.py").write_text(STOP)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{tiny.read_text()}  {tmp_path}/stop.py:Stop: {{}}\n")
    ranks = on_two_ranks(recipe, tmp_path / "run", "train.epochs=4")
    assert [rank["stop_reason"] for rank in ranks] == ["seen enough", "another rank asked for it"]
    assert [rank["step"] for rank in ranks] == [3, 3]


SPOIL = '''
from pydantic import Field
from trainkit import Plugin, hookimpl

class Spoil(Plugin):
    """Makes a number useless on one rank alone, at step 3."""

    what: str = Field(description="gradient, statistics or state")
    _state: object = 0

    @hookimpl
    def before_optimizer_step(self, model, run):
        if run.device.rank == 1 and run.step == 2 and self.what == "gradient":
            model.head.bias.grad[0] = float("nan")

    @hookimpl
    def after_optimizer_step(self, model, run):
        if run.device.rank == 1 and run.step == 3 and self.what == "state":
            self._state = {1, (2,), frozenset()}

    def state_dict(self):
        return {"seen": self._state}
'''


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("gradient", "the gradient of head.bias is nan at step 3 (epoch 1, batch 2: "),
        (
            "state",
            (
                "plugins.Spoil: its state_dict()['seen'] is of type set, which can be saved but not"
                " read back"
            ),
        ),
    ],
)
def test_ranks_fail_together_when_one_has_a_bad_number(
    tiny: Path, tmp_path: Path, what: str, said: str
) -> None:
    (tmp_path / "spoil.py").write_text(SPOIL)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{tiny.read_text()}  {tmp_path}/spoil.py:Spoil: {{what: {what}}}\n")
    ranks = on_two_ranks(recipe, tmp_path / "run", "checkpoint.every_steps=1", "data.batch_size=2")
    assert said in ranks[0]["error"]
    assert ranks[0]["error"] == ranks[1]["error"]
    assert [rank["step"] for rank in ranks] == [3, 3]
    assert read_state(tmp_path / "run" / "checkpoints" / "last.pt")["step"] == 2


def command_line(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start `trainkit` under torchrun on two ranks in a folder, as the leader of a process
    group.
    """
    run = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--standalone",
        "-m",
        "trainkit",
    ]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*run, *words], cwd=folder, env=environment, start_new_session=True, **pipes
    )


@pytest.mark.slow
def test_a_command_on_two_ranks_leaves_the_folder_it_stands_in_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    small = (
        "model: {name: test_resnet, in_chans: 1}\ndata: {name: digits, image_size: 8, batch_size: "
        "64, workers: 1}\n"
    )
    (tmp_path / "r.yaml").write_text(small + "train: {epochs: 200, device: cpu, log_every: 1}\n")
    wrong = command_line(tmp_path, "train", "r.yaml", "model.args={deepth: 1}")
    said, _ = wrong.communicate(timeout=300)
    assert wrong.returncode != 0
    assert "timm cannot make test_resnet" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.txt", "r.yaml", "runs"]
    assert list((tmp_path / "runs").iterdir()) == []

    job = command_line(tmp_path, "train", "r.yaml", "--run-dir", "run")
    log = tmp_path / "run" / "metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") > 4) and job.poll() is None:
        time.sleep(0.05)
    os.killpg(job.pid, signal.SIGTERM)
    said, _ = job.communicate(timeout=120)
    assert "interrupted, and saved; go on with: trainkit train --resume run" in said
    steps = [
        line["step"] for line in map(json.loads, log.read_text().splitlines()) if "loss" in line
    ]
    assert (
        read_state(tmp_path / "run" / "checkpoints" / "last.pt")["step"] == steps[-1] == len(steps)
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.txt", "r.yaml", "run", "runs"]


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "validation"])
def test_an_image_that_one_rank_cannot_read_ends_all(tmp_path: Path, split: str) -> None:
    root = make_folder(tmp_path / "images")
    damaged = root / split / "blue" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    (tmp_path / "r.yaml").write_text(
        f"model: {{name: test_resnet}}\ntrain: {{epochs: 2, device: cpu}}\n"
        f"data: {{name: folder, root: {root}, image_size: 16, batch_size: 2, workers: 0}}\n"
    )
    ended = command_line(tmp_path, "train", "r.yaml", "--run-dir", "run")
    said, _ = ended.communicate(timeout=120)
    assert ended.returncode != 0
    assert said.count(f"error: {damaged}: is no image that can be read") == 1
