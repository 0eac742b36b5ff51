import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trainkit_plugins.grad_clip import Estimate, Fit, fit_l0_l1, suggest_threshold
from trainkit_plugins.grad_clip.statistics import block_resamples, percentile_interval

from tests.reference import grad_clip as twin

positive = st.floats(1e-3, 1e3)
samples = st.lists(st.tuples(positive, positive), min_size=3, max_size=12).filter(
    lambda pairs: max(p[0] for p in pairs) > 1.01 * min(p[0] for p in pairs)
)


def noisy(n, l0=0.5, l1=2.0, noise=0.3, seed=0):
    random = torch.Generator().manual_seed(seed)
    g = torch.randn(n, generator=random, dtype=torch.float64).exp()
    return g, (l0 + l1 * g) * (noise * torch.randn(n, generator=random, dtype=torch.float64)).exp()


def fit(pairs, **options):
    return fit_l0_l1([g for g, _ in pairs], [s for _, s in pairs], **options)


@given(st.one_of(st.just(0.0), positive), st.one_of(st.just(0.0), positive))
def test_an_exact_line_is_found(l0, l1):
    if l0 == l1 == 0:
        return
    g = torch.logspace(-3, 3, 30, dtype=torch.float64)
    found = fit_l0_l1(g, l0 + l1 * g, resamples=1)
    assert found.l0.value == pytest.approx(l0, rel=1e-5)
    assert found.l1.value == pytest.approx(l1, rel=1e-5)


