"""The same numbers as the authors' code, torch, and a slow twin in the paper's letters."""

from pathlib import Path

import numpy as np
import pytest
import torch
from trainkit_plugins.radam import Adam2k, AdamEps, AdamWarmup, RAdam, rectification

from tests.reference import radam as reference

GOLDEN = Path(__file__).parents[1] / "golden" / "radam.npz"
GOLDEN_CASES = {
    "plain": {"lr": 1e-2},
    "skip": {"lr": 1e-2, "unrectified": "skip"},
    "decay": {"lr": 1e-2, "weight_decay": 0.1},
    "betas": {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-4},
}
PATHS = {"fused": {"fused": True}, "foreach": {"foreach": True}, "single": {"foreach": False}}


def trajectory(build, start, gradients):
    """Return the parameters after each step, given the gradient of each step."""
    theta = torch.nn.Parameter(start.clone())
    optimizer = build([theta])
    steps = []
    for gradient in gradients:
        theta.grad = gradient.clone()
        optimizer.step()
        steps.append(theta.detach().clone())
    return torch.stack(steps)


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(12, generator=generator, dtype=torch.float64)
    sizes = 10.0 ** torch.linspace(-6, 2, 12, dtype=torch.float64)
    return start, torch.randn(300, 12, generator=generator, dtype=torch.float64) * sizes


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_golden_numbers_of_the_authors(case, dtype, path):
    golden = np.load(GOLDEN)
    params = torch.from_numpy(golden[f"{case}.params"]).to(dtype)
    gradients = torch.from_numpy(golden[f"{case}.grads"]).to(dtype)
    ours = trajectory(lambda p: RAdam(p, **GOLDEN_CASES[case], **PATHS[path]), params[0], gradients)
    torch.testing.assert_close(ours, params[1:], rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_equals_torch_radam(problem, eps, decoupled, path):
    settings = {"lr": 0.01, "eps": eps, "weight_decay": 0.1, "decoupled_weight_decay": decoupled}
    ours = trajectory(lambda p: RAdam(p, **settings, **PATHS[path]), *problem)
    theirs = trajectory(lambda p: torch.optim.RAdam(p, **settings), *problem)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("unrectified", ["sgd", "skip"])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.9), (0.8, 0.6)])
def test_equals_the_twin(problem, betas, unrectified):
    start, gradients = problem
    ours = trajectory(
        lambda p: RAdam(p, 0.01, betas, 1e-4, weight_decay=0.1, unrectified=unrectified),
        start,
        gradients,
    )
    twin = reference.radam(
        start.numpy(), gradients.numpy(), 0.01, *betas, 1e-4, lam=0.1, unrectified=unrectified
    )
    np.testing.assert_allclose(ours.numpy(), np.stack(list(twin)), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("build", "settings"),
    [
        (
            lambda p, **path: AdamWarmup(p, 0.01, weight_decay=0.1, warmup_steps=100, **path),
            {"warmup": 100},
        ),
        (lambda p, **path: AdamWarmup(p, 0.01, weight_decay=0.1, warmup_steps=0, **path), {}),
        (
            lambda p, **path: Adam2k(p, 0.01, weight_decay=0.1, freeze_steps=50, **path),
            {"freeze": 50},
        ),
        (lambda p, **path: AdamEps(p, 0.01, weight_decay=0.1, **path), {"eps": 1e-4}),
    ],
    ids=["warmup", "adam", "2k", "eps"],
)
def test_controls_equal_the_twin(problem, build, settings, path):
    start, gradients = problem
    ours = trajectory(lambda p: build(p, **PATHS[path]), start, gradients)
    twin = reference.adam(start.numpy(), gradients.numpy(), 0.01, lam=0.1, **settings)
    np.testing.assert_allclose(ours.numpy(), np.stack(list(twin)), rtol=1e-11, atol=1e-13)


def test_adam_eps_is_torch_adam_with_an_eps_that_shrinks(problem):
    """The paper's eps acts before the bias correction: torch's would have to be eps / sqrt(1 -
    beta2^t).
    """
    start, gradients = problem
    ours = trajectory(lambda p: AdamEps(p, 0.01), start, gradients[:50])
    theta = torch.nn.Parameter(start.clone())
    adam = torch.optim.Adam([theta], lr=0.01)
    for t, gradient in enumerate(gradients[:50], start=1):
        adam.param_groups[0]["eps"] = 1e-4 / (1 - 0.999**t) ** 0.5
        theta.grad = gradient.clone()
        adam.step()
        torch.testing.assert_close(theta.detach(), ours[t - 1], rtol=0, atol=1e-12)


