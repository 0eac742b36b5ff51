"""The penalty and the push: against differences, against the authors' code in slow motion, and
in training.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from trainkit_plugins.norm_bias import norm_bias, push_to_norm, squared_norm

from tests.reference.norm_bias import flat, one_norm, r_mu, two_norm

SHAPES = [(3, 4), (5,), (), (2, 3, 2, 2)]


def parameters(
    seed: int = 0, dtype: torch.dtype = torch.float64, scale: float = 1.0
) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    params = [nn.Parameter((scale * torch.randn(s, generator=generator)).to(dtype)) for s in SHAPES]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(dtype)
    return params


def grads(params: list[nn.Parameter]) -> list[Tensor]:
    return [p.grad for p in params if p.grad is not None]


def pushes(params: list[nn.Parameter], *args: float, **kwargs: object) -> list[Tensor]:
    """Return what a push adds to gradients that are zero."""
    for p in params:
        p.grad = torch.zeros_like(p)
    push_to_norm(params, *args, **kwargs)  # type: ignore[arg-type]
    return grads(params)


@pytest.mark.parametrize("form", ["absolute", "squared"])
@pytest.mark.parametrize("mu_squared", [5.0, 500.0])
def test_the_push_is_the_derivative_of_the_penalty(form, mu_squared):
    params, step = parameters(), 1e-6
    differences = []
    for k, p in enumerate(params):
        for i in range(p.numel()):
            ends = []
            for sign in (1, -1):
                moved = [q.detach().clone() for q in params]
                moved[k].view(-1)[i] += sign * step
                ends.append(norm_bias(moved, mu_squared, coefficient=0.3, form=form).item())
            differences.append((ends[0] - ends[1]) / (2 * step))
    assert flat(pushes(params, mu_squared, coefficient=0.3, form=form)) == pytest.approx(
        differences, rel=1e-6
    )


@pytest.mark.parametrize("form", ["absolute", "squared"])
def test_the_penalty_has_the_push_as_its_gradient_in_autograd(form):
    params = parameters()
    gradient = torch.autograd.grad(norm_bias(params, 7.0, coefficient=0.3, form=form), params)
    assert flat(pushes(params, 7.0, coefficient=0.3, form=form)) == pytest.approx(
        flat(gradient), rel=1e-12
    )


@pytest.mark.parametrize("mu_squared", [5.0, 500.0])
def test_the_equation_by_the_letter_is_twice_the_penalty(mu_squared):
    params = parameters()
    by_the_letter = 0.3 * r_mu(flat(params), mu_squared)
    assert by_the_letter == pytest.approx(
        2 * norm_bias(params, mu_squared, coefficient=0.3).item(), rel=1e-12
    )


@given(
    mu_squared=st.floats(0.01, 1e4),
    coefficient=st.floats(1e-6, 10),
    scale=st.floats(1e-3, 30),
    seed=st.integers(0, 99),
)
def test_the_push_is_that_of_the_authors_code(mu_squared, coefficient, scale, seed):
    params = parameters(seed, scale=scale)
    phi, grad = flat(params), flat(grads(params))
    push_to_norm(params, mu_squared, coefficient=coefficient)
    wanted = one_norm(phi, grad, mu_squared, coefficient)
    assert flat(grads(params)) == pytest.approx(wanted, rel=1e-12, abs=1e-12)


@given(mu_squared=st.floats(0.01, 1e4), coefficient=st.floats(1e-6, 10), seed=st.integers(0, 99))
def test_the_squared_push_is_that_of_their_other_function_at_another_coefficient(
    mu_squared, coefficient, seed
):
    params = parameters(seed)
    phi, grad = flat(params), flat(grads(params))
    push_to_norm(params, mu_squared, coefficient=coefficient, form="squared")
    wanted = two_norm(phi, grad, mu_squared, coefficient / (2 * mu_squared))
    found = flat(grads(params))
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-9 * coefficient)


def test_the_authors_other_function_multiplies_by_minus_25_where_this_one_has_the_coefficient():
    assert two_norm([0.0, 0.0], [0.0, 0.0], 2500, 0.005) == [0.0, 0.0]
    unit = two_norm([1e-9], [0.0], 2500, 0.005)[0] / 1e-9
    assert unit == pytest.approx(-25)
    p = nn.Parameter(torch.full((1,), 1e-9, dtype=torch.float64))
    p.grad = torch.zeros_like(p)
    assert push_to_norm(
        [p], 2500, coefficient=0.005, form="squared"
    ).factor.item() == pytest.approx(-0.005)
    assert push_to_norm([p], 2500, coefficient=25.0, form="squared").factor.item() == pytest.approx(
        -25
    )


def radial(n: float, mu_squared: float, lr: float, steps: int, literal: bool) -> float:
    """Follow N under gradient descent on the penalty alone, until it leaves the range of sense."""
    p = nn.Parameter(torch.full((1,), math.sqrt(n), dtype=torch.float64))
    for _ in range(steps):
        p.grad = torch.zeros_like(p)
        coefficient = 2 * mu_squared * 5e-3 if literal else 5e-3
        push_to_norm([p], mu_squared, coefficient=coefficient, form="squared")
        with torch.no_grad():
            p -= lr * p.grad
        if p.abs() > 1e6:
            break
    return p.item() ** 2


@pytest.mark.parametrize("start", [0.1, 0.5, 2.0, 10.0])
def test_descent_on_the_squared_form_contracts_where_the_authors_would_explode(start):
    assert radial(start * 2500, 2500, lr=1.0, steps=3000, literal=False) == pytest.approx(
        2500, rel=1e-5
    )
    assert radial(start * 2500, 2500, lr=1.0, steps=3000, literal=True) > 1e12 or start == 2.0


@pytest.mark.parametrize("form", ["absolute", "squared"])
def test_below_the_target_the_norm_grows_above_it_shrinks_and_at_it_nothing_moves(form):
    for factor, direction in ((0.5, -1), (1.0, 0), (2.0, 1)):
        params = [nn.Parameter(torch.tensor([3.0, 4.0])), nn.Parameter(torch.tensor([[1.0]]))]
        for p in params:
            p.grad = torch.zeros_like(p)
        push = push_to_norm(params, 26.0 / factor, coefficient=0.1, form=form)
        assert push.squared_norm.item() == 26
        signs = {
            math.copysign(1, g * p) if g else 0
            for g, p in zip(flat(grads(params)), flat(params), strict=True)
        }
        assert signs == {direction}
        assert (push.factor.item() > 0) - (push.factor.item() < 0) == direction


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("foreach", [False, True])
def test_a_target_of_zero_is_weight_decay_bit_for_bit(dtype, momentum, foreach):
    ours, theirs = parameters(dtype=dtype), parameters(dtype=dtype)
    options = {"lr": 0.05, "momentum": momentum, "foreach": foreach}
    with_push = torch.optim.SGD(ours, **options)
    with_decay = torch.optim.SGD(theirs, weight_decay=7e-3, **options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator).to(dtype)
            b.grad = a.grad.clone()
        push_to_norm(ours, 0.0, coefficient=7e-3)
        with_push.step()
        with_decay.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_coefficient_of_zero_keeps_every_bit_also_of_negative_zeros():
    params = parameters(dtype=torch.float32)
    params[0].grad = torch.full_like(params[0], -0.0)
    before = [g.clone() for g in grads(params)]
    push = push_to_norm(params, 2500, coefficient=0.0)
    assert torch.signbit(grads(params)[0]).all()
    assert all(torch.equal(a, b) for a, b in zip(grads(params), before, strict=True))
    assert push.squared_norm.item() == pytest.approx(sum(p * p for p in flat(params)), rel=1e-6)


def test_what_has_no_gradient_counts_and_is_not_pushed():
    params = parameters()
    params[1].grad = None
    n = sum(p * p for p in flat(params))
    push = push_to_norm(params, 1.0, coefficient=0.1)
    assert push.squared_norm.item() == pytest.approx(n, rel=1e-12)
    assert params[1].grad is None


def test_others_may_count_than_are_pushed():
    params = parameters()
    before = [g.clone() for g in grads(params)]
    push = push_to_norm(params[:1], 1.0, coefficient=0.1, counted=params)
    assert push.squared_norm.item() == pytest.approx(sum(p * p for p in flat(params)), rel=1e-12)
    torch.testing.assert_close(
        grads(params)[0], before[0] + 0.1 * params[0].detach(), rtol=1e-14, atol=1e-15
    )
    assert all(torch.equal(a, b) for a, b in zip(grads(params)[1:], before[1:], strict=True))


def test_a_parameter_listed_twice_counts_and_is_pushed_once():
    p, *_ = parameters()
    before = grads([p])[0].clone()
    push = push_to_norm([p, p], 0.0, coefficient=0.1)
    assert push.squared_norm.item() == pytest.approx(p.detach().square().sum().item(), rel=1e-12)
    torch.testing.assert_close(grads([p])[0], before + 0.1 * p.detach())


def test_tensors_of_several_dtypes_are_one_sum():
    mixed = [
        nn.Parameter(torch.full((300,), 200.0, dtype=d))
        for d in (torch.float16, torch.bfloat16, torch.float32)
    ]
    assert squared_norm(mixed).item() == pytest.approx(3 * 300 * 200.0**2, rel=1e-6)
    assert squared_norm(mixed).dtype == torch.float32
    for p in mixed:
        p.grad = torch.zeros_like(p)
    push_to_norm(mixed, 1.0, coefficient=0.5)
    assert [g.dtype for g in grads(mixed)] == [p.dtype for p in mixed]
    assert flat(grads(mixed)) == [100.0] * 900


def test_no_tensors_have_no_norm():
    assert squared_norm([]).item() == 0
    assert push_to_norm([], 1.0, coefficient=0.1).squared_norm.item() == 0


def test_the_norm_of_a_long_tensor_is_right_to_a_thousandth_of_the_target():
    # One call of torch's norm in float32 is 0.1 % off on this tensor, more than the norm may be off
    # its target.
    x = torch.randn(12_000_000, generator=torch.Generator().manual_seed(0))
    wanted = torch.dot(x.double(), x.double()).item()
    assert squared_norm([x]).item() == pytest.approx(wanted, rel=5e-5)
    assert squared_norm([x.view(3000, 4000).t()]).item() == pytest.approx(wanted, rel=5e-5)


def test_a_sparse_gradient_is_refused():
    p = nn.Parameter(torch.ones(4, 2))
    p.grad = torch.zeros(4, 2).to_sparse()
    with pytest.raises(ValueError, match=r"sparse=False"):
        push_to_norm([p], 1.0, coefficient=0.1)


@pytest.mark.parametrize(
    ("mu_squared", "coefficient", "form", "message"),
    [
        (-1.0, 0.1, "absolute", "mu_squared must be at least 0"),
        (math.nan, 0.1, "absolute", "mu_squared must be"),
        (1.0, math.inf, "absolute", "coefficient must be"),
        (1.0, -0.1, "squared", "coefficient must be"),
        (0.0, 0.1, "squared", "no meaning at 0; use form absolute"),
    ],
)
def test_values_without_a_meaning_are_refused(mu_squared, coefficient, form, message):
    for refused in (norm_bias, push_to_norm):
        with pytest.raises(ValueError, match=message):
            refused([torch.ones(2)], mu_squared, coefficient=coefficient, form=form)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_training_takes_the_norm_to_its_target_and_keeps_it_there(batch_norm):
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(32) if batch_norm else nn.Identity()
    model = nn.Sequential(nn.Linear(8, 32), norm, nn.ReLU(), nn.Linear(32, 4))
    params = list(model.parameters())
    start = squared_norm(params).item()
    x = torch.randn(64, 8)
    y = x[:, :4].argmax(1)
    lr, momentum, coefficient = 0.02, 0.9, 5e-3
    optimizer = torch.optim.SGD(params, lr=lr, momentum=momentum)
    # Above what the loss alone asks for, or pull and loss would settle somewhere between.
    for mu_squared, steps in ((5 * start, 1000), (4.5 * start, 200)):
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            push = push_to_norm(params, mu_squared, coefficient=coefficient)
            optimizer.step()
        # The sign flips at every crossing: what stays is chatter of about the size of one step of
        # N.
        residue = abs(push.squared_norm.item() / mu_squared - 1)
        assert residue < 1e-3
        assert residue <= 2 * lr * coefficient / (1 - momentum)
