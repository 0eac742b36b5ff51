"""`trap_init` behind a layer that fills gaps: the trap is set for what the network sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trainkit.errors import Location
from trainkit.hooks.order import Entry, arrange
from trainkit.hooks.run import Run
from trainkit.testing import Case
from trainkit.testing.training import make
from trainkit.training.build import Setup

MLP = {"name": "mlp", "args": {"hidden": [40]}}
RECIPE = {"model": MLP, "data": {"image_size": 8}, "train": {"loss": {"smoothing": 0.1}}}


def built(first: str, **options: Any) -> Run:
    """Build with both plugins, `first` standing first in the recipe."""
    both = {"trap_init": {}, "sparsity_norm": options}
    names = [first, *(name for name in both if name != first)]
    case = Case(names[0], both[names[0]], recipe=RECIPE | {"plugins": {names[1]: both[names[1]]}})
    setup = case.setup()
    entries, problems = arrange(
        [Entry(n, e.plugin, Location("here")) for n in names for e in setup.entries if e.name == n]
    )
    assert not problems
    setup.recipe.model.args.pop("drop_rate", None)
    return make(Setup(setup.recipe, entries))


@pytest.mark.parametrize("options", [{}, {"method": "zero"}, {"center": False}], ids=str)
def test_the_network_starts_at_its_best_affine_model_in_either_order(
    options: dict[str, Any],
) -> None:
    runs = [built(first, **options) for first in ("trap_init", "sparsity_norm")]
    for run in runs:
        plugin: Any = run.plugins["trap_init"]
        with torch.no_grad():
            loss = run.hook.compute_loss(model=run.model, batch=plugin._examples, run=run)
        assert loss.item() == pytest.approx(plugin._affine.loss, rel=1e-5)
        assert list(run.plugins) == ["trap_init", "sparsity_norm"]
    first, second = (run.model.state_dict() for run in runs)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
