"""Tasks split over ranks: what two processes learn is what one learns."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.reference.tiny import train
from tests.test_distributed import COMMON, on_two_ranks
from trainkit.training.build import compose

RECIPE = """\
seed: 3
model: {name: conv4, in_chans: 1, args: {channels: 4}}
data: {name: digits, image_size: 16}
train: {epochs: 1, device: cpu}
plugins:
  maml: {ways: 3, max_shot: 4, queries: 2, tasks: 4, steps: 2, steps_per_epoch: 3,
      val_episodes: 4, test_episodes: 4}
  learning_to_balance: {draws: 2}
"""


@pytest.mark.slow
def test_two_ranks_match_one_process(write: Callable[..., Path], tmp_path: Path) -> None:
    recipe = write(RECIPE)
    first, second = on_two_ranks(recipe, tmp_path / "two")
    run, checkpointer = train(compose(recipe, COMMON))
    assert all(
        torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"]
    )
    for name, value in run.model.state_dict().items():
        torch.testing.assert_close(first["weights"][name], value, rtol=1e-4, atol=1e-6)
    assert first["metrics"] == pytest.approx(checkpointer.outcome.final, rel=1e-4, abs=1e-6)
    assert not re.search("nan", str(first["metrics"]))
