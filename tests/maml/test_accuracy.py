"""Accuracies of tasks that are spread over ranks."""

from __future__ import annotations

import pytest
from trainkit_plugins.maml.accuracy import in_order


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("tasks", [3, 4, 7])
def test_what_ranks_found_comes_in_the_order_of_the_tasks(world, tasks):
    shares = [list(range(rank, tasks, world)) for rank in range(world)]
    assert in_order(shares) == list(range(tasks))
