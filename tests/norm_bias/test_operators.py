"""Spectra of layers against the dense matrix of the map, and what projections make of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from trainkit_plugins.norm_bias.spectral_rank import (
    Geometry,
    Spectrum,
    effective_rank,
    geometry,
    input_sizes,
    project,
    spectrum,
)

from tests.reference.norm_bias import dense_convolution


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def all_values(found: Spectrum) -> Tensor:
    """Return every singular value, twins included, in order."""
    repeated = found.values[found.weights == 1], found.values[found.weights == 2].repeat(2, 1)
    return torch.cat([part.flatten() for part in repeated]).sort(descending=True).values


layers = st.fixed_dictionaries(
    {
        "channels": st.sampled_from(
            [(1, 1, 1), (2, 3, 1), (3, 2, 1), (4, 4, 4), (4, 2, 2), (2, 6, 2)]
        ),
        "kernel": st.tuples(st.integers(1, 3), st.integers(1, 3)).filter(lambda k: k != (1, 1)),
        "stride": st.tuples(st.integers(1, 3), st.integers(1, 2)),
        "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)),
        "size": st.tuples(st.integers(1, 6), st.integers(1, 6)),
        "seed": st.integers(0, 9),
    }
)


def layer_of(drawn) -> tuple[nn.Conv2d, Geometry, Tensor]:
    inputs, outputs, groups = drawn["channels"]
    layer = nn.Conv2d(
        inputs,
        outputs,
        drawn["kernel"],
        drawn["stride"],
        dilation=drawn["dilation"],
        groups=groups,
        bias=False,
    )
    found = geometry(layer, drawn["size"])
    assert isinstance(found, Geometry)
    return layer, found, random(*layer.weight.shape, seed=drawn["seed"])


@given(layers)
@settings(max_examples=40)
def test_the_spectrum_is_that_of_the_dense_matrix(drawn):
    layer, found, weight = layer_of(drawn)
    dense = dense_convolution(weight, found.grid, layer.stride, layer.dilation, layer.groups)
    wanted = torch.linalg.svdvals(dense)
    values = all_values(spectrum(weight, found))
    # A group's matrices may be wide where the whole is not; what is missing on either side is zero.
    longer = max(len(wanted), len(values))
    pad = [torch.cat([v, v.new_zeros(longer - len(v))]) for v in (values, wanted)]
    torch.testing.assert_close(pad[0], pad[1], rtol=1e-9, atol=1e-9)


@given(layers, st.sampled_from(["maximize", "minimize"]), st.floats(0.1, 3))
@settings(max_examples=40)
def test_a_projection_is_that_of_the_dense_matrix_cut_to_the_kernel(drawn, mode, threshold):
    layer, found, weight = layer_of(drawn)
    dense = dense_convolution(weight, found.grid, layer.stride, layer.dilation, layer.groups)
    u, s, vh = torch.linalg.svd(dense, full_matrices=False)
    s = s.clamp(max=threshold) if mode == "maximize" else torch.where(s < threshold, 0.0, s)
    cut = project(weight, found, mode, threshold).weight
    # The first output pixel's row holds the kernel as it lies on the grid.
    pixels = (found.grid[0] // layer.stride[0]) * (found.grid[1] // layer.stride[1])
    rows = ((u * s) @ vh)[::pixels].view(layer.out_channels, layer.in_channels, *found.grid)
    per_group_out, per_group_in = (
        c // layer.groups for c in (layer.out_channels, layer.in_channels)
    )
    for out in range(layer.out_channels):
        first = out // per_group_out * per_group_in
        for tap_h in range(layer.kernel_size[0]):
            for tap_w in range(layer.kernel_size[1]):
                at = tap_h * layer.dilation[0], tap_w * layer.dilation[1]
                wanted = rows[out, first : first + per_group_in, *at]
                torch.testing.assert_close(cut[out, :, tap_h, tap_w], wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("mode", ["maximize", "minimize"])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_kernel_as_large_as_the_map_meets_the_bound_and_a_cut_one_does_not(mode, stride):
    def beyond(weight: Tensor, found: Geometry) -> Tensor:
        values = all_values(spectrum(weight, found))
        return (
            values > threshold + 1e-9
            if mode == "maximize"
            else (values > 1e-9) & (values < threshold - 1e-9)
        )

    found = Geometry((6, 6), (stride, stride))
    for kernel, exact in ((6, True), (3, False)):
        weight = random(4, 3, kernel, kernel)
        threshold = all_values(spectrum(weight, found)).median().item()
        assert beyond(weight, found).any()
        assert beyond(project(weight, found, mode, threshold).weight, found).any() != exact


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (1, 4), (4, 1)])
def test_a_matrix_is_its_own_operator(shape):
    weight = random(*shape)
    capped, floored = (project(weight, Geometry(), mode, 1.5) for mode in ("maximize", "minimize"))
    s = torch.linalg.svdvals(weight)
    torch.testing.assert_close(torch.linalg.svdvals(capped.weight), s.clamp(max=1.5))
    torch.testing.assert_close(torch.linalg.svdvals(floored.weight), torch.where(s < 1.5, 0.0, s))
    assert capped.changed.item() == pytest.approx((s > 1.5).double().mean().item())
    assert floored.changed.item() == pytest.approx((s < 1.5).double().mean().item())


def test_a_one_by_one_convolution_has_the_same_rank_on_any_map():
    weight = random(6, 4, 1, 1)
    small = effective_rank(spectrum(weight, Geometry()))
    large = effective_rank(spectrum(weight, Geometry((8, 6))))
    assert small.item() == pytest.approx(large.item(), rel=1e-12)


def test_effective_rank_is_nuclear_over_frobenius_as_a_share():
    weight = random(6, 4)
    s = torch.linalg.svdvals(weight)
    wanted = s.sum() / weight.norm() / 4**0.5
    assert effective_rank(spectrum(weight, Geometry())).item() == pytest.approx(
        wanted.item(), rel=1e-12
    )
    assert effective_rank(spectrum(torch.eye(5), Geometry())).item() == pytest.approx(1)
    assert effective_rank(spectrum(torch.ones(4, 9), Geometry())).item() == pytest.approx(0.5)


@pytest.mark.parametrize(("mode", "up"), [("maximize", True), ("minimize", False)])
def test_projections_move_the_effective_rank_the_way_their_name_says(mode, up):
    found = Geometry((8, 8))
    weight = random(6, 6, 3, 3)
    after = project(weight, found, mode, 4.0).weight
    before, now = (effective_rank(spectrum(w, found)).item() for w in (weight, after))
    assert (now > before) == up


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("mode", "threshold"), [("maximize", float("inf")), ("minimize", 0.0), ("maximize", 1e3)]
)
def test_where_nothing_is_out_of_bounds_the_weight_itself_comes_back(dtype, mode, threshold):
    weight = random(4, 4, 3, 3).to(dtype)
    result = project(weight, Geometry((6, 6)), mode, threshold)
    assert result.weight is weight
    assert result.changed.item() == 0
    assert 0 < result.effective_rank.item() <= 1


def test_half_precision_keeps_its_dtype():
    result = project(random(4, 4, 3, 3).bfloat16(), Geometry((6, 6)), "maximize", 1.0)
    assert result.weight.dtype == torch.bfloat16
    assert result.changed.item() > 0


@pytest.mark.parametrize("threshold", [-1.0, float("nan")])
def test_a_threshold_below_zero_is_refused(threshold):
    with pytest.raises(ValueError, match="at least 0"):
        project(random(2, 2), Geometry(), "minimize", threshold)


class Scaled(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight / self.weight.norm(), self.bias)


@pytest.mark.parametrize(
    ("layer", "size", "wanted"),
    [
        (nn.Linear(3, 4), None, Geometry()),
        (nn.Conv2d(4, 8, 1, stride=2, groups=2), None, Geometry(groups=2)),
        (nn.Conv2d(4, 4, 3, groups=4), (7, 5), Geometry((7, 5), groups=4)),
        (nn.Conv2d(4, 4, 3, stride=2), (7, 8), Geometry((8, 8), (2, 2))),
        (nn.Conv2d(4, 4, 3, dilation=2), (3, 9), Geometry((5, 9), dilation=(2, 2))),
        (nn.Conv2d(4, 4, 3), None, "Conv2d took no part in the forward pass"),
        (
            nn.ConvTranspose2d(4, 4, 3),
            (8, 8),
            "ConvTranspose2d is neither a 2-D convolution nor a linear layer",
        ),
        (nn.Conv1d(4, 4, 3), (8, 8), "Conv1d is neither"),
        (Scaled(4, 4, 3), (8, 8), "Scaled does more with its weight than a convolution"),
        (
            nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
            None,
            "computes its weight from other tensors",
        ),
    ],
)
def test_a_layer_is_an_operator_or_is_refused_with_a_reason(layer, size, wanted):
    found = geometry(layer, size)
    if isinstance(wanted, str):
        assert isinstance(found, str)
        assert wanted in found
    else:
        assert found == wanted
    if isinstance(layer, Scaled):
        assert isinstance(geometry(layer, size, (Scaled,)), Geometry)


def test_input_sizes_are_those_of_the_forward_pass_and_leave_no_trace():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3)
    )
    model[1].eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    random_state = torch.get_rng_state()

    def forward():
        torch.rand(3)
        model(torch.zeros(1, 1, 12, 10))

    assert input_sizes(model, forward) == {"0": (12, 10), "3": (6, 5)}
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model] == [True, False, True, True]
    assert not any(m._forward_pre_hooks for m in model.modules())
