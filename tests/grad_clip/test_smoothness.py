import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from trainkit_plugins.grad_clip import (
    clip_by_global_norm,
    clip_tensors_by_global_norm,
    gradient_of,
    interior_grid,
    local_smoothness,
    preserve,
    snapshot,
)

from tests.reference import grad_clip as twin

steps = st.floats(1e-3, 1e3)
positive = st.floats(1e-2, 1e2)


def segment(start, end):
    start, end = (torch.tensor(v, dtype=torch.float64) for v in (start, end))
    return [nn.Parameter(end)], [start]


def measure(loss, start, end, **options):
    """Return (smoothness, gradient norm, step norm) of ``loss(p)`` on the step from ``start`` to
    ``end``.
    """
    params, x = segment(start, end)
    found = local_smoothness(gradient_of(lambda: loss(params[0]), params), params, x, **options)
    return None if found is None else [v.item() for v in found]


@given(positive, steps, st.integers(1, 5))
def test_a_sphere_has_its_curvature_along_every_step(L, length, points):
    smoothness, gradient_norm, step_norm = measure(
        lambda p: L / 2 * p.square().sum(),
        [1.0, -2.0],
        [1.0 + length, -2.0],
        grid=interior_grid(points),
    )
    assert smoothness == pytest.approx(L, rel=1e-10)
    assert gradient_norm == pytest.approx(L * math.sqrt(5))
    assert step_norm == pytest.approx(length)


@given(st.lists(st.floats(-3, 3), min_size=3, max_size=3), steps)
def test_a_quadratic_lies_between_its_eigenvalues_and_does_not_depend_on_gamma(direction, length):
    A = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]], dtype=torch.float64)
    d = torch.tensor(direction, dtype=torch.float64)
    if d.norm() < 1e-3:
        return
    end = (length * d).tolist()
    found = [
        measure(lambda p: p @ A @ p / 2, [0.0] * 3, end, grid=(g,))[0] for g in (0.1, 0.5, 1.0)
    ]
    low, *_, high = torch.linalg.eigvalsh(A).tolist()
    assert low * (1 - 1e-9) <= found[0] <= high * (1 + 1e-9)
    assert found == pytest.approx([found[0]] * 3, rel=1e-9)
    assert found[0] == pytest.approx(((A @ d).norm() / d.norm()).item(), rel=1e-9)


@given(positive)
def test_scaling_the_loss_scales_both_outputs(c):
    def loss(p):
        return p.cosh().sum() + p.pow(4).sum()

    one = measure(loss, [1.0, 2.0], [0.5, 1.0])
    scaled = measure(lambda p: c * loss(p), [1.0, 2.0], [0.5, 1.0])
    assert scaled == pytest.approx([c * one[0], c * one[1], one[2]], rel=1e-12)


@given(
    st.lists(st.floats(-2, 2), min_size=2, max_size=2), st.lists(positive, min_size=2, max_size=2)
)
def test_equals_the_slow_twin(start, step):
    grid = (0.25, 0.5, 1.0)
    end = [a + b for a, b in zip(start, step, strict=True)]
    found = measure(lambda p: p.cosh().sum(), start, end, grid=grid)
    slow = twin.smoothness(lambda x: [math.sinh(v) for v in x], start, end, grid)
    assert found[0] == pytest.approx(slow, rel=1e-9)
    assert found[1] == pytest.approx(twin.norm([math.sinh(v) for v in start]), rel=1e-12)


@given(st.floats(-8, 8), st.floats(1e-3, 0.5))
def test_short_steps_obey_the_bounds_of_cosh_and_of_the_fourth_power(x, length):
    # cosh is (1, 1)-smooth and x^4 is (16, 1)-smooth at a point; along a step the bound is its
    # largest value there.
    for loss, gradient, L0 in (
        (lambda p: p.cosh().sum(), math.sinh, 1.0),
        (lambda p: p.pow(4).sum(), lambda v: 4 * v**3, 16.0),
    ):
        smoothness, *_ = measure(loss, [x], [x + length], grid=(0.5, 1.0))
        steepest = max(abs(gradient(x)), abs(gradient(x + length)))
        assert smoothness <= (L0 + steepest) * (1 + 1e-6)


def test_the_fourth_power_meets_its_bound_at_two():
    smoothness, gradient_norm, _ = measure(lambda p: p.pow(4).sum(), [2.0], [2.0 + 1e-6])
    assert smoothness - gradient_norm == pytest.approx(16, abs=1e-3)


def iterations(x, L0=1.0, L1=1.0, stop=0.01):
    """Count clipped gradient descent steps on cosh from x until |f'| <= stop, settings of
    theorem 3.
    """
    eta, gamma = twin.theorem_3(L0, L1)
    p = torch.tensor([x], dtype=torch.float64)
    for count in range(1000):
        g = p.sinh()
        if g.abs().item() <= stop:
            return count
        h = twin.clip_step(g.abs().item(), eta, gamma)
        before = p.clone()
        clip_tensors_by_global_norm([g], gamma)
        p -= eta * g
        assert (before - p).item() == pytest.approx(h * before.sinh().item(), rel=1e-9)
        assert (before - p).abs().item() <= gamma * eta * (1 + 1e-12)
    raise AssertionError("did not converge")


