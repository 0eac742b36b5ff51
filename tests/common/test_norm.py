"""The joint norm of many tensors, which grad_clip and norm_bias share."""

from __future__ import annotations

import math

import pytest
import torch
from trainkit_plugins.common import norm
from trainkit_plugins.common.norm import grouped, joint_norm, joint_square, once, reported_dtype
from trainkit_plugins.common.precision import promoted, promoted_dtype


def test_tensors_of_all_dtypes_count_as_one_vector() -> None:
    groups = grouped(
        [torch.full((3,), 2.0), torch.full((2,), 2.0).half(), torch.full((4,), 2.0).double()]
    )
    assert len(groups) == 3
    assert joint_norm(groups).item() == pytest.approx(6.0)
    assert joint_square(groups).item() == pytest.approx(36.0)
    assert joint_square(groups).dtype == reported_dtype(groups) == torch.float64


def test_half_precision_longer_than_its_range_has_its_norm() -> None:
    groups = grouped([torch.full((100,), 60000.0, dtype=torch.float16)])
    assert joint_norm(groups).item() == pytest.approx(6e5, rel=1e-3)
    assert reported_dtype(groups) == torch.float32


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_squares_that_leave_float32_still_give_the_norm(size: float) -> None:
    assert joint_norm(grouped([torch.full((4,), size)])).item() == pytest.approx(2 * size)


def test_no_tensors_and_empty_ones_have_the_norm_zero() -> None:
    for tensors in ([], [torch.zeros(0)]):
        assert joint_norm(grouped(tensors)).item() == 0
        assert joint_square(grouped(tensors)).shape == ()


def test_a_tensor_listed_twice_counts_once_where_it_is_asked_for() -> None:
    one = torch.ones(4)
    assert joint_norm(grouped(once([one, one]))).item() == 2
    assert joint_norm(grouped([one, one])).item() == pytest.approx(math.sqrt(8))


@pytest.mark.parametrize("order", ["rows", "columns", "channels_last"])
def test_long_tensors_are_cut_into_stretches_of_memory(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norm, "_PIECE", 16)
    tensor = torch.arange(64.0)
    if order == "channels_last":
        tensor = tensor.view(2, 4, 4, 2).permute(0, 3, 1, 2)
    else:
        tensor = tensor.view(8, 8).t() if order == "columns" else tensor.view(8, 8)
    pieces = norm._pieces([tensor])
    assert len(pieces) > 1
    for piece in pieces:
        values = piece.flatten().sort().values
        assert torch.equal(values, torch.arange(values[0].item(), values[-1].item() + 1))
    assert joint_square(grouped([tensor])).item() == pytest.approx(float((tensor**2).sum()))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float8_e4m3fn, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.complex64, torch.complex64),
        (torch.int64, torch.int64),
        (torch.bool, torch.bool),
    ],
)
def test_only_narrow_floating_types_are_promoted(given: torch.dtype, wanted: torch.dtype) -> None:
    assert promoted_dtype(given) == wanted
    tensor = torch.zeros(2).to(given)
    assert promoted(tensor).dtype == wanted
    assert (promoted(tensor) is tensor) == (given == wanted)
