"""The Wasserstein distance and its permutation test against SciPy and by simulation."""

import numpy as np
import pytest
from scipy import stats

from busray.evidence.stats.samples import Sample
from busray.evidence.stats.wasserstein import enough_permutations, wasserstein, wasserstein_p_value


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 7), (30, 11)])
def test_the_distance_is_scipys_also_with_ties(n: int, m: int, rng: np.random.Generator) -> None:
    for x, y in ((rng.normal(size=n), rng.exponential(size=m)), (rng.integers(0, 4, n), rng.integers(1, 5, m))):
        assert wasserstein(x, y) == pytest.approx(stats.wasserstein_distance(x, y), abs=1e-12)


def test_the_distance_to_a_shifted_copy_is_the_shift(rng: np.random.Generator) -> None:
    x = rng.normal(size=40)
    assert wasserstein(x, x + 0.3) == pytest.approx(0.3)
    assert wasserstein(x, rng.permutation(x)) == 0


def test_the_permutation_test_is_scipys(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=25), rng.normal(0.5, size=18)
    wanted = stats.permutation_test(
        (x, y), stats.wasserstein_distance, alternative="greater", n_resamples=999, rng=np.random.default_rng(1)
    )
    found = wasserstein_p_value(Sample.drawn(x, "a"), Sample.drawn(y, "b"))
    assert found == pytest.approx(float(wanted.pvalue), abs=0.04)


def test_chance_alone_is_seldom_improbable_also_where_the_real_images_come_in_copies() -> None:
    rng, low = np.random.default_rng(3), 0
    for seed in range(60):
        real = np.repeat(rng.normal(size=12), 3)
        reference = Sample.of(real, np.repeat(np.arange(12), 3).astype(str), "b")
        low += wasserstein_p_value(Sample.drawn(rng.normal(size=20), "a"), reference, seed) <= 0.05
    assert low <= 7  # binomial(60, 0.05) exceeds it in 1 % of all cases


@pytest.mark.parametrize("tests", [1, 10, 27, 60, 500])
def test_the_least_p_value_is_well_below_bonferronis_level_at_any_number_of_tests(tests: int) -> None:
    assert enough_permutations(tests) >= 999
    assert 1 / (enough_permutations(tests) + 1) <= 0.05 / tests / 5 * (1 + 1e-12)