def test_a_rectified_step_is_an_adam_step_with_its_own_lr_and_eps(problem):
    start, gradients = problem
    theta = torch.nn.Parameter(start.clone())
    adam = torch.optim.Adam([theta], lr=0.01)
    ours = trajectory(lambda p: RAdam(p, 0.01, eps=1e-3, unrectified="skip"), start, gradients[:40])
    for t, gradient in enumerate(gradients[:40], start=1):
        r = rectification(t, 0.999)
        adam.param_groups[0].update(lr=0.01 * (r or 0.0), eps=1e-3 / (1 - 0.999**t) ** 0.5)
        theta.grad = gradient.clone()
        adam.step()
        torch.testing.assert_close(theta.detach(), ours[t - 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("c", [100.0, 1e-3, -7.0])
def test_a_constant_gradient_moves_by_r_t_whatever_its_size(c):
    ones = torch.ones(40, 1, dtype=torch.float64)
    steps = trajectory(
        lambda p: RAdam(p, lr=1.0, eps=0.0), torch.zeros(1, dtype=torch.float64), c * ones
    )
    sizes = torch.diff(steps[:, 0], prepend=torch.zeros(1, dtype=torch.float64)).abs()
    torch.testing.assert_close(sizes[:5], torch.full((5,), abs(c), dtype=torch.float64))
    r = torch.tensor([rectification(t, 0.999) for t in range(6, 41)], dtype=torch.float64)
    torch.testing.assert_close(sizes[5:], r, rtol=1e-9, atol=0)
    assert float(sizes[5]) == pytest.approx(0.025821, abs=1e-6)


def test_a_short_memory_is_momentum_sgd_for_ever(problem):
    start, gradients = problem
    ours = trajectory(lambda p: RAdam(p, 1e-3, (0.9, 0.6)), start, gradients)
    theta, m = start.clone(), torch.zeros_like(start)
    for t, g in enumerate(gradients, start=1):
        m = 0.9 * m + 0.1 * g
        theta = theta - 1e-3 * m / (1 - 0.9**t)
        torch.testing.assert_close(ours[t - 1], theta, rtol=1e-12, atol=1e-12)


def test_skip_leaves_parameters_untouched_while_the_moments_fill(problem):
    start, gradients = problem
    theta = torch.nn.Parameter(start.clone())
    optimizer = RAdam([theta], lr=0.5, weight_decay=0.5, unrectified="skip")
    for t in range(1, 7):
        held = optimizer.state[theta]
        before = {
            name: held.get(name, torch.zeros(())).clone() for name in ("exp_avg", "exp_avg_sq")
        }
        theta.grad = gradients[t - 1].clone()
        optimizer.step()
        assert torch.equal(theta.detach(), start) == (t <= 5)
        assert all((optimizer.state[theta][name] != before[name]).all() for name in before)
        assert optimizer.state[theta]["step"] == t


def test_adam_2k_advances_the_second_moment_alone(problem):
    start, gradients = problem
    theta = torch.nn.Parameter(start.clone())
    optimizer = Adam2k([theta], lr=0.5, weight_decay=0.5, freeze_steps=3)
    for t in range(1, 5):
        theta.grad = gradients[t - 1].clone()
        optimizer.step()
        state = optimizer.state[theta]
        assert torch.equal(theta.detach(), start) == (t <= 3)
        assert bool((state["exp_avg"] == 0).all()) == (t <= 3)
        assert (state["exp_avg_sq"] > 0).all()


def test_first_step_after_the_freeze_is_a_tenth_of_adams():
    c = torch.full((60, 1), 3.0, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    frozen = trajectory(lambda p: Adam2k(p, lr=1.0, freeze_steps=50), zero, c)
    expected = 0.1 / (1 - 0.9**51)
    assert float(frozen[50, 0]) == pytest.approx(-expected, rel=1e-6)
