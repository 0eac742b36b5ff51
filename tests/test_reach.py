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
from trainkit.checks.reach import Arrivals, unreached
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


@pytest.mark.parametrize("passes", [1, 2])
def test_a_gradient_that_did_not_come_in_the_last_pass_is_named(tiny: Path, passes: int) -> None:
    run, _ = train(with_plugins(tiny, []), until=1)
    model = Spare()
    for left in reversed(range(passes)):  # an earlier pass of the window may have reached it
        arrivals = Arrivals(model)
        loss = model(torch.ones(4, 3)).sum() + model.partly.bias.sum()
        if left:
            loss = loss + model.spare.weight.sum()
        loss.backward()
    said = r"the loss of step 2 on rank 0 did not reach spare\.weight, spare\.bias, which"
    with pytest.raises(TrainingError, match=said):
        arrivals.check(run)


def test_gradients_that_came_are_no_cause_to_speak(tiny: Path) -> None:
    run, _ = train(with_plugins(tiny, []), until=1)
    model = nn.Linear(3, 2)
    for _ in range(3):
        arrivals = Arrivals(model)
        (model(torch.ones(4, 3)).sum() * 0).backward()
        arrivals.check(run)


UNUSED = """\
from torch import nn
from trainkit import Plugin, hookimpl


class Unused(Plugin):
    \"\"\"Leaves a layer out, from a step on, on the last ranks.\"\"\"

    late: bool
    first: int

    @hookimpl(wrapper=True)
    def build_model(self):
        model = yield
        model.extra = nn.Linear(2, 2)
        return model

    @hookimpl(wrapper=True)
    def compute_loss(self, model, run):
        loss = yield
        if run.device.rank < self.first or (self.late and run.step < 1):
            loss = loss + model.extra.weight.sum() + model.extra.bias.sum()
        return loss
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("late", "first", "said"),
    [
        (
            "false",
            0,
            "no loss reaches 2 of the model's parameters: extra.weight, extra.bias; each rank",
        ),
        ("true", 0, "the loss of step 2 on rank 1 did not reach extra.weight, extra.bias, which"),
        (
            "false",
            1,
            "no loss reaches 2 of the model's parameters: extra.weight, extra.bias, on rank 1 of 2",
        ),
        ("true", 1, "the loss of step 2 on rank 1 did not reach extra.weight, extra.bias, which"),
    ],
)
def test_several_ranks_end_with_their_names(
    tiny: Path, write: Callable[..., Path], late: str, first: int, said: str
) -> None:
    path = write(UNUSED, "unused.py")
    tiny.write_text(f"{tiny.read_text()}  {path}:Unused: {{late: {late}, first: {first}}}\n")
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
    assert said in done.stderr, done.stderr[-3000:]
    assert "finished reduction" not in done.stderr