@given(samples)
def test_no_line_on_a_fine_grid_fits_better(pairs):
    norms, values = zip(*pairs, strict=True)
    found = fit(pairs, resamples=1)
    ours = twin.absolute_log_error(found.l0.value, found.l1.value, norms, values)
    scale = sorted(values)[len(values) // 2]
    for a in (0, *(10.0**k for k in range(-3, 4))):
        for b in (0, *(10.0**k for k in range(-3, 4))):
            if a or b:
                l0, l1 = a * scale, b * scale / sorted(norms)[len(norms) // 2]
                assert ours <= twin.absolute_log_error(l0, l1, norms, values) + 1e-6


@given(samples)
def test_slope_and_correlations_follow_their_definitions(pairs):
    found = fit(pairs, resamples=1)
    x, y = [math.log(g) for g, _ in pairs], [math.log(s) for _, s in pairs]
    assert found.slope.value == pytest.approx(twin.slope(x, y), rel=1e-6, abs=1e-9)
    if max(y) - min(y) > 1e-9:
        assert found.pearson.value == pytest.approx(twin.pearson(x, y), rel=1e-6, abs=1e-9)
        ranks = twin.pearson(twin.ranks(x), twin.ranks(y))
        assert found.spearman.value == pytest.approx(ranks, rel=1e-9, abs=1e-9)


@given(samples, positive)
def test_scaling_the_loss_scales_l0_and_leaves_the_rest(pairs, c):
    one, scaled = fit(pairs, resamples=1), fit([(c * g, c * s) for g, s in pairs], resamples=1)
    norms, values = zip(*pairs, strict=True)
    # Several lines may fit equally well; the scaled fit, scaled back, must be one of the best.
    back = twin.absolute_log_error(scaled.l0.value / c, scaled.l1.value, norms, values)
    best = twin.absolute_log_error(one.l0.value, one.l1.value, norms, values)
    assert back == pytest.approx(best, abs=1e-6)
    assert scaled.slope.value == pytest.approx(one.slope.value, rel=1e-6, abs=1e-9)


def test_a_tenth_of_wild_outliers_changes_little():
    g, s = noisy(200)
    clean = fit_l0_l1(g, s, resamples=1)
    s[::10] *= 1e4
    dirty = fit_l0_l1(g, s, resamples=1)
    assert dirty.l1.value == pytest.approx(clean.l1.value, rel=0.2)
    assert dirty.l0.value == pytest.approx(clean.l0.value, rel=0.4)


def walk(n, persistence, random):
    """Return n standard normal numbers whose neighbours correlate at ``persistence``."""
    noise = torch.randn(n, generator=random, dtype=torch.float64).tolist()
    values = [noise[0]]
    for e in noise[1:]:
        values.append(persistence * values[-1] + math.sqrt(1 - persistence**2) * e)
    return torch.tensor(values, dtype=torch.float64)


def coverage(n, persistence, runs, resamples):
    hits = torch.zeros(2)
    for seed in range(runs):
        random = torch.Generator().manual_seed(seed)
        g = walk(n, persistence, random).exp()
        found = fit_l0_l1(
            g, (0.5 + 2 * g) * (0.3 * walk(n, persistence, random)).exp(), resamples=resamples
        )
        hits[0] += found.l0.low <= 0.5 <= found.l0.high
        hits[1] += found.l1.low <= 2.0 <= found.l1.high
    return (hits / runs).min().item()


def test_intervals_hold_the_truth_about_as_often_as_they_claim():
    # At 95 % coverage, fewer than 70 of 80 has a chance of a few in a thousand.
    assert coverage(60, 0.0, runs=80, resamples=100) >= 70 / 80


@pytest.mark.slow
@pytest.mark.parametrize(("persistence", "least"), [(0.0, 0.89), (0.8, 0.74)])
@pytest.mark.parametrize("n", [30, 60, 200])
def test_coverage_for_independent_and_for_persistent_points(n, persistence, least):
    assert coverage(n, persistence, runs=300, resamples=200) >= least


def test_intervals_narrow_with_the_square_root_of_the_data():
    few, many = (fit_l0_l1(*noisy(n), resamples=200).slope for n in (100, 1600))
    ratio = (few.high - few.low) / (many.high - many.low)
    assert 2.5 < ratio < 6.5


def test_intervals_are_reproducible_and_leave_the_global_random_state_alone():
    g, s = noisy(50)
    state = torch.get_rng_state()
    assert fit_l0_l1(g, s) == fit_l0_l1(g.tolist(), s.tolist())
    assert fit_l0_l1(g, s, seed=1).l0 != fit_l0_l1(g, s, seed=2).l0
    assert torch.equal(torch.get_rng_state(), state)


def test_a_wider_level_gives_a_wider_interval():
    g, s = noisy(50)
    narrow, wide = fit_l0_l1(g, s, level=0.5).slope, fit_l0_l1(g, s, level=0.99).slope
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_constant_smoothness_has_no_slope_and_no_correlation():
    found = fit_l0_l1([1.0, 2.0, 4.0, 8.0], [3.0] * 4)
    assert (found.l0.value, found.l1.value, found.slope.value) == (pytest.approx(3.0), 0.0, 0.0)
    assert math.isnan(found.pearson.value)
    assert math.isnan(found.spearman.high)


def test_points_without_a_logarithm_are_counted_and_left_out():
    g, s = [1.0, 2.0, 3.0, 0.0, 5.0, math.nan, 6.0], [1.0, 2.0, 3.0, 4.0, 0.0, 1.0, math.inf]
    found = fit_l0_l1(g, s)
    assert (found.points, found.dropped) == (3, 4)
    assert found.l1.value == pytest.approx(1.0)


def test_too_little_to_fit_is_refused():
    with pytest.raises(ValueError, match=r"at least 3 points .* got 2 of 3; measure more often"):
        fit_l0_l1([1.0, 2.0, 0.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="got 0 of 0"):
        fit_l0_l1([], [])
    with pytest.raises(ValueError, match="all 3 gradient norms equal 2"):
        fit_l0_l1([2.0] * 3, [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="one smoothness per gradient norm, got 2 for 3"):
        fit_l0_l1([1.0, 2.0, 3.0], [1.0, 2.0])
    for options in ({"level": 1.0}, {"level": 0.0}, {"resamples": 0}):
        with pytest.raises(ValueError, match="level must lie in"):
            fit_l0_l1([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], **options)


def line(l0, l1):
    nothing = Estimate(math.nan, math.nan, math.nan)
    return Fit(
        Estimate(l0, l0, l0),
        Estimate(l1, l1, l1),
        nothing,
        nothing,
        nothing,
        points=3,
        dropped=0,
        level=0.95,
    )


@pytest.mark.parametrize(("l0", "l1"), [(1.0, 1.0), (2.0, 0.01), (0.1, 5.0)])
def test_the_theorys_threshold(l0, l1):
    _, gamma = twin.theorem_3(l0, l1)
    assert suggest_threshold(line(l0, l1), [1.0]).theory.max_norm == pytest.approx(gamma)


def test_thresholds_come_with_the_rate_they_would_have_clipped():
    norms = [*map(float, range(1, 11)), math.inf, math.nan]
    found = suggest_threshold(line(2.0, 0.5), norms, quantile=0.8)
    assert found.theory == (4.0, 0.6)
    assert found.quantile == (8.0, 0.2)


def test_thresholds_at_the_ends():
    assert suggest_threshold(line(2.0, 0.0), [1.0, 30.0]).theory == (20.0, 0.5)
    assert suggest_threshold(line(0.0, 2.0), [1.0, 30.0]).theory == (0.0, 1.0)
    with pytest.raises(ValueError, match="no finite gradient norm"):
        suggest_threshold(line(1.0, 1.0), [math.inf])
    with pytest.raises(ValueError, match=r"quantile must lie in \(0, 1\), got 1"):
        suggest_threshold(line(1.0, 1.0), [1.0], quantile=1.0)


def test_resamples_are_made_of_neighbours():
    index = block_resamples(27, 50, torch.Generator().manual_seed(0))
    assert index.shape == (50, 27)
    blocks = index.view(50, 9, 3)
    assert torch.equal(blocks, (blocks[..., :1] + torch.arange(3)) % 27)
    assert index.flatten().bincount(minlength=27).min() > 0


def test_intervals_skip_undefined_resamples():
    column = torch.tensor([math.nan, *torch.linspace(0, 1, 101).tolist()], dtype=torch.float64)
    samples = torch.stack([column, torch.full_like(column, math.nan)], dim=1)
    low, high = percentile_interval(samples, 0.9)
    assert [low[0].item(), high[0].item()] == pytest.approx([0.05, 0.95])
    assert low[1].isnan()
