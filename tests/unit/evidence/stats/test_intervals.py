"""Intervals against SciPy, published examples, brute force and simulated coverage."""

import numpy as np
import pytest
from scipy import stats

from busray.evidence.stats.intervals import (
    Estimate,
    difference_of_estimates,
    jackknife_mean,
    mean_of_estimates,
    median_interval,
    share_of_units,
    t_cdf,
    t_quantile,
    wilson,
)
from busray.records import Interval


def share(part: int, whole: int) -> Estimate:
    return Estimate(part / whole, wilson(part, whole))


@pytest.mark.parametrize("freedom", [1.0, 2.5, 7.0, 150.0, 1e6])
def test_students_distribution_is_that_of_scipy(freedom: float) -> None:
    for t in (-3.0, -0.4, 0.0, 0.7, 2.5, 6.0):
        assert t_cdf(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), abs=1e-6)
    for p in (0.8, 0.975):
        assert t_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=1e-4)


@pytest.mark.parametrize("freedom", [2.0, 5.0, 150.0])
def test_small_p_values_are_those_of_scipy(freedom: float) -> None:
    for t in stats.t.isf([1e-3, 1e-5, 1e-6], freedom):
        assert 1 - t_cdf(t, freedom) == pytest.approx(stats.t.sf(t, freedom), rel=0.01)


def test_wilson_is_scipys_and_stays_inside_0_and_1() -> None:
    for part, whole in ((0, 5), (5, 5), (1, 7), (32, 35), (400, 1000)):
        theirs = stats.binomtest(part, whole).proportion_ci(0.95, method="wilson")
        assert wilson(part, whole) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_the_difference_of_two_shares_is_newcombes_published_one() -> None:
    """Newcombe 1998, table II, example (a): 56/70 less 48/80, method 10 gives 0.0524 to 0.3339."""
    both = difference_of_estimates(share(56, 70), share(48, 80))
    assert both.value == pytest.approx(0.2)
    assert both.interval == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_the_mean_of_one_is_itself_and_of_equals_is_narrower_by_the_root_of_their_number() -> None:
    one = Estimate(0.5, Interval(0.4, 0.62))
    assert mean_of_estimates([one]).interval == pytest.approx(one.interval)
    four = mean_of_estimates([one] * 4)
    assert four.value == 0.5 and four.interval == pytest.approx((0.45, 0.56))


@pytest.mark.parametrize("truth", [(0.5, 0.8, 0.95), (0.97, 0.97, 0.97)])
def test_the_means_interval_holds_the_truth_as_often_as_it_says(
    truth: tuple[float, ...], rng: np.random.Generator
) -> None:
    held = []
    for _ in range(2000):
        drawn = mean_of_estimates([share(int(rng.binomial(40, p)), 40) for p in truth])
        held.append(drawn.interval[0] <= np.mean(truth) <= drawn.interval[1])
    assert 0.92 < np.mean(held) < 0.98


def test_a_means_interval_without_units_is_students(rng: np.random.Generator) -> None:
    values = rng.exponential(size=23)
    found = jackknife_mean(values, np.arange(23))
    low, high = stats.t.interval(0.95, 22, loc=values.mean(), scale=stats.sem(values))
    assert found.value == values.mean()
    assert found.interval == pytest.approx((low, high), abs=1e-4)


def test_a_means_interval_with_units_is_the_brute_force_jackknife(rng: np.random.Generator) -> None:
    values, units = rng.normal(size=30), rng.integers(0, 9, 30).astype(str)
    names = np.unique(units)
    without = np.array([values[units != name].mean() for name in names])
    error = np.sqrt((len(names) - 1) / len(names) * ((without - without.mean()) ** 2).sum())
    half = stats.t.ppf(0.975, len(names) - 1) * error
    assert jackknife_mean(values, units).interval == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=1e-4
    )


def test_a_means_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng, inside = np.random.default_rng(5), 0
    for _ in range(400):
        sizes = rng.integers(1, 4, 25)
        shared = rng.normal(1, 1, 25)
        units = np.repeat(np.arange(25), sizes)
        low, high = jackknife_mean(np.repeat(shared, sizes) + rng.normal(0, 0.3, sizes.sum()), units).interval
        inside += low <= 1 <= high
    assert 0.92 <= inside / 400 <= 0.975


def test_copies_do_not_narrow_a_shares_interval() -> None:
    once = share_of_units(np.array([True, False, True, True]), np.arange(4))
    copied = share_of_units(np.tile([True, False, True, True], 5), np.tile(np.arange(4), 5))
    assert copied == once and once.value == 0.75


@pytest.mark.parametrize("n", [6, 7, 72, 301])
def test_the_medians_interval_is_the_binomial_one_and_covers(n: int) -> None:
    ordered = np.arange(n, dtype=float)
    interval = median_interval(ordered[::-1])
    assert interval is not None
    rank = int(interval[0]) + 1  # P(the interval misses) = 2 P(binomial < rank)
    assert interval[1] == n - rank
    assert stats.binom.cdf(rank - 1, n, 0.5) <= 0.025 < stats.binom.cdf(rank, n, 0.5)
    rng = np.random.default_rng(n)
    hits = 0
    for _ in range(1000):
        low, high = median_interval(rng.exponential(size=n)) or (1.0, 0.0)
        hits += low <= np.log(2) <= high
    assert hits / 1000 > 0.94


def test_too_few_values_have_no_interval_and_very_many_have_one() -> None:
    assert median_interval(np.arange(5.0)) is None
    low, high = median_interval(np.arange(100_000.0)) or (0, 0)
    assert 49_600 < low < 50_000 < high < 50_400
