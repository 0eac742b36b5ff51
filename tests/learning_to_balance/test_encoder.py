"""The inference network: against the slow twin, its symmetries, and its edges."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call
from trainkit_plugins.learning_to_balance import InferenceNetwork, encoder

from tests.reference import learning_to_balance as twin
from tests.reference.learning_to_balance_names import encoder_weights, images


def network(in_chans=1, size=(8, 8), dtype=torch.float64, **options):
    torch.manual_seed(0)
    options = {"max_shot": 10, "groups": 3, "channels": 6} | options
    net = InferenceNetwork(in_chans, size, **options).to(dtype)
    with torch.no_grad():  # as initialized everything is near zero, and biases are
        for p in net.parameters():
            p.copy_(torch.randn_like(p) * 0.3)
    return net


def support(shots, size=(8, 8), in_chans=1, seed=1):
    g = torch.Generator().manual_seed(seed)
    targets = torch.cat([torch.full((n,), c) for c, n in enumerate(shots)])
    return torch.rand(len(targets), in_chans, *size, generator=g, dtype=torch.float64), targets


def flat(q):
    return torch.cat([torch.cat(list(part)) for part in q if part is not None])


def authors(shapes, g):
    return {
        n: (torch.randn(s, generator=g, dtype=torch.float64) * 0.1).requires_grad_()
        for n, s in shapes.items()
    }


def test_posterior_and_its_gradient_equal_the_slow_twin():
    g = torch.Generator().manual_seed(0)
    dense = {
        "dense1": (90, 64),
        "interact1": (3, 4),
        "dense2": (256, 128),
        "dense3": (128, 32),
        "interact2": (3, 4),
    }
    for latent, width, dims in (("omega", 256, 1), ("gamma", 128, 5), ("z", 128, 16)):
        dense |= {
            f"dense_{latent}": (width, 64),
            f"mu_{latent}": (64, dims),
            f"sigma_{latent}": (64, dims),
        }
    shapes = {"conv1": (3, 3, 3, 10), "conv2": (3, 3, 10, 10)} | dense
    kernels = authors({f"encoder.{n}.kernel": s for n, s in shapes.items()}, g)
    w = kernels | authors({f"encoder.{n}.bias": s[-1:] for n, s in shapes.items()}, g)
    x, y = (
        torch.rand(9, 12, 12, 3, generator=g, dtype=torch.float64),
        torch.tensor([0, 2, 1, 1, 0, 2, 2, 2, 3]),
    )
    net = InferenceNetwork(3, (12, 12), max_shot=6, groups=5, channels=16)
    q = functional_call(net, encoder_weights(w, 3), (images(x), y, 4))
    slow = twin.posterior(w, x, y, 4, 6)
    found, wanted = flat(q), torch.cat([torch.cat(slow[n]) for n in ("omega", "gamma", "z")])
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(q.kl(), twin.kl(slow), rtol=1e-10, atol=1e-12)
    c = torch.randn(len(found), generator=g, dtype=torch.float64)
    ours, theirs = (
        torch.autograd.grad(f @ c, list(w.values()), retain_graph=True) for f in (found, wanted)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        assert a.abs().max() > 0


@settings(max_examples=15, deadline=None)
@given(shots=st.lists(st.integers(1, 6), min_size=2, max_size=5), seed=st.integers(0, 99))
def test_order_of_examples_changes_nothing_and_order_of_classes_permutes_omega(shots, seed):
    net, (x, y) = network(), support(shots, seed=seed)
    g = torch.Generator().manual_seed(seed)
    q = net(x, y, len(shots))
    shuffled = torch.randperm(len(y), generator=g)
    torch.testing.assert_close(
        flat(net(x[shuffled], y[shuffled], len(shots))), flat(q), rtol=1e-10, atol=1e-12
    )
    classes = torch.randperm(len(shots), generator=g)
    renamed = net(x, classes[y], len(shots))  # class c is now classes[c]
    torch.testing.assert_close(renamed.omega.mu[classes], q.omega.mu, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(renamed.omega.sigma[classes], q.omega.sigma, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(flat(renamed[1:]), flat(q[1:]), rtol=1e-10, atol=1e-12)


def test_twice_the_same_images_change_the_cardinality_alone():
    net, (x, y) = network(), support((2, 3))
    h = torch.nn.functional.one_hot
    once, n = net._classes(net._examples(x), h(y).T.double())
    twice, n2 = net._classes(net._examples(x.repeat(2, 1, 1, 1)), h(y.repeat(2)).T.double())
    assert n.tolist() == pytest.approx([1 / 9, 2 / 9])
    assert n2.tolist() == pytest.approx([3 / 9, 5 / 9])
    assert not torch.allclose(once, twice)
    with torch.no_grad():
        net.interact1.weight[:, 2] = 0  # blind to the cardinality
    once, _ = net._classes(net._examples(x), h(y).T.double())
    twice, _ = net._classes(net._examples(x.repeat(2, 1, 1, 1)), h(y.repeat(2)).T.double())
    torch.testing.assert_close(once, twice, rtol=1e-10, atol=1e-12)


def test_omega_looks_at_its_own_class_and_gamma_and_z_at_all():
    net, (x, y) = network(), support((2, 3, 1))
    before, after = net(x, y, 3), net(torch.where((y == 2).view(-1, 1, 1, 1), 1 - x, x), y, 3)
    assert torch.equal(before.omega.mu[:2], after.omega.mu[:2])
    assert before.omega.mu[2] != after.omega.mu[2]
    assert not torch.allclose(before.gamma.mu, after.gamma.mu)
    assert not torch.allclose(before.z.mu, after.z.mu)


def test_one_example_per_class_has_variance_zero_and_finite_gradients():
    net, (x, y) = network(), support((1, 1, 1))
    q = net(x, y, 3)
    gradients = torch.autograd.grad(flat(q).sum() + q.kl(), list(net.parameters()))
    assert all(torch.isfinite(g).all() for g in gradients)
    with torch.no_grad():
        net.interact1.weight[:, 1] *= 100  # what the variance counts for
    torch.testing.assert_close(flat(net(x, y, 3)), flat(q), rtol=0, atol=0)


def test_a_single_class_has_finite_gradients():
    net, (x, y) = network(), support((3,))
    q = net(x, y, 1)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(q.kl(), list(net.parameters())))


def test_gradcheck():
    net, (x, y) = network(size=(4, 4), groups=2, channels=2), support((1, 2), size=(4, 4))
    names, values = zip(*net.named_parameters(), strict=True)
    small = [
        i
        for i, n in enumerate(names)
        if n.startswith(("conv1", "interact", "omega.mu", "gamma.rho", "z.rho"))
    ]

    def through(*given):
        state = dict(zip(names, values, strict=True)) | {
            names[i]: v for i, v in zip(small, given, strict=True)
        }
        q = functional_call(net, state, (x, y, 2))
        return flat(q), q.kl()

    assert torch.autograd.gradcheck(through, [values[i] for i in small])


@pytest.mark.parametrize(("size", "count"), [((32, 32), 146_290), ((84, 84), 387_570)])
def test_it_has_as_many_parameters_as_the_authors(size, count):
    net = InferenceNetwork(3, size, max_shot=50, groups=5, channels=256)
    assert sum(p.numel() for p in net.parameters()) == count


def test_as_initialized_the_posterior_is_near_the_prior_mean_with_deviation_ln_2():
    torch.manual_seed(0)
    net = InferenceNetwork(1, (8, 8), max_shot=10, groups=5, channels=64)
    x, y = support((2, 3))
    q = net(x.float(), y, 2)
    for mu, sigma in q:
        assert mu.abs().max() < 0.01
        torch.testing.assert_close(sigma, torch.full_like(sigma, 0.6931), atol=0.01, rtol=0)
    assert q.kl().item() == pytest.approx(0.1067 * (2 + 5 + 64), rel=0.02)


@pytest.mark.parametrize("off", ["omega", "gamma", "z"])
def test_what_is_left_out_has_no_parameters_and_no_posterior(off):
    options = {"omega": {"omega": False}, "gamma": {"groups": 0}, "z": {"channels": 0}}[off]
    net, (x, y) = network(**options), support((2, 3))
    q = net(x, y, 2)
    assert getattr(q, off) is None
    assert sum(part is not None for part in q) == 2
    assert not any(name.startswith(f"{off}.") for name, _ in net.named_parameters())
    assert all(
        g is not None
        for g in torch.autograd.grad(q.kl(), list(net.parameters()), allow_unused=True)
    )


def test_omega_alone_leaves_out_the_second_pooling():
    net, (x, y) = network(groups=0, channels=0), support((2, 3))
    assert all(
        g is not None
        for g in torch.autograd.grad(net(x, y, 2).kl(), list(net.parameters()), allow_unused=True)
    )


def test_larger_images_are_averaged_down():
    net = network(size=(168, 168))
    assert net.size == (84, 84)
    x, y = support((1, 1), size=(168, 168))
    small = torch.nn.functional.avg_pool2d(x, 2)
    torch.testing.assert_close(flat(net(x, y, 2)), flat(net(small, y, 2)))


def test_under_autocast_it_keeps_full_precision():
    net, (x, y) = network(dtype=torch.float32), support((2, 3))
    plain = flat(net(x.float(), y, 2))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(flat(net(x.float(), y, 2)), plain)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": (3, 8)}, "at least 4 x 4 pixels"),
        ({"max_shot": 1}, "max_shot must be at least 2"),
        ({"omega": False, "groups": 0, "channels": 0}, "nothing to infer"),
    ],
)
def test_what_cannot_be_made_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        network(**options)


@pytest.mark.parametrize("shots", [(1, 3, 5), (5, 5), (1, 1, 1)])
def test_whatever_the_seed_every_parameter_has_a_gradient_from_the_first_step(shots):
    # With the authors' draw, one network in eight has a mixing layer all of whose units are off,
    # for good.
    for seed in range(64):
        torch.manual_seed(seed)
        net = InferenceNetwork(1, (8, 8), max_shot=5, groups=3, channels=6)
        x, y = support(shots, seed=seed)
        q = net(x, y, len(shots))
        assert (net.interact1.weight[:, 2] > 0).any()
        torch.stack([part.mu.square().sum() + part.sigma.sum() for part in q]).sum().backward()
        dead = [name for name, p in net.named_parameters() if not p.grad.any()]
        assert not dead, seed


def test_a_draw_that_is_alive_stays_as_the_authors_have_it():
    alive = 0
    for seed in range(64):
        torch.manual_seed(seed)
        net = InferenceNetwork(1, (8, 8), max_shot=5, groups=3, channels=6)
        torch.manual_seed(seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(encoder, "_enliven", lambda layer: None)
            drawn = InferenceNetwork(1, (8, 8), max_shot=5, groups=3, channels=6)
        same = all(
            torch.equal(a, b) for a, b in zip(net.parameters(), drawn.parameters(), strict=True)
        )
        on = all((layer.weight[:, 2] > 0).any() for layer in (drawn.interact1, drawn.interact2))
        assert same == on
        alive += on
    assert 32 < alive < 64
