"""Learning to Balance together with Meta Dropout: each alone is the single method, both off are
MAML.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.reference.tiny import train
from trainkit.training.build import compose

RECIPE = """\
seed: 3
model: {name: conv4, in_chans: 1, args: {channels: 4}}
data: {name: digits, image_size: 16}
train: {epochs: 1, device: cpu}
optimizer: {name: adamw, lr: 1e-2}
plugins:
  maml: {ways: 3, max_shot: 4, queries: 2, tasks: 2, steps: 2, steps_per_epoch: 2,
      val_episodes: 2, test_episodes: 2}
  learning_to_balance: {draws: 2}
  meta_dropout: {test_samples: 2}
"""
BALANCE_OFF = [
    f"plugins.learning_to_balance.{o}" for o in ("omega=uniform", "gamma=false", "z=false")
]
DROPOUT_OFF = ["plugins.meta_dropout.mode=off"]
NO_BALANCE, NO_DROPOUT = ["~plugins.learning_to_balance"], ["~plugins.meta_dropout"]


@pytest.fixture
def recipe(write: Callable[..., Path]) -> Path:
    return write(RECIPE)


def found(recipe, *overrides):
    return dict(train(compose(recipe, overrides))[0].model.state_dict())


@pytest.mark.parametrize(
    ("off", "without"),
    [
        (BALANCE_OFF + DROPOUT_OFF, NO_BALANCE + NO_DROPOUT),
        (BALANCE_OFF, NO_BALANCE),
        (DROPOUT_OFF, NO_DROPOUT),
    ],
    ids=["both off", "balance off", "dropout off"],
)
def test_what_is_off_is_as_if_it_were_not_there(recipe, off, without):
    ours, wanted = found(recipe, *off), found(recipe, *without)
    assert ours.keys() == wanted.keys()
    assert all(torch.equal(ours[name], value) for name, value in wanted.items())


def test_both_learn_side_by_side_in_either_order(recipe, write):
    both = found(recipe)
    assert {name.split(".")[1] for name in both if name.startswith("meta.")} == {
        "learning_to_balance",
        "meta_dropout",
    }
    assert all(torch.isfinite(value).all() for value in both.values())
    alone = found(recipe, *NO_DROPOUT)
    assert not torch.equal(
        both["meta.learning_to_balance.omega.mu.weight"],
        alone["meta.learning_to_balance.omega.mu.weight"],
    )
    lines = RECIPE.splitlines(keepends=True)
    other = found(write("".join([*lines[:-2], lines[-1], lines[-2]])))
    assert both.keys() == other.keys()
    assert all(torch.equal(both[name], other[name]) for name in both)
