"""Convolutions in bfloat16 on a CPU whose taps see padding alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainkit.models.convolution import SoundConvolutions, live_taps
from trainkit.testing import Case


def spoil_memory(numbers: int) -> None:
    """Leave NaN in memory that is about to be used again."""
    memory = [torch.full((numbers * k,), float("nan"), dtype=torch.bfloat16) for k in (1, 2, 4)]
    del memory


def gradient_of(weight: Tensor, x: Tensor, **how: int) -> Tensor:
    leaf = weight.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), SoundConvolutions():
        y = (F.conv1d if x.ndim == 3 else F.conv2d)(x, leaf, **how)
    spoil_memory(weight.numel())
    (found,) = torch.autograd.grad(y.float().sum(), leaf)
    return found


@pytest.mark.parametrize(
    ("size", "kernel", "how"),
    [
        ((1, 1), (3, 3), {"stride": 2, "padding": 1}),
        ((2, 2), (3, 3), {"stride": 3, "padding": 1}),
        ((1, 3), (5, 5), {"stride": 2, "padding": 2}),
        ((3, 3), (7, 7), {"stride": 4, "padding": 3}),
        ((2,), (3,), {"stride": 4, "padding": 1}),
    ],
)
def test_taps_over_padding_have_no_gradient_and_the_others_theirs(size, kernel, how) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(4, 16, *size), torch.randn(16, 16, *kernel)
    exact = weight.double().requires_grad_()
    (F.conv1d if x.ndim == 3 else F.conv2d)(x.double(), exact, **how).sum().backward()
    wanted = exact.grad
    assert wanted is not None
    found = gradient_of(weight, x, **how).double()
    assert torch.equal(found[wanted == 0], torch.zeros_like(found[wanted == 0]))
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_live_taps_are_those_that_move_the_output(size: int, kernel: int, stride: int) -> None:
    for padding in range(kernel // 2 + 1):
        for dilation in (1, 2):
            if size + 2 * padding <= dilation * (kernel - 1):
                continue
            weight = torch.ones(1, 1, kernel, requires_grad=True)
            F.conv1d(
                torch.ones(1, 1, size), weight, None, stride, padding, dilation
            ).sum().backward()
            assert weight.grad is not None
            (live,) = live_taps((size,), (kernel,), (stride,), (padding,), (dilation,))
            assert list(live) == (weight.grad.flatten() > 0).tolist()


@pytest.mark.parametrize("padding", ["same", (1, 1), 1])
def test_outputs_are_the_same_bits(padding) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3, padding=padding)
    for size in (1, 2, 6):
        x = torch.randn(2, 3, size, size)
        with torch.autocast("cpu", torch.bfloat16):
            plain = layer(x)
            with SoundConvolutions():
                assert torch.equal(layer(x), plain)


def test_training_in_bf16_on_tiny_maps_leaves_such_taps_where_they_were() -> None:
    case = Case(
        "early_stopping",
        {},
        recipe={"data": {"image_size": 16}, "optimizer": {"weight_decay": 0.0}},
    )
    start: dict[str, Tensor] = {}

    def begun(run, state) -> None:
        spoil_memory(2**18)
        start.update({name: value.clone() for name, value in run.model.state_dict().items()})

    trace = case.train(on=False, over={"train": {"precision": "bf16"}}, begun=begun)
    name = "layer4.0.conv1.weight"  # which sees a map of one place with stride 2
    moved = (trace.state["model"][name] - start[name]).abs().amax((0, 1))
    middle = moved[1, 1].clone()
    moved[1, 1] = 0
    assert middle > 0
    assert moved.max() == 0
