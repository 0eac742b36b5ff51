"""Parameters that no loss reaches: noted on one rank, named on several, where torch would wait
or speak in riddles.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.reference.tiny import train, with_plugins
from trainkit import Plugin, hookimpl
from trainkit.checks.reach import explained, unreached
from trainkit.errors import TrainingError


class Spare(nn.Module):
    """Two layers, of which the loss uses one, and half of a third."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(3, 2), nn.Linear(3, 2)
        self.frozen = nn.Linear(3, 2).requires_grad_(False)
        self.partly = nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return (
            nn.functional.linear(self.used(inputs), self.partly.weight)
            + self.spare(inputs).detach()
        )


def test_the_parameters_that_no_path_leads_to_are_found() -> None:
    model = Spare()
    loss = model(torch.ones(4, 3)).sum()
    assert unreached(loss, model) == ["spare.weight", "spare.bias", "partly.bias"]
    loss.backward()
    assert [
        n for n, p in model.named_parameters() if p.requires_grad and p.grad is None
    ] == unreached(loss, model)


@pytest.mark.parametrize(
    ("reentrant", "found"), [(False, ["spare.weight", "spare.bias", "partly.bias"]), (True, [])]
)
def test_a_graph_that_is_made_later_is_not_guessed_at(reentrant: bool, found: list[str]) -> None:
    model = Spare()
    inputs = torch.ones(4, 3, requires_grad=True)
    loss = checkpoint(model, inputs, use_reentrant=reentrant).sum()
    assert unreached(loss, model) == found


def test_a_deep_graph_is_walked_without_recursion() -> None:
    model = nn.Linear(1, 1)
    value = model(torch.ones(1, 1))
    for _ in range(20_000):
        value = value + 1
    assert unreached(value.sum(), model) == []


class Extra(Plugin):
    """Gives the model a parameter that it does not use."""

    @hookimpl(wrapper=True)
    def build_model(self) -> Any:
        model = yield
        model.extra = nn.Linear(2, 2)
        return model


def test_one_rank_notes_them_and_trains(tiny: Path) -> None:
    overrides = ["train.epochs=1", "scheduler.warmup_epochs=0", "optimizer.weight_decay=0.5"]
    run, _ = train(with_plugins(tiny, overrides, Extra()))
    wanted = (
        "no loss reaches 2 of the model's parameters: extra.weight, extra.bias; they have no "
        "gradient and stay"
    )
    assert [note for note in run.log.notes if note.startswith(wanted)]
    assert not run.optimizer.state.get(run.model.extra.weight)


def test_without_such_parameters_nothing_is_noted(tiny: Path) -> None:
    run, _ = train(
        with_plugins(
            tiny,
            [],
        ),
        until=1,
    )
    assert not run.log.notes


def test_what_torch_says_a_step_later_is_put_into_words() -> None:
    replicated, step_loss = nn.Module(), nn.Module()
    replicated.module, step_loss.model = step_loss, Spare()
    error = RuntimeError(
        "Expected to have finished reduction in the prior iteration before starting a new one. … "
        "\nParameter indices which did not receive grad for rank 1: 2 3\n In addition, you can "
        "set …"
    )
    said = explained(error, replicated)
    assert isinstance(said, TrainingError)
    assert "did not reach spare.weight, spare.bias, which" in str(said)
    other = RuntimeError("out of memory")
    assert explained(other, replicated) is other


UNUSED = """\
from torch import nn
from trainkit import Plugin, hookimpl


class Unused(Plugin):
    \"\"\"Leaves a layer out, from the start or from the second step on.\"\"\"

    late: bool

    @hookimpl(wrapper=True)
    def build_model(self):
        model = yield
        model.extra = nn.Linear(2, 2)
        return model

    @hookimpl(wrapper=True)
    def compute_loss(self, model, run):
        loss = yield
        if self.late and run.step < 1:
            loss = loss + model.extra.weight.sum() + model.extra.bias.sum()
        return loss
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("late", "said"),
    [
        (
            "false",
            (
                "no loss reaches 2 of the model's parameters: extra.weight, extra.bias; each rank "
                "would wait"
            ),
        ),
        (
            "true",
            "the last step's loss did not reach extra.weight, extra.bias, which it reached before",
        ),
    ],
)
def test_several_ranks_end_with_their_names(
    tiny: Path, write: Callable[..., Path], late: str, said: str
) -> None:
    path = write(UNUSED, "unused.py")
    tiny.write_text(f"{tiny.read_text()}  {path}:Unused: {{late: {late}}}\n")
    launch = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0",
    ]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [
            sys.executable,
            *launch,
            "-m",
            "trainkit",
            "train",
            str(tiny),
            "--run-dir",
            str(tiny.parent / "run"),
        ],
        env=os.environ
        | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(root), str(root / "plugins")]),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if said in line]
    assert len(lines) == 2, done.stderr[-3000:]  # one on each rank
    assert "finished reduction" not in done.stderr
