import pytest
import torch
from torch import nn
from trainkit_plugins.common.preserve import (
    forked_streams,
    kept_modes,
    measuring_statistics,
    preserve,
)


class Odd(nn.Module):
    """Writes into a buffer, replaces one, adds one and drops one."""

    def __init__(self):
        super().__init__()
        self.register_buffer("written", torch.tensor([1.0, -0.0]))
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("empty", None)
        self.register_buffer("dropped", torch.ones(1), persistent=False)

    def disturb(self):
        self.written.data.add_(1)
        self.replaced = torch.full((3,), 7.0)
        self.empty = torch.ones(1)
        del self.dropped
        self.register_buffer("added", torch.ones(1))


def test_buffers_come_back_as_the_same_objects_with_the_same_bits():
    module = nn.Sequential(Odd())
    before = dict(module[0].named_buffers())
    values = {name: b.clone() for name, b in before.items()}
    with preserve(module):
        module[0].disturb()
    after = dict(module[0].named_buffers())
    assert list(after) == list(before)
    for name, buffer in after.items():
        assert buffer is before[name]
        assert torch.equal(buffer.view(torch.uint8), values[name].view(torch.uint8))
    assert module[0].empty is None


def test_random_numbers_continue_as_if_nothing_had_been_drawn():
    mine = torch.Generator().manual_seed(3)
    torch.manual_seed(0)
    state, my_state = torch.get_rng_state(), mine.get_state()
    drawn = []
    for _ in range(2):
        with preserve(generators=[mine]):
            drawn.append((torch.rand(1).item(), torch.rand(1, generator=mine).item()))
    assert drawn[0] == drawn[1]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(mine.get_state(), my_state)


def test_training_flags_come_back():
    module = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
    with preserve(module):
        module.eval()
        module[1].train()
    assert [m.training for m in module.modules()] == [True, True, False]


def test_everything_comes_back_when_the_block_raises():
    module = nn.BatchNorm1d(2)
    state = torch.get_rng_state()
    # The forward pass has already counted the batch when the backward pass fails.
    with pytest.raises(RuntimeError, match="scalar outputs"), preserve(module):
        module(torch.rand(4, 2)).backward()
    assert module.num_batches_tracked.item() == 0
    assert module.running_mean.tolist() == [0.0, 0.0]
    assert torch.equal(torch.get_rng_state(), state)


def test_parameters_and_their_gradients_are_the_callers_business():
    module = nn.Linear(2, 1)
    with preserve(module):
        nn.init.zeros_(module.weight)
    assert module.weight.tolist() == [[0.0, 0.0]]


def test_modes_come_back_when_the_block_raises():
    module = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
    with pytest.raises(RuntimeError), kept_modes(module):
        module.eval().forward(torch.zeros(1, 3))
    assert [m.training for m in module.modules()] == [True, True, False]


def test_streams_go_on_where_they_were():
    module = nn.Dropout()
    state = torch.get_rng_state()
    with forked_streams(module):
        module(torch.ones(3))
    assert torch.equal(torch.get_rng_state(), state)


def test_only_the_measured_layers_train_and_momenta_come_back():
    first, second = nn.BatchNorm1d(2), nn.BatchNorm1d(2, momentum=None)
    model = nn.Sequential(first, nn.Dropout(), second)
    with measuring_statistics(model, [first]):
        assert [m.training for m in model.modules()] == [False, True, False, False]
        first.momentum = 0.5
    assert all(m.training for m in model.modules())
    assert (first.momentum, second.momentum) == (0.1, None)
