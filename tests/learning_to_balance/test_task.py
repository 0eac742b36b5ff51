"""Whole tasks: adaptation with balancing variables, its limits and its gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from trainkit_plugins.learning_to_balance import (
    InferenceNetwork,
    Latents,
    Posterior,
    balance,
    lay_out,
)
from trainkit_plugins.maml import Conv4, InnerLoop, adapt, plan_for, predict, task_loss

from tests.reference.derivatives import fill
from trainkit import Batch

WAYS, CHANNELS = 3, 4
SHOTS = (1, 2, 4)
LAYERS = ("conv1", "conv2", "conv3", "conv4", "head")


def episode(shots=SHOTS, queries=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(len(shots), 1, 16, 16, generator=g, dtype=torch.float64)

    def some(counts):
        y = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
        return Batch(means[y] + torch.randn(len(y), 1, 16, 16, generator=g, dtype=torch.float64), y)

    return some(shots), some([queries] * len(shots))


class Setup:
    """A small network with an encoder, both away from where they are initialized."""

    def __init__(self, *, omega=True, gamma=True, z=True, zero_head=False):
        self.model = Conv4(num_classes=WAYS, img_size=16, channels=CHANNELS).double()
        names = [n for n, _ in self.model.named_parameters()]
        grouping = {n: LAYERS.index(n.split(".")[0].replace("norm", "conv")) for n in names}
        self.layout = lay_out(
            self.model, grouping, [n for n in names if not n.startswith("head")], norms=False
        )
        self.encoder = InferenceNetwork(
            1,
            (16, 16),
            max_shot=5,
            groups=5 * gamma,
            channels=self.layout.channels * z,
            omega=omega,
        ).double()
        fill(self.encoder, 0.15, seed=1)
        fill(self.model)
        if zero_head:
            for p in self.model.head.parameters():
                torch.nn.init.zeros_(p)
        self.plan = plan_for(self.model, 0.3)

    def posterior(self, support) -> Posterior:
        return self.encoder(*support, WAYS)

    def planned(self, latents: Latents):
        return replace(
            self.plan, **balance(self.plan.params, self.plan.step_sizes, latents, self.layout)
        )

    def loss(self, support, query, noise=None, *, second_order=True):
        q = self.posterior(support)
        latents = q.mean() if noise is None else q.sample(torch.Generator().manual_seed(noise))
        plan = replace(
            self.planned(latents), penalty=q.kl() / (len(support.targets) + len(query.targets))
        )
        return task_loss(
            self.model, plan, support, query, InnerLoop(2, second_order=second_order)
        ).loss


def zeros(setup):
    q = setup.posterior(episode()[0])
    return Latents(*(None if part is None else torch.zeros_like(part.mu) for part in q))


def test_the_layout_of_conv4_is_the_authors():
    layout = Setup().layout
    assert layout.labels == LAYERS
    assert {
        layout.groups[f"{layer}.{part}"] for layer in LAYERS[:1] for part in ("weight", "bias")
    } == {0}
    assert layout.scaled == tuple(f"conv{i}.weight" for i in (1, 2, 3, 4))
    assert layout.shifted == tuple(f"conv{i}.bias" for i in (1, 2, 3, 4))
    assert layout.channels == 8 * CHANNELS


def test_at_the_prior_mean_a_task_adapts_as_without_latents_bit_for_bit():
    setup, (support, _) = Setup(), episode()
    plans = setup.plan, setup.planned(zeros(setup))
    theta, same = (adapt(setup.model, plan, support, InnerLoop(3)) for plan in plans)
    assert plans[1].class_weights is not None
    assert all(torch.equal(theta[n], same[n]) for n in theta)


@pytest.mark.parametrize("noise", [None, 7])
def test_meta_gradient_equals_finite_differences(noise):
    setup, (support, query) = Setup(), episode()
    everything = [*setup.encoder.parameters(), *setup.model.parameters()]
    g = torch.Generator().manual_seed(1)
    direction = [torch.randn(p.shape, generator=g, dtype=p.dtype) for p in everything]
    gradient = torch.autograd.grad(setup.loss(support, query, noise), everything)
    exact = sum((a * b).sum().item() for a, b in zip(gradient, direction, strict=True))
    h, values = 1e-6, []
    for sign in (1, -2, 1):
        with torch.no_grad():
            for p, d in zip(everything, direction, strict=True):
                p.add_(d, alpha=sign * h)
        values.append(setup.loss(support, query, noise).item())
    assert exact == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5)


def by_latent(setup, support, query, second_order):
    """Return the gradient of the query's cross entropy with respect to each latent."""
    latents = Latents(*(x.detach().requires_grad_() for x in setup.posterior(support).mean()))
    loop = InnerLoop(2, second_order=second_order)
    loss = task_loss(setup.model, setup.planned(latents), support, query, loop).loss
    return dict(
        zip(Latents._fields, torch.autograd.grad(loss, latents, allow_unused=True), strict=True)
    )


def test_every_latent_learns_from_the_query_through_the_inner_loop():
    setup, (support, query) = Setup(), episode()
    found = by_latent(setup, support, query, second_order=True)
    assert all(g.abs().max() > 1e-4 for g in found.values())
    # Conv biases before batch statistics do nothing, nor does z on them.
    scales, shifts = found["z"].split(4 * CHANNELS)
    assert scales.abs().max() > 1e-4
    assert shifts.abs().max() < 1e-12


def test_in_first_order_omega_learns_nothing():
    setup, (support, query) = Setup(), episode()
    found = by_latent(setup, support, query, second_order=False)
    assert found["omega"] is None
    assert found["gamma"].abs().max() > 1e-4
    assert found["z"].abs().max() > 1e-4


