"""Lookahead: timm's own steps to the last bit, and a state that can be gone on from."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm.optim
import torch

from tests.reference.tiny import train
from trainkit.commands.plan import make_plan
from trainkit.commands.verify import differences
from trainkit.errors import UserError
from trainkit.optim.lookahead import Lookahead
from trainkit.training.build import build, compose
from trainkit.training.checkpoint import read_state, run_state
from trainkit.training.loop import fit

CONSTANT = "scheduler={name: constant}"
SAID = ["optimizer.name=lookahead_adamw", CONSTANT]


def test_the_steps_are_those_of_timms_script(tiny: Path) -> None:
    run, _ = train(compose(tiny, SAID))
    other = build(compose(tiny, SAID))
    optimizer = timm.optim.create_optimizer_v2(
        run.hook.build_param_groups(model=other.model, run=other),
        "lookahead_adamw",
        lr=2e-3,
        weight_decay=0.1,
    )
    other.model.train()
    for epoch in range(2):
        for batch in other.data.train.batches(epoch, 0):
            other.model.zero_grad()  # the optimizer's would patch timm's class for all tests
            torch.nn.functional.cross_entropy(other.model(batch.inputs), batch.targets).backward()
            optimizer.step()
        optimizer.sync_lookahead()
    for ours, theirs in zip(run.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["lookahead_adamw", "lookahead_sgd", "lookahead_radam"])
@pytest.mark.parametrize("stop", [3, 6, 8])
def test_a_run_goes_on_exactly(tiny: Path, tmp_path: Path, name: str, stop: int) -> None:
    setup = compose(tiny, [f"optimizer.name={name}"])
    whole, _ = train(setup, tmp_path / "whole")
    _, checkpointer = train(setup, tmp_path / "parts", until=stop)
    rest = build(setup, tmp_path / "parts")
    checkpointer.restore(rest, read_state(tmp_path / "parts" / "checkpoints" / "last.pt"))
    fit(rest, checkpointer)
    assert list(differences(run_state(whole), run_state(rest))) == []
    assert isinstance(rest.optimizer, Lookahead)
    assert rest.optimizer.state is rest.optimizer.base.state


def test_an_epoch_ends_at_the_slow_weights(tiny: Path) -> None:
    run, _ = train(compose(tiny, SAID))
    for p in run.model.parameters():
        assert torch.equal(p, run.optimizer.state[p]["lookahead_slow_buff"])


def test_the_plan_says_what_is_around_what(tiny: Path) -> None:
    plan = make_plan(tiny, SAID)
    said = "Lookahead around AdamW: slow weights go 0.5 of the way every 6 steps"
    assert plan["optimizer"]["is"] == said
    hook = next(row for row in plan["hooks"] if row["hook"] == "after_optimizer_step")
    assert hook["calls"][-1]["plugin"] == "core"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lookahead_adamv", "has no optimizer 'lookahead_adamv'; did you mean 'lookahead_adam'?"),
        ("lookahead_adahessian", "lookahead_adahessian differentiates the gradient again"),
        ("lookahead_fusedadam", "lookahead_fusedadam is not here"),
        ("lookahead_", "has no optimizer 'lookahead_'"),
    ],
)
def test_what_cannot_be_wrapped_is_refused(tiny: Path, name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        build(compose(tiny, [f"optimizer.name={name}"]))
    assert message in str(caught.value)


def test_steps_of_lookahead_call_no_hooks_even_once_gradients_were_cleared() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = Lookahead(torch.optim.SGD([weight], lr=0.1))
    optimizer.zero_grad()
    assert not getattr(type(optimizer).step, "hooked", False)