@pytest.mark.parametrize(("x0", "expected"), [(10.0, 134), (5.0, 84), (2.0, 54)])
def test_clipped_gradient_descent_needs_the_papers_number_of_steps_on_cosh(x0, expected):
    assert iterations(x0) == expected


@given(st.floats(1e-8, 1e8), positive, positive)
def test_normalised_and_clipped_steps_are_within_a_factor_of_two(norm, eta_c, gamma):
    p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    p.grad = torch.full_like(p, norm)
    h_c = eta_c * clip_by_global_norm(p, gamma).coefficient.item()
    h_n = twin.normalised_step(norm, eta_n=gamma * eta_c, beta=gamma)
    assert h_c / 2 * (1 - 1e-12) <= h_n <= h_c * (1 + 1e-12)


class Net(nn.Module):
    """All that a measurement could disturb: batch norm, dropout, spectral norm, a buffer that is
    replaced.
    """

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.utils.parametrizations.spectral_norm(nn.Linear(4 * 36, 3))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.calls = self.calls + 1
        return self.head(self.drop(self.norm(self.conv(x)).relu()).flatten(1))


def state(model, optimizer=None):
    parts = [t.clone() for t in model.state_dict().values()] + [torch.get_rng_state()]
    parts += [p.grad.clone() for p in model.parameters() if p.grad is not None]
    if optimizer is not None:
        parts += [v.clone() for s in optimizer.state.values() for v in s.values()]
    return parts


