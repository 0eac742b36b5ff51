"""Whoever only looks leaves no trace: not in the model, not in random streams, not in what
plugins collect.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import PrivateAttr
from torch import Tensor, nn

from trainkit import Plugin, Run, hookimpl
from trainkit.errors import Location
from trainkit.hooks.order import Entry
from trainkit.testing import Case
from trainkit.testing.training import make


class Tally:
    """Something of a plugin's own that counts."""

    def __init__(self) -> None:
        self.calls = 0
        self.mean = torch.zeros(2)


class Collector(Plugin):
    """Keeps something of every loss, in each of the ways in which plugins do."""

    _seen: list[Tensor] = PrivateAttr(default_factory=list)
    _named: dict[str, deque[float]] = PrivateAttr(default_factory=lambda: {"now": deque(maxlen=4)})
    _alias: deque[float] = PrivateAttr(default_factory=deque)
    _sum: Tensor = PrivateAttr(default_factory=lambda: torch.zeros(()))
    _tally: Tally = PrivateAttr(default_factory=Tally)
    _average: nn.Module = PrivateAttr(default_factory=lambda: nn.BatchNorm1d(3))
    _dice: random.Random = PrivateAttr(default_factory=lambda: random.Random(5))
    _draws: np.random.Generator = PrivateAttr(default_factory=lambda: np.random.default_rng(5))
    _count: int = PrivateAttr(default=0)

    @hookimpl(wrapper=True)
    def compute_loss(self, model: nn.Module, run: Run) -> Generator[None, Tensor, Tensor]:
        loss = yield
        self._alias = self._named["now"]
        self._seen.append(loss.detach())
        self._named["now"].append(float(loss.detach()))
        self._named.setdefault("more", deque()).append(1.0)
        self._sum += loss.detach()
        self._tally.calls += 1
        self._tally.mean.add_(1)
        self._average(torch.rand(4, 3, generator=self.generator()))
        with torch.no_grad():
            next(self._average.parameters()).mul_(2)
        self._dice.random(), self._draws.random()
        self._count += 1
        # A module takes any attribute.
        model.get_submodule("bn1").seen = self._count  # type: ignore[assignment]
        run.log.record("collector/loss", loss)
        run.log.note("a loss was computed")
        run.stop("enough")
        return loss

    def content(self) -> list[Any]:
        """Everything that it keeps, as values."""
        tensors = [self._sum, self._tally.mean, *self._average.state_dict().values(), *self._seen]
        counts = [
            self._count,
            self._tally.calls,
            self._dice.getstate(),
            str(self._draws.bit_generator.state),
        ]
        return [
            *counts,
            {k: list(v) for k, v in self._named.items()},
            *(t.tolist() for t in tensors),
        ]


def begun() -> tuple[Run, Collector]:
    setup = Case(Collector, {}).setup(on=False)
    plugin = Collector()
    plugin.bind("collector", 0)
    run = make(type(setup)(setup.recipe, [Entry("collector", plugin, Location("here"))]))
    run.hook.on_fit_start(run=run)
    return run, plugin


def batch_of(run: Run) -> Any:
    return run.hook.prepare_batch(batch=next(run.data.train.batches(0, 0)), run=run)


def state_of(run: Run, plugin: Collector) -> dict[str, Any]:
    attributes = {n: [k for k in vars(m) if k != "_buffers"] for n, m in run.model.named_modules()}
    return {
        "model": {name: value.tolist() for name, value in run.model.state_dict().items()},
        "modes": [module.training for module in run.model.modules()],
        "attributes": attributes,
        "gradients": [None if p.grad is None else p.grad.tolist() for p in run.model.parameters()],
        "streams": [random.getstate(), int(np.random.get_state()[2])],  # type: ignore[arg-type]
        "torch": torch.get_rng_state().tolist(),
        "plugin": plugin.content(),
        "own stream": plugin.generator().get_state().tolist(),
        "log": (dict(run.log._current), list(run.log.notes)),
        "run": (run.step, run.stop_reason),
    }


def look(run: Run, batch: Any) -> None:
    run.model.eval()
    run.model.train()
    run.hook.compute_loss(model=run.model, batch=batch, run=run).backward()
    random.random(), np.random.rand()


def test_a_look_leaves_everything_as_it_was() -> None:
    run, plugin = begun()
    batch = batch_of(run)
    before = state_of(run, plugin)
    with run.untouched():
        look(run, batch)
        assert state_of(run, plugin) != before
    assert state_of(run, plugin) == before


def test_what_training_collected_before_is_still_there_and_goes_on_in_the_same_objects() -> None:
    run, plugin = begun()
    batch = batch_of(run)
    look(run, batch)
    gradients = [p.grad for p in run.model.parameters()]
    before = state_of(run, plugin)
    assert plugin._count == 1
    with run.untouched():
        assert all(p.grad is None for p in run.model.parameters())
        look(run, batch)
        look(run, batch)
    assert state_of(run, plugin) == before
    assert all(a is p.grad for a, p in zip(gradients, run.model.parameters(), strict=True))
    assert plugin._alias is plugin._named["now"]  # an alias stays one


def test_everything_is_put_back_after_an_error_too() -> None:
    run, plugin = begun()
    batch = batch_of(run)
    before = state_of(run, plugin)

    def fail() -> None:
        with run.untouched():
            look(run, batch)
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert state_of(run, plugin) == before


def test_two_looks_see_the_same() -> None:
    run, _ = begun()
    batch, losses = batch_of(run), []
    for _ in range(2):
        with run.untouched():
            losses.append(run.hook.compute_loss(model=run.model, batch=batch, run=run).tolist())
    assert losses == losses[:1] * 2


def test_a_graph_from_before_a_look_can_still_be_differentiated() -> None:
    run, _ = begun()
    batch = batch_of(run)
    loss = run.hook.compute_loss(model=run.model, batch=batch, run=run)
    with run.untouched():
        look(run, batch)
    loss.backward()
    assert all(p.grad is not None for p in run.model.parameters())
