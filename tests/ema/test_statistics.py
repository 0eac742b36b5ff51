"""Batch-norm statistics measured with given weights."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from trainkit_plugins.ema import average_statistics, batch_norms


def network(momentum: float | None = 0.1) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3, momentum=momentum),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, momentum=momentum),
    ).double()
    for layer in batch_norms(model):
        layer.running_mean.uniform_(-1, 1)
        layer.running_var.uniform_(1, 2)
    return model


def inputs(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 2, 7, 7, generator=generator, dtype=torch.float64) for n in sizes]


def test_one_layer_gets_the_mean_of_the_batches_means_and_variances() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2)).double()
    batches = inputs(4, 4, 3)
    assert average_statistics(model, batches) == 3
    means = torch.stack([b.mean((0, 2, 3)) for b in batches])
    variances = torch.stack([b.var((0, 2, 3)) for b in batches])
    torch.testing.assert_close(model[0].running_mean, means.mean(0), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(model[0].running_var, variances.mean(0), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_without_dropout_it_equals_torchs_update_bn(momentum: float | None) -> None:
    model, other = network(momentum), network(momentum)
    for m in (model, other):
        m[3] = nn.Identity()
    average_statistics(model, inputs(5, 5, 5))
    torch.optim.swa_utils.update_bn(inputs(5, 5, 5), other)
    for name, value in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-12, atol=1e-12)


def test_only_the_statistics_change_and_nothing_random_is_drawn() -> None:
    model = network()
    model.train()
    model[2].eval()
    before = {name: p.clone() for name, p in model.named_parameters()}
    modes = [m.training for m in model.modules()]
    stream = torch.get_rng_state()
    average_statistics(model, inputs(5, 5))
    assert torch.equal(torch.get_rng_state(), stream)
    assert [m.training for m in model.modules()] == modes
    assert [layer.momentum for layer in batch_norms(model)] == [0.1, 0.1]
    assert all(
        torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters()
    )


def test_layers_left_out_normalise_with_what_they_have() -> None:
    model = network()
    first, second = batch_norms(model)
    kept = first.running_mean.clone()
    average_statistics(model, inputs(5, 5), [second])
    assert torch.equal(first.running_mean, kept)
    model.eval()
    seen = torch.stack([model[:5](b).mean((0, 2, 3)) for b in inputs(5, 5)]).mean(0)
    torch.testing.assert_close(second.running_mean, seen, rtol=1e-12, atol=1e-12)


def test_a_batch_of_one_is_skipped() -> None:
    model, other = network(), network()
    assert average_statistics(model, inputs(5, 1)) == 1
    average_statistics(other, inputs(5))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), other.buffers(), strict=True))


def test_without_such_layers_no_data_are_read() -> None:
    def unread() -> Iterator[Tensor]:
        raise AssertionError("read")
        yield

    frozen = nn.BatchNorm2d(2, track_running_stats=False)
    assert average_statistics(nn.Sequential(nn.Conv2d(2, 2, 1), frozen), unread()) == 0


def test_no_usable_batch_is_refused_and_modes_come_back() -> None:
    model = network()
    with pytest.raises(ValueError, match="at least one batch of two or more"):
        average_statistics(model, inputs(1))
    assert all(m.training for m in model.modules())
    assert [layer.momentum for layer in batch_norms(model)] == [0.1, 0.1]
