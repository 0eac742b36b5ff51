"""The Lemma-1 start: equal to the affine model, a stationary point, and left by no small step."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from trainkit_plugins.norm_bias.trap_init import (
    embed_affine,
    fit_affine,
    gradient_norm,
    hidden_units,
    largest_curvature,
    linear_layers,
)


def network(*widths: int, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(a, b, dtype=dtype) for a, b in pairwise(widths)]
    return nn.Sequential(*[m for layer in layers for m in (layer, nn.ReLU())][:-1])


def layers_of(model: nn.Module) -> list[nn.Linear]:
    found = linear_layers(model)
    assert isinstance(found, list)
    return found


def whitened_digits() -> tuple[Tensor, Tensor]:
    """PCA-20 of the digits, whitened and scaled by 0.3, and one-hot classes."""
    bunch = load_digits()
    x = torch.tensor(bunch.data, dtype=torch.float64)
    u, _, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    return 0.3 * u[:, :20] * len(x) ** 0.5, one_hot(torch.tensor(bunch.target)).double()


def squared(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (model(x) - y).square().sum(1).mean()


@given(
    d=st.integers(1, 6),
    k=st.integers(1, 6),
    widths=st.lists(st.integers(6, 9), min_size=1, max_size=3),
    rank=st.integers(0, 6),
    margin=st.floats(0.01, 5),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_the_network_equals_the_affine_map_and_all_units_are_positive(
    d, k, widths, rank, margin, seed
):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(k, rank, generator=g).double() @ torch.randn(rank, d, generator=g).double()
    c, x = torch.randn(k, generator=g).double(), 3 * torch.randn(20, d, generator=g).double()
    model = network(d, *widths, k)
    embed_affine(layers_of(model), a, c, x, margin)
    torch.testing.assert_close(model(x), x @ a.t() + c, rtol=1e-9, atol=1e-9)
    assert hidden_units(model, x).smallest.item() >= margin * (1 - 1e-9)
    assert hidden_units(model, x).active.item() == 1


def test_in_single_precision_it_agrees_on_all_digits_to_the_fifth_place():
    x, y = whitened_digits()
    fit = fit_affine(lambda out: (out - y).square().sum(1).mean(), x, 10)
    model = network(20, 20, 20, 10, dtype=torch.float32)
    embed_affine(layers_of(model), fit.weight, fit.bias, x)
    affine = x @ fit.weight.t() + fit.bias
    out = model(x.float()).double()
    torch.testing.assert_close(out, affine, rtol=0, atol=1e-5)
    assert (out.argmax(1) == affine.argmax(1)).all()
    assert (out - y).square().sum(1).mean().item() == pytest.approx(fit.loss, rel=1e-6)


def test_the_fit_of_a_squared_loss_is_least_squares():
    x, y = whitened_digits()
    fit = fit_affine(lambda out: (out - y).square().sum(1).mean(), x, 10)
    ones = torch.cat([x, x.new_ones(len(x), 1)], 1)
    exact = torch.linalg.lstsq(ones, y).solution
    torch.testing.assert_close(fit.weight, exact[:-1].t(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(fit.bias, exact[-1], rtol=1e-6, atol=1e-8)
    assert fit.gradient_norm < 1e-8


def test_the_fit_finds_the_minimum_whatever_the_scale_of_the_inputs():
    x, y = whitened_digits()
    scales = torch.logspace(-3, 3, 20, dtype=torch.float64)
    classes = y.argmax(1)
    losses = [
        fit_affine(
            lambda out: cross_entropy(out, classes, label_smoothing=0.1), x * s, 10, iterations=100
        ).loss
        for s in (torch.ones(20), scales)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_classes_that_a_plane_separates_leave_a_gradient():
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    fit = fit_affine(lambda out: cross_entropy(out, torch.tensor([0, 1])), x, 2, iterations=3)
    assert fit.gradient_norm > 1e-5


def test_the_trap_is_a_minimum_that_descent_returns_to_and_the_default_start_leaves_behind():
    x, y = whitened_digits()
    fit = fit_affine(lambda out: (out - y).square().sum(1).mean(), x, 10)
    model = network(20, 20, 20, 10)
    parameters = list(model.parameters())
    embed_affine(layers_of(model), fit.weight, fit.bias, x)

    def loss() -> Tensor:
        return squared(model, x, y)

    assert gradient_norm(loss, parameters) < 1e-8
    curvature = largest_curvature(loss, parameters)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in parameters:
            p += 1e-3 * torch.randn(p.shape, generator=generator)
    disturbed = loss().item()
    assert disturbed > fit.loss + 1e-6
    optimizer = torch.optim.SGD(parameters, lr=1 / curvature)
    for _ in range(100):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert fit.loss <= loss().item() < fit.loss + 0.02 * (disturbed - fit.loss)

    default = network(20, 20, 20, 10)
    optimizer = torch.optim.SGD(default.parameters(), lr=0.02, momentum=0.9)
    for _ in range(300):
        optimizer.zero_grad()
        squared(default, x, y).backward()
        optimizer.step()
    assert squared(default, x, y).item() < 0.8 * fit.loss


def test_no_small_step_in_any_of_many_directions_lowers_the_loss():
    x, y = whitened_digits()
    fit = fit_affine(lambda out: (out - y).square().sum(1).mean(), x, 10)
    model = network(20, 16, 10)
    embed_affine(layers_of(model), fit.weight, fit.bias, x)
    start = nn.utils.parameters_to_vector(model.parameters()).detach()
    generator = torch.Generator().manual_seed(0)
    for size in (1e-4, 1e-3, 1e-2):
        for _ in range(20):
            direction = torch.randn(start.shape, generator=generator, dtype=torch.float64)
            nn.utils.vector_to_parameters(start + size * direction, model.parameters())
            assert squared(model, x, y).item() >= fit.loss - 1e-12


def test_curvature_is_the_largest_eigenvalue_of_the_hessian():
    matrix = torch.tensor([[2.0, 1.0], [1.0, 5.0]], dtype=torch.float64)
    p = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    found = largest_curvature(lambda: 0.5 * p @ matrix @ p, [p], iterations=60)
    assert found == pytest.approx(torch.linalg.eigvalsh(matrix)[-1].item(), rel=1e-9)
    assert gradient_norm(lambda: (p * torch.tensor([3.0, 4.0])).sum(), [p]) == 5


@pytest.mark.parametrize(
    ("widths", "shape", "margin", "message"),
    [
        ((3, 1, 2), (2, 3), 1.0, "narrower than the rank of the affine map, 2"),
        ((3, 4, 2), (2, 3), 0.0, "margin must be positive"),
        ((3, 2), (2, 3), 1.0, "needs a hidden layer"),
        ((4, 4, 2), (2, 3), 1.0, "cannot hold a map from 3 to 2"),
    ],
)
def test_networks_that_cannot_hold_the_map_are_refused(widths, shape, margin, message):
    a = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        embed_affine(
            layers_of(network(*widths)) if len(widths) > 2 else list(network(*widths))[:1],
            a,
            torch.zeros(2),
            torch.zeros(4, 3),
            margin,
        )


def test_layers_without_a_bias_are_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    with pytest.raises(ValueError, match="needs a bias"):
        embed_affine(layers_of(model), torch.ones(2, 3), torch.zeros(2), torch.zeros(4, 3))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([nn.BatchNorm1d(4)], "has a BatchNorm1d"),
        ([nn.GELU()], "has a GELU"),
        ([nn.Dropout(0.1)], "has a Dropout"),
        ([nn.ReLU()], "does not alternate"),
        ([nn.Dropout(0.0), nn.Identity()], ""),
    ],
)
def test_only_a_plain_relu_network_is_one(extra, message):
    found = linear_layers(
        nn.Sequential(nn.Flatten(), nn.Linear(3, 4), *extra, nn.ReLU(), nn.Linear(4, 2))
    )
    assert message in found if message else isinstance(found, list)