def test_the_encoder_learns_from_the_divergence_too():
    setup, (support, query) = Setup(), episode()
    for loss in (setup.posterior(support).kl(), setup.loss(support, query)):
        assert all(
            g.abs().max() > 0 for g in torch.autograd.grad(loss, list(setup.encoder.parameters()))
        )


def test_omega_weighs_each_examples_own_loss():
    # Weights on an averaged loss would sum to one and do nothing.
    setup, (support, _) = Setup(gamma=False, z=False), episode()
    tilted = setup.planned(Latents(torch.tensor([2.0, 0.0, -2.0], dtype=torch.float64), None, None))
    loop = InnerLoop(1)
    moved, plain = (adapt(setup.model, plan, support, loop) for plan in (tilted, setup.plan))
    assert not torch.allclose(moved["head.weight"], plain["head.weight"])
    omega = torch.softmax(torch.tensor([2.0, 0.0, -2.0], dtype=torch.float64), 0)
    losses = F.cross_entropy(
        predict(setup.model, setup.plan.params, support.inputs), support.targets, reduction="none"
    )
    wanted = (
        sum(omega[c] * losses[support.targets == c].sum() for c in range(WAYS)) * WAYS / len(losses)
    )
    gradient = torch.autograd.grad(wanted, setup.model.head.weight)[0]
    torch.testing.assert_close(moved["head.weight"], setup.model.head.weight - 0.3 * gradient)


def test_a_multiplier_near_zero_freezes_its_layer_alone():
    setup, (support, _) = Setup(omega=False, z=False), episode()
    latent = torch.zeros(5, dtype=torch.float64)
    latent[2] = -800  # exp of it is 0
    theta = adapt(setup.model, setup.planned(Latents(None, latent, None)), support, InnerLoop(2))
    for name in setup.plan.adapt:
        frozen = torch.equal(theta[name], setup.plan.params[name])
        assert frozen == name.startswith("conv3") or (
            name.endswith("bias") and not name.startswith("head")
        ), name


def test_modulation_changes_what_is_predicted():
    # A modulation that only rebinds a local name changes nothing.
    setup, (support, query) = Setup(omega=False, gamma=False), episode()
    z = torch.linspace(-1.5, 1.5, setup.layout.channels, dtype=torch.float64)
    changed, plain = (
        predict(setup.model, adapt(setup.model, plan, support, InnerLoop(1)), query.inputs)
        for plan in (setup.planned(Latents(None, None, z)), setup.plan)
    )
    assert (changed - plain).abs().max() > 0.01
    planned = setup.planned(Latents(None, None, z))
    assert all(
        planned.params[f"head.{part}"] is setup.plan.params[f"head.{part}"]
        for part in ("weight", "bias")
    )
    torch.testing.assert_close(
        planned.params["conv2.weight"][1], setup.model.conv2.weight[1] * (1 + z[CHANNELS + 1])
    )


def test_modulated_biases_act_where_statistics_are_not_the_batchs():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3),
        torch.nn.GroupNorm(2, 4),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.LazyLinear(3),
    )
    support, query = episode()
    model(support.inputs.float())
    model = model.double()
    names = [n for n, _ in model.named_parameters()]
    layout = lay_out(model, dict.fromkeys(names, 0), ["0.weight", "0.bias"], norms=False)
    plan = plan_for(model, 0.1)
    latent = torch.zeros(layout.channels, dtype=torch.float64, requires_grad=True)
    latents = Latents(None, None, latent)
    plan = replace(plan, **balance(plan.params, plan.step_sizes, latents, layout))
    (g,) = torch.autograd.grad(task_loss(model, plan, support, query, InnerLoop(1)).loss, [latent])
    assert g[4:].abs().max() > 1e-6


def test_query_images_and_labels_do_not_move_the_latents():
    # They are not even arguments; this holds the interface to it.
    setup, (support, _) = Setup(), episode()
    assert set(InferenceNetwork.forward.__annotations__) == {"images", "targets", "ways", "return"}
    assert torch.equal(
        setup.posterior(support).z.mu, setup.encoder(support.inputs, support.targets, WAYS).z.mu
    )


@pytest.mark.parametrize("on", ["omega", "gamma", "z"])
def test_each_variable_alone_replaces_its_part_of_the_plan(on):
    setup = Setup(**{name: name == on for name in ("omega", "gamma", "z")})
    changed = balance(
        setup.plan.params, setup.plan.step_sizes, setup.posterior(episode()[0]).mean(), setup.layout
    )
    assert list(changed) == [{"omega": "class_weights", "gamma": "step_sizes", "z": "params"}[on]]


def test_one_example_per_class_learns():
    setup, (support, query) = Setup(), episode((1, 1, 1))
    everything = [*setup.encoder.parameters(), *setup.model.parameters()]
    gradients = torch.autograd.grad(setup.loss(support, query, 0), everything)
    assert all(torch.isfinite(g).all() for g in gradients)


def test_with_a_zero_head_renamed_classes_permute_the_predictions():
    setup, (support, query) = Setup(zero_head=True), episode()
    renamed = torch.tensor([2, 0, 1])
    found = []
    for s in (support, Batch(support.inputs, renamed[support.targets])):
        plan = setup.planned(setup.posterior(s).mean())
        found.append(predict(setup.model, adapt(setup.model, plan, s, InnerLoop(2)), query.inputs))
    torch.testing.assert_close(found[1][:, renamed], found[0], rtol=1e-9, atol=1e-10)
