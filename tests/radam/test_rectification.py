"""The length of the average, its rectification and the variance behind it."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trainkit_plugins.radam import (
    adaptive_variance,
    adaptive_variance_first_order,
    first_rectified_step,
    rectification,
    rho,
    rho_inf,
    steps_until,
)

BETAS = (0.9, 0.95, 0.98, 0.99, 0.999, 0.9995)


@given(st.floats(0.0, 0.9999))
def test_rho_starts_at_one_and_grows_below_its_limit(beta2):
    lengths = [rho(t, beta2) for t in range(1, 40)]
    rounding = 1e-12 + 1e-15 * rho_inf(beta2) ** 2
    assert lengths[0] == pytest.approx(1.0, abs=rounding)
    assert lengths[1] == pytest.approx((1 + 3 * beta2) / (1 + beta2), abs=rounding)
    assert all(a <= b + rounding for a, b in itertools.pairwise(lengths))
    assert lengths[-1] <= rho_inf(beta2) + rounding


@pytest.mark.parametrize("beta2", BETAS)
def test_rho_is_strictly_increasing(beta2):
    lengths = [rho(t, beta2) for t in range(1, 100)]
    assert all(a < b for a, b in itertools.pairwise(lengths))
    assert lengths[-1] < rho_inf(beta2)


@pytest.mark.parametrize("beta2", [0.9, 0.999])
@pytest.mark.parametrize("t", [5, 37, 500])
def test_rho_shares_its_centre_of_mass_with_the_exponential_average(t, beta2):
    i = torch.arange(1, t + 1, dtype=torch.float64)
    weights = beta2 ** (t - i)
    centre = (weights * i).sum() / weights.sum()
    assert float(centre) == pytest.approx(t + 1 - (rho(t, beta2) + 1) / 2, abs=1e-10)


@pytest.mark.parametrize("beta2", BETAS)
def test_first_rectified_step_of_the_code_and_of_the_paper(beta2):
    assert first_rectified_step(beta2) == 6
    assert first_rectified_step(beta2, threshold=4.0) == 5
    assert rectification(5, beta2) is None
    assert rectification(6, beta2) is not None


def test_short_memories_are_never_rectified():
    assert first_rectified_step(0.6) is None
    assert first_rectified_step(0.6, threshold=4.0) is None
    assert first_rectified_step(0.66) is None
    assert steps_until(0.5, 0.6) is None
    assert all(rectification(t, 0.6) is None for t in range(1, 1000))


@pytest.mark.parametrize(
    ("t", "r"), [(6, 0.025821), (100, 0.215335), (1000, 0.645326), (10_000, 0.999773)]
)
def test_rectification_values(t, r):
    assert rectification(t, 0.999) == pytest.approx(r, abs=1e-6)


def test_rectification_grows_to_one():
    values = [rectification(t, 0.999) for t in range(6, 40_000, 7)]
    assert all(a < b for a, b in itertools.pairwise(values) if b < 1 - 1e-12)
    assert values[-1] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("beta2", "half", "nearly"), [(0.9, 11, 31), (0.99, 61, 277), (0.999, 556, 2737)]
)
def test_implicit_warm_up_lasts_a_few_memories(beta2, half, nearly):
    assert rectification(half - 1, beta2) < 0.5 <= rectification(half, beta2)
    assert rectification(nearly - 1, beta2) < 0.9 <= rectification(nearly, beta2)


@given(st.floats(0.01, 0.99), st.floats(0.7, 0.9999))
def test_steps_until_is_the_first_that_reaches_the_level(level, beta2):
    t = steps_until(level, beta2)
    assert rectification(t, beta2) >= level
    assert (rectification(t - 1, beta2) or 0.0) < level


def test_rectification_equalises_the_first_order_variance():
    limit = adaptive_variance_first_order(rho_inf(0.999))
    for t in (6, 50, 1000):
        damped = rectification(t, 0.999) ** 2 * adaptive_variance_first_order(rho(t, 0.999))
        assert damped == pytest.approx(limit, rel=1e-12)


@pytest.mark.parametrize("length", [5.0, 6.5, 10.0, 50.0])
def test_exact_variance_is_that_of_the_scaled_inverse_chi_square(length):
    """psi^2 = rho / chi^2_rho with tau = 1: integrate the density of chi^2 numerically."""
    x = torch.linspace(1e-6, 40 * length, 2_000_001, dtype=torch.float64)
    density = torch.exp(
        (length / 2 - 1) * x.log() - x / 2 - length / 2 * math.log(2) - math.lgamma(length / 2)
    )
    psi = (length / x).sqrt()
    mean = torch.trapezoid(psi * density, x)
    variance = torch.trapezoid((psi - mean) ** 2 * density, x)
    assert adaptive_variance(length) == pytest.approx(float(variance), rel=1e-6)


@pytest.mark.parametrize(
    ("length", "ratio"), [(5, 3.31), (6, 2.15), (10, 1.38), (20, 1.14), (50, 1.05)]
)
def test_first_order_variance_overstates_short_averages(length, ratio):
    assert adaptive_variance_first_order(length) / adaptive_variance(length) == pytest.approx(
        ratio, abs=0.01
    )


def test_exact_variance_falls_250_times_from_rho_5_to_500():
    assert adaptive_variance(5) / adaptive_variance(500) == pytest.approx(250, rel=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rho(0, 0.999), "steps from 1, got 0"),
        (lambda: rho(1, 1.0), r"beta2 must be in \[0, 1\), got 1.0"),
        (lambda: rectification(-3, 0.9), "got -3"),
        (lambda: first_rectified_step(-0.1), "got -0.1"),
        (lambda: steps_until(1.0, 0.999), "got 1.0"),
        (lambda: adaptive_variance(2.0), "rho > 2, got 2.0"),
        (lambda: adaptive_variance_first_order(4.0), "rho > 4, got 4.0"),
    ],
)
def test_arguments_outside_the_domain_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
