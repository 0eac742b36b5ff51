"""Tasks split over two ranks give what one process gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.reference.tiny import train
from tests.test_distributed import COMMON, logged, on_two_ranks
from trainkit.training.build import compose

RECIPE = """\
seed: 0
model: {name: conv4, in_chans: 1, args: {channels: 8}}
data: {name: digits, image_size: 16}
train: {epochs: 2, device: cpu, accumulate: 1}
plugins:
  maml: {ways: 3, queries: 2, tasks: 4, steps: 2, steps_per_epoch: 2, val_episodes: 6,
      test_episodes: 7}
"""


@pytest.mark.slow
def test_two_ranks_match_one_with_the_same_tasks(write: Callable[..., Path], tmp_path: Path):
    recipe = write(RECIPE, "ranks.yaml")
    two = on_two_ranks(recipe, tmp_path / "two")
    one = tmp_path / "one"
    one.mkdir()
    run, checkpointer = train(compose(recipe, COMMON), one)
    first, second = (rank["weights"] for rank in two)
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-6)
    assert two[0]["metrics"] == pytest.approx(checkpointer.outcome.final, rel=1e-4)
    for name in ("loss", "test/accuracy", "test/accuracy_interval"):
        assert logged(tmp_path / "two", name) == pytest.approx(logged(one, name), rel=1e-4)
