"""Running statistics measured anew: against the definition over all data at once, and what is
left alone.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from trainkit_plugins.batch_norm import convert_batch_norm
from trainkit_plugins.batch_norm.statistics import pooled_statistics


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3), nn.Dropout(0.5), nn.BatchNorm2d(3), nn.ReLU()
    )


@pytest.mark.parametrize("converted", [False, True])
def test_moments_are_those_of_all_examples_together(converted: bool) -> None:
    model, data = network(), torch.randn(11, 2, 6, 6) * 3 + torch.arange(11).view(-1, 1, 1, 1)
    if converted:
        convert_batch_norm(model, ghost_size=2)
    parts = list(data.split([4, 4, 2, 1]))
    stream = torch.get_rng_state()
    assert pooled_statistics(model, parts) == 10
    assert torch.equal(torch.get_rng_state(), stream)
    used = data[:10].transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(model[0].running_mean.double(), used.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        model[0].running_var.double(), used.var(1, correction=0), rtol=1e-6, atol=1e-6
    )
    assert model[0].num_batches_tracked == 3
    # The second layer sees what the first makes of each batch, normalized by that batch.
    model.train()
    model[2].eval()
    with torch.no_grad():
        seen = (
            torch.cat([model[:3](part) for part in parts[:3]]).transpose(0, 1).flatten(1).double()
        )
    torch.testing.assert_close(model[3].running_mean.double(), seen.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        model[3].running_var.double(), seen.var(1, correction=0), rtol=1e-5, atol=1e-6
    )


def test_modes_momenta_parameters_and_hooks_are_as_before() -> None:
    model = network()
    model[3].eval()
    model[3].momentum = None
    weights = [p.clone() for p in model.parameters()]
    pooled_statistics(model, [torch.randn(4, 2, 5, 5)])
    assert [m.training for m in model] == [True, True, True, False, True]
    assert (model[0].momentum, model[3].momentum) == (0.1, None)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert not any(m._forward_pre_hooks for m in model)


def test_spoiled_statistics_are_mended() -> None:
    model, data = network(), torch.randn(6, 2, 5, 5)
    model[0].running_mean.fill_(float("nan"))
    pooled_statistics(model, [data])
    assert torch.isfinite(model.eval()(data)).all()


def test_nothing_to_measure() -> None:
    assert pooled_statistics(nn.Linear(2, 2), iter([])) == 0
    assert pooled_statistics(nn.BatchNorm2d(2, track_running_stats=False), iter([])) == 0
    with pytest.raises(ValueError, match="a batch of two or more examples"):
        pooled_statistics(network(), [torch.randn(1, 2, 5, 5)])
