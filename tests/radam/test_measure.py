"""The quantities that a monitor logs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trainkit_plugins.radam import (
    Adam2k,
    AdamEps,
    RAdam,
    adaptive_rate_quantiles,
    gradient_histogram,
    sample_coordinates,
    steps_taken,
)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 60))
def test_samples_are_equally_spaced_through_all_tensors(lengths, size):
    everything = torch.arange(sum(lengths))
    pieces = sample_coordinates(list(everything.split(lengths)), size)
    sample = torch.cat(pieces)
    assert len(sample) <= size
    assert torch.equal(sample, everything[:: max(1, math.ceil(len(everything) / size))])
    assert len(pieces) == len(lengths)
    if len(everything) > size:
        assert len(sample) >= size / 2


def test_complex_tensors_count_as_pairs():
    (piece,) = sample_coordinates([torch.tensor([1 + 2j, 3 - 4j])], 10)
    assert piece.tolist() == [1, 2, 3, -4]


@pytest.mark.parametrize("build", [RAdam, lambda p: Adam2k(p, freeze_steps=100), torch.optim.AdamW])
def test_quantiles_of_the_adaptive_rate(build):
    """With constant gradients sqrt(v_hat) = |g|, so psi is 1/|g| for every coordinate at every
    step.
    """
    sizes = torch.linspace(1.0, 9.0, 9, dtype=torch.float64)
    first, second = (torch.nn.Parameter(torch.zeros(n, dtype=torch.float64)) for n in (4, 5))
    optimizer = build([first, second])
    for step in range(7):
        # The second one joins late: its own t enters its psi.
        first.grad, second.grad = sizes[:4].clone(), sizes[4:].clone() if step > 2 else None
        optimizer.step()
    psi = adaptive_rate_quantiles(optimizer, [0.0, 0.5, 1.0])
    torch.testing.assert_close(
        psi, torch.tensor([1 / 9, 1 / 5, 1.0], dtype=torch.float64), rtol=1e-5, atol=0
    )


def test_a_large_eps_bounds_the_adaptive_rate():
    theta = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = AdamEps([theta], eps=0.5)
    theta.grad = torch.tensor([0.1, 10.0], dtype=torch.float64)
    optimizer.step()
    c = (1 - 0.999) ** 0.5
    expected = torch.tensor([c / (10 * c + 0.5), c / (0.1 * c + 0.5)], dtype=torch.float64)
    torch.testing.assert_close(adaptive_rate_quantiles(optimizer, [0, 1]), expected)


def test_coordinates_without_a_gradient_have_no_rate():
    theta = torch.nn.Parameter(torch.zeros(4))
    optimizer = RAdam([theta])
    theta.grad = torch.tensor([0.0, 2.0, 0.0, 0.0])
    optimizer.step()
    assert adaptive_rate_quantiles(optimizer, [0, 1]).tolist() == pytest.approx(
        [0.5, 0.5], rel=1e-6
    )
    theta.grad = None
    optimizer.state[theta]["exp_avg_sq"].zero_()
    assert adaptive_rate_quantiles(optimizer, [0.5]).isnan().all()


def test_steps_taken_is_the_longest_count():
    early, late = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    for optimizer in (RAdam([early, late]), torch.optim.AdamW([early, late], fused=True)):
        assert steps_taken(optimizer) == 0
        for step in range(4):
            early.grad, late.grad = torch.ones(1), torch.ones(1) if step == 3 else None
            optimizer.step()
        assert steps_taken(optimizer) == 4
    sgd = torch.optim.SGD([early], momentum=0.9)
    sgd.step()
    assert steps_taken(sgd) == 0


def test_quantiles_need_a_step():
    with pytest.raises(ValueError, match="after its first step"):
        adaptive_rate_quantiles(RAdam([torch.nn.Parameter(torch.zeros(1))]), [0.5])
    with pytest.raises(ValueError, match="SGD has no second moment"):
        adaptive_rate_quantiles(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]), [0.5])


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50))
def test_histogram_counts_by_binary_exponent(values):
    shares = gradient_histogram([torch.tensor(values, dtype=torch.float64)], low=-10, high=5)
    expected = [0] * 16
    for value in values:
        exponent = -100 if value == 0 else math.floor(math.log2(abs(value)))
        expected[min(max(exponent + 11, 0), 15)] += 1
    assert (shares * len(values)).tolist() == pytest.approx(expected, abs=1e-4)


def test_histogram_edges():
    values = [0.0, 2.0**-3, -(2.0**-2), 0.9, 1.0, 3.0, math.inf, math.nan]
    assert gradient_histogram([torch.tensor(values)], low=-2, high=1).tolist() == [
        1 / 4,
        1 / 8,
        1 / 8,
        1 / 2,
    ]
    assert gradient_histogram([torch.ones(10), torch.ones(5, 2)], low=-1, high=1).tolist() == [
        0,
        0,
        1,
    ]


def test_measuring_changes_nothing():
    theta = torch.nn.Parameter(torch.ones(5))
    optimizer = RAdam([theta])
    theta.grad = torch.arange(5.0)
    optimizer.step()
    before = [
        theta.detach().clone(),
        theta.grad.clone(),
        optimizer.state[theta]["exp_avg_sq"].clone(),
    ]
    random = torch.get_rng_state()
    adaptive_rate_quantiles(optimizer, [0.1, 0.9])
    gradient_histogram([theta.grad])
    after = [theta.detach(), theta.grad, optimizer.state[theta]["exp_avg_sq"]]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_coordinates([torch.ones(1)], 0), "size must be at least 1, got 0"),
        (lambda: gradient_histogram([torch.ones(1)], low=3, high=3), "low=3 and high=3"),
        (lambda: gradient_histogram([]), "call this after backward"),
    ],
)
def test_impossible_measurements_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
