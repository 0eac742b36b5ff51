"""Swapping a model's values with their average, and carrying the average through a checkpoint."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from trainkit_plugins.ema import Values, exchange


class Tied(nn.Module):
    """Shared weights, a buffer that is a count, one that is not saved, and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.encoder = nn.Linear(4, 4)
        self.decoder = nn.Linear(4, 4)
        self.decoder.weight = self.encoder.weight
        self.register_buffer("grid", torch.arange(4.0), persistent=False)
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)


def values_of(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: t.detach().clone() for name, t in [*model.named_parameters(), *model.named_buffers()]
    }


@pytest.mark.parametrize("buffers", [False, True])
def test_each_floating_tensor_is_held_once(buffers: bool) -> None:
    model = Tied()
    held = Values(model, buffers)
    parameters = [name for name, _ in model.named_parameters()]
    floating = ["grid", "body.1.running_mean", "body.1.running_var"]
    assert sorted(held.names) == sorted(parameters + (floating if buffers else []))
    assert "decoder.weight" not in held.names
    assert held.holds(model)


def test_a_replaced_tensor_is_noticed() -> None:
    model = Tied()
    held = Values(model, buffers=True)
    model.get_submodule("body.1").running_var = torch.ones(4)
    assert not held.holds(model)
    assert Values(model, buffers=False).holds(model)


def test_exchanging_swaps_values_and_keeps_every_tensor_where_it_is() -> None:
    model = Tied()
    held = Values(model, buffers=True)
    average = deepcopy(held)
    with torch.no_grad():
        for tensor in average.tensors():
            tensor.copy_(torch.randn_like(tensor))
    trained, averaged = values_of(model), average.export()
    addresses = [t.data_ptr() for t in held.tensors()]
    exchange(held, average)
    assert all(
        torch.equal(value, averaged.get(name, value)) for name, value in values_of(model).items()
    )
    assert torch.equal(model.decoder.weight, averaged["encoder.weight"])
    exchange(held, average)
    assert [t.data_ptr() for t in held.tensors()] == addresses
    assert all(torch.equal(value, trained[name]) for name, value in values_of(model).items())
    assert all(torch.equal(value, averaged[name]) for name, value in average.export().items())


def test_exchanging_keeps_signs_of_zero_nan_and_memory_format() -> None:
    model = nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last)
    held = Values(model, buffers=False)
    average = deepcopy(held)
    with torch.no_grad():
        model.weight.fill_(-0.0)
        model.bias.fill_(float("nan"))
    exchange(held, average)
    exchange(held, average)
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
    assert bool(torch.signbit(model.weight).all())
    assert bool(model.bias.isnan().all())


def test_a_copy_carries_no_hooks() -> None:
    model = Tied()
    model.body.register_forward_hook(lambda *_: pytest.fail("the copy must not run this"))
    average = deepcopy(Values(model, buffers=False))
    assert [type(m) for m in average.modules()] == [Values]


def test_export_and_restore_are_exact() -> None:
    average = deepcopy(Values(Tied(), buffers=True))
    saved = average.export()
    with torch.no_grad():
        for tensor in average.tensors():
            tensor.zero_()
    average.restore(saved)
    assert all(torch.equal(value, saved[name]) for name, value in average.export().items())


@pytest.mark.parametrize("change", ["missing", "surplus", "shape"])
def test_an_average_of_another_model_is_refused(change: str) -> None:
    held = Values(nn.Linear(3, 2), buffers=False)
    saved = held.export()
    if change == "missing":
        del saved["bias"]
    elif change == "surplus":
        saved["more"] = torch.zeros(1)
    else:
        saved["bias"] = torch.zeros(1, 2)
    name = "more" if change == "surplus" else "bias"
    with pytest.raises(
        ValueError, match=f"1 of 2 tensors do not match, such as {name}; resume with the recipe"
    ):
        held.restore(saved)