def train(measuring, steps=4):
    """Train a few steps, measuring or not, and return every tensor that a run leaves behind."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    params = list(model.parameters())
    measured = []
    for _ in range(steps):
        x, y = torch.randn(8, 1, 8, 8), torch.randint(3, (8,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        start = snapshot(params)
        optimizer.step()
        if measuring:
            loss = partial(lambda a, b: nn.functional.cross_entropy(model(a), b), x, y)
            held = partial(preserve, model)
            measured.append(
                local_smoothness(gradient_of(loss, params, held=held), params, start, grid=(0.5, 1))
            )
    return state(model, optimizer), measured


def test_measuring_leaves_the_run_bit_identical():
    quiet, _ = train(measuring=False)
    watched, measured = train(measuring=True)
    assert all(map(torch.equal, watched, quiet))
    assert all(m.smoothness > 0 and m.smoothness.isfinite() for m in measured)


def test_measuring_twice_gives_the_same_bits():
    one, two = train(measuring=True)[1], train(measuring=True)[1]
    assert [v.item() for m in one for v in m] == [v.item() for m in two for v in m]


def test_dropout_masks_are_the_same_at_both_points():
    # A linear network on the same mask has a gradient that does not depend on the parameters.
    torch.manual_seed(0)
    layer, drop, x = (
        nn.Linear(50, 1).double(),
        nn.Dropout(0.5),
        torch.randn(20, 50, dtype=torch.float64),
    )
    params = list(layer.parameters())
    start = [p.detach() - 1 for p in params]

    def loss():
        return drop(layer(x)).mean()

    held = partial(preserve, layer)
    same = local_smoothness(gradient_of(loss, params, held=held), params, start)
    redrawn = local_smoothness(gradient_of(loss, params), params, start)
    assert same.smoothness.item() == 0.0
    assert redrawn.smoothness.item() > 0.01


def test_chunks_averaged_give_the_result_of_one_pass():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    params = list(model.parameters())
    start = [p.detach() + 0.1 * torch.randn_like(p) for p in params]
    x = torch.randn(30, 6, dtype=torch.float64)

    def loss(rows):
        return model(rows).square().mean()

    whole = local_smoothness(gradient_of(partial(loss, x), params), params, start)
    chunks = x.split([5, 5, 20])
    mean = gradient_of(
        [partial(loss, c) for c in chunks], params, weights=[len(c) / 30 for c in chunks]
    )
    torch.testing.assert_close(local_smoothness(mean, params, start), whole, rtol=1e-12, atol=0)
    even = gradient_of([partial(loss, c) for c in x.chunk(3)], params)
    torch.testing.assert_close(local_smoothness(even, params, start), whole, rtol=1e-12, atol=0)


def test_parameters_get_their_bits_back_when_the_loss_raises():
    params, start = segment([1.0, -0.0], [2.0, math.pi])
    before = copy.deepcopy(params)
    with pytest.raises(RuntimeError, match="broken"):
        local_smoothness(partial(fail, params), params, start)
    assert torch.equal(params[0], before[0])


def fail(params):
    assert params[0][0] == 1.0
    raise RuntimeError("broken")


def test_steps_too_short_to_measure_give_none():
    def gradient():
        raise AssertionError("nothing should be evaluated")

    for end in ([1.0, 1.0], [1.0, 1.0 + 1e-9], [1.0, math.nan]):
        params, start = segment([1.0, 1.0], end)
        assert local_smoothness(gradient, params, start) is None
    assert measure(lambda p: p.square().sum(), [1.0], [1.0 + 1e-9], min_step=0)[0] == pytest.approx(
        2
    )


def test_a_step_that_the_grid_rounds_away_gives_none():
    ulp = torch.tensor(1.0, dtype=torch.bfloat16)
    end = nn.Parameter(ulp + torch.finfo(torch.bfloat16).eps)
    gradient = gradient_of(lambda: end.square(), [end])
    assert local_smoothness(gradient, [end], [ulp], grid=(0.1,)) is None
    assert local_smoothness(gradient, [end], [ulp], grid=(1.0,)).smoothness.item() == 2.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_parameters_do_not_bias_the_quotient(dtype):
    torch.manual_seed(0)
    start = torch.randn(1000).to(dtype)
    end = nn.Parameter((start.float() + 0.004 * torch.randn(1000)).to(dtype))
    # 2 p is exact in every format, so the curvature must come out exact however coarsely the points
    # were rounded.
    found = local_smoothness(lambda: [2 * end.detach()], [end], [start], grid=interior_grid(3))
    assert found.smoothness.item() == pytest.approx(2, rel=1e-5)


def test_an_outer_autocast_does_not_answer_with_old_weights():
    torch.manual_seed(0)
    layer = nn.Linear(16, 16)
    start = snapshot(layer.parameters())
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.5 * torch.randn_like(p))
    x = torch.randn(32, 16)
    params = list(layer.parameters())

    def loss():
        return layer(x).square().mean()

    exact = local_smoothness(gradient_of(loss, params), params, start)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = local_smoothness(gradient_of(loss, params), params, start)
    assert rounded.smoothness.item() == pytest.approx(exact.smoothness.item(), rel=0.02)


def test_works_inside_no_grad_and_with_unused_and_shared_gradients():
    params, start = segment([1.0], [2.0])
    (a,) = params
    b, unused = nn.Parameter(torch.tensor([3.0], dtype=torch.float64)), nn.Parameter(torch.zeros(4))
    # Autograd hands the same tensor to a and b; both count.
    with torch.no_grad():
        gradient = gradient_of(lambda: (a + b).square().sum() / 2, [a, b, unused])
        found = local_smoothness(
            gradient, [a, b, unused], [start[0], b.detach() - 1, torch.zeros(4)]
        )
    assert [v.item() for v in found] == pytest.approx([2.0, 3 * math.sqrt(2), math.sqrt(2)])


def test_a_gradient_that_autograd_expands_can_be_averaged():
    p = nn.Parameter(torch.zeros(3))
    gradient = gradient_of([lambda: p.sum(), lambda: 3 * p.sum()], [p], weights=[0.75, 0.25])
    assert gradient()[0].tolist() == [1.5, 1.5, 1.5]
    assert p.grad is None


def test_bad_arguments_are_refused():
    params, start = segment([1.0], [2.0])
    for grid in ((), (0.0,), (0.5, 1.5), (math.nan,)):
        with pytest.raises(ValueError, match=r"fractions of the step in \(0, 1\]"):
            local_smoothness(list, params, start, grid=grid)
    with pytest.raises(ValueError, match="one tensor per parameter, got 0 for 1"):
        local_smoothness(list, params, [])
    with pytest.raises(ValueError, match=r"start\[0\] is \(1,\) torch.float32.*snapshot\(\)"):
        local_smoothness(list, params, [start[0].float()])
    with pytest.raises(ValueError, match="points must be at least 1, got 0"):
        interior_grid(0)
    with pytest.raises(ValueError, match=r"parameters \[0\] do not require grad"):
        gradient_of(lambda: start[0].sum(), start)
    with pytest.raises(ValueError, match="scalar, got shape"):
        gradient_of(lambda: torch.stack([params[0], params[0]]), params)()
    for losses, weights in (([], None), ([], []), ([lambda: 0], [1, 2])):
        with pytest.raises(ValueError, match="at least one loss, and one weight for each"):
            gradient_of(losses, params, weights=weights)


def test_a_scaled_loss_keeps_gradients_that_float16_would_lose():
    p = nn.Parameter(torch.tensor([1.0]))

    def loss():
        return (p.half() * 2.0**-14).float().sum() * 2.0**-12

    assert gradient_of(loss, [p])()[0].item() == 0.0
    assert gradient_of(loss, [p], scale=2.0**10)()[0].item() == 2.0**-26


def test_grid_is_even():
    assert interior_grid(1) == (0.5,)
    assert interior_grid(3) == (0.25, 0.5, 0.75)
