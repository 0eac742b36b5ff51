"""What latents do to a task, and the divergence that they cost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trainkit_plugins.learning_to_balance import (
    DiagonalNormal,
    Latents,
    Posterior,
    class_weights,
    inverse_frequency,
    modulate,
    scale_steps,
)

NUMBER = st.floats(-3, 3)


def normal(mu, sigma):
    return DiagonalNormal(
        torch.tensor(mu, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)
    )


@settings(max_examples=30, deadline=None)
@given(pairs=st.lists(st.tuples(NUMBER, st.floats(0.01, 4)), min_size=1, max_size=6))
def test_divergence_is_that_of_torch_and_never_negative(pairs):
    q = normal(*map(list, zip(*pairs, strict=True)))
    prior = torch.distributions.Normal(torch.zeros_like(q.mu), torch.ones_like(q.mu))
    wanted = torch.distributions.kl_divergence(
        torch.distributions.Normal(q.mu, q.sigma), prior
    ).sum()
    torch.testing.assert_close(q.kl(), wanted, rtol=1e-10, atol=1e-12)
    assert q.kl() >= 0


def test_divergence_is_zero_at_the_prior_alone():
    assert normal([0.0, 0.0], [1.0, 1.0]).kl() == 0
    assert normal([0.1, 0.0], [1.0, 1.0]).kl() > 0
    assert normal([0.0, 0.0], [1.0, 0.9]).kl() > 0


def test_only_what_is_switched_on_counts():
    parts = normal([0.5], [0.7]), normal([1.0, 2.0], [1.0, 0.3]), normal([-1.0], [2.0])
    for i in range(8):
        on = [part if i >> k & 1 else None for k, part in enumerate(parts)]
        if any(on):
            wanted = sum(float(part.kl()) for part in on if part is not None)
            assert float(Posterior(*on).kl()) == pytest.approx(wanted, rel=1e-12)


def test_draws_have_the_posteriors_moments_and_gradients():
    q = DiagonalNormal(
        torch.full((20_000,), 0.5, requires_grad=True), torch.full((20_000,), 0.25).requires_grad_()
    )
    drawn = q.sample(torch.Generator().manual_seed(0))
    assert drawn.detach().mean().item() == pytest.approx(0.5, abs=0.006)
    assert drawn.detach().std().item() == pytest.approx(0.25, abs=0.005)
    by_mu, by_sigma = torch.autograd.grad(drawn.sum(), [q.mu, q.sigma])
    assert torch.equal(by_mu, torch.ones_like(by_mu))
    torch.testing.assert_close(by_sigma, ((drawn - 0.5) / 0.25).detach())


def test_draws_come_from_the_generator_and_the_mean_needs_none():
    q = Posterior(normal([0.0, 1.0], [1.0, 1.0]), None, normal([2.0], [0.5]))
    one, same, other = (q.sample(torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(one.omega, same.omega)
    assert torch.equal(one.z, same.z)
    assert not torch.equal(one.omega, other.omega)
    assert one.gamma is None
    assert q.mean() == Latents(q.omega.mu, None, q.z.mu)


def test_a_posterior_without_spread_is_drawn_at_its_mean():
    q = Posterior(normal([0.3, -1.0], [0.0, 0.0]), None, None)
    assert torch.equal(q.sample(torch.Generator()).omega, q.mean().omega)


@settings(max_examples=30, deadline=None)
@given(latent=st.lists(NUMBER, min_size=1, max_size=20))
def test_class_weights_are_positive_and_sum_to_one(latent):
    omega = class_weights(torch.tensor(latent, dtype=torch.float64))
    assert float(omega.sum()) == pytest.approx(1, abs=1e-12)
    assert (omega > 0).all()


def test_inverse_frequency():
    weights = inverse_frequency(torch.tensor([0, 1, 1, 2, 2, 2, 2]), 3)
    torch.testing.assert_close(weights, torch.tensor([4.0, 2.0, 1.0]) / 7)
    assert inverse_frequency(torch.tensor([0, 2, 2]), 4).tolist() == pytest.approx(
        [2 / 3, 0, 1 / 3, 0]
    )
    uniform = inverse_frequency(torch.arange(5).repeat(3), 5)
    assert torch.equal(uniform, torch.full((5,), 0.2))


def parameters():
    g = torch.Generator().manual_seed(0)
    shapes = {
        "conv.weight": (4, 3, 3, 3),
        "conv.bias": (4,),
        "fc.weight": (2, 4),
        "fc.bias": (2,),
        "norm.bias": (4,),
    }
    return {
        n: torch.randn(s, generator=g, dtype=torch.float64, requires_grad=True)
        for n, s in shapes.items()
    }


def test_a_multiplier_is_shared_by_the_parameters_of_a_group():
    steps = {n: torch.full(p.shape, 0.5, dtype=torch.float64) for n, p in parameters().items()}
    groups = {"conv.weight": 0, "conv.bias": 0, "fc.weight": 1, "fc.bias": 1}
    latent = torch.tensor([1.0, -float("inf")], dtype=torch.float64)
    scaled = scale_steps(steps, latent, groups)
    for name in ("conv.weight", "conv.bias"):
        torch.testing.assert_close(scaled[name], steps[name] * torch.e)
    for name in ("fc.weight", "fc.bias"):
        assert not scaled[name].any()  # γ = 0 freezes exactly this layer
    assert scaled["norm.bias"] is steps["norm.bias"]


@settings(max_examples=20, deadline=None)
@given(latent=st.lists(st.floats(-8, 8), min_size=1, max_size=5))
def test_multipliers_are_positive(latent):
    names = {f"p{i}": i for i in range(len(latent))}
    scaled = scale_steps({n: torch.tensor(1.0) for n in names}, torch.tensor(latent), names)
    assert all(step > 0 for step in scaled.values())


def test_modulation_is_per_output_channel():
    params = parameters()
    latent = torch.arange(1.0, 9, dtype=torch.float64)
    changed = modulate(params, latent, ["conv.weight"], ["conv.bias"], scale=0.1)
    for c in range(4):
        torch.testing.assert_close(
            changed["conv.weight"][c], params["conv.weight"][c] * (1 + 0.1 * (c + 1))
        )
        torch.testing.assert_close(changed["conv.bias"][c], params["conv.bias"][c] + 0.1 * (c + 5))
    for name in ("fc.weight", "fc.bias", "norm.bias"):
        assert changed[name] is params[name]


def test_modulated_parameters_carry_gradients_to_the_latent_and_to_the_parameters():
    params = parameters()
    latent = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    changed = modulate(params, latent, ["conv.weight"], ["conv.bias"])
    loss = changed["conv.weight"].square().sum() + changed["conv.bias"].square().sum()
    by_latent, by_weight = torch.autograd.grad(loss, [latent, params["conv.weight"]])
    torch.testing.assert_close(
        by_latent[:4], 2 * params["conv.weight"].square().sum((1, 2, 3)).detach()
    )
    torch.testing.assert_close(by_latent[4:], 2 * params["conv.bias"].detach())
    torch.testing.assert_close(by_weight, 2 * params["conv.weight"].detach())


def test_at_the_prior_mean_nothing_changes_bit_for_bit():
    params = parameters()
    changed = modulate(params, torch.zeros(8), ["conv.weight"], ["conv.bias"])
    assert all(torch.equal(changed[n], params[n]) for n in params)
    steps = {n: torch.rand_like(p) for n, p in params.items()}
    scaled = scale_steps(steps, torch.zeros(2), {"conv.weight": 0, "fc.weight": 1})
    assert all(torch.equal(scaled[n], steps[n]) for n in steps)
    for ways in (2, 3, 5, 10, 20):
        omega = class_weights(torch.zeros(ways))
        assert torch.equal(ways * omega, torch.ones(ways))
