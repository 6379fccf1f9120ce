"""KID is the unbiased estimate of every pair, its intervals cover, and pairing narrows them."""

from itertools import combinations

import numpy as np
import pytest

from busray.quality.kernel import kid, kid_difference, kid_p_value, polynomial_kernel


def sample(n: int, seed: int, shift: float = 0.0, d: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)) + shift


def brute_force(x: np.ndarray, y: np.ndarray) -> float:
    """MMD^2 by its definition, pair by pair."""

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    def within(z: np.ndarray) -> float:
        pairs = [k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]
        return sum(pairs) / len(pairs)

    return within(x) + within(y) - 2 * float(np.mean([[k(a, b) for b in y] for a in x]))


def test_it_is_the_definition_pair_by_pair() -> None:
    x, y = sample(9, 1), sample(12, 2, 0.3)
    assert kid(x, y).value == pytest.approx(brute_force(x, y), rel=1e-10)


def test_it_is_torch_fidelitys_estimate() -> None:
    from torch_fidelity.metric_kid import mmd2

    x, y = sample(40, 1), sample(40, 2, 0.3)
    kernels = polynomial_kernel(x, x), polynomial_kernel(x, y), polynomial_kernel(y, y)
    assert kid(x, y).value == pytest.approx(float(mmd2(*kernels)), rel=1e-10)


def test_the_interval_is_the_jackknife_by_definition() -> None:
    x, y = sample(8, 1), sample(6, 2, 0.3)
    without_x = np.array([brute_force(np.delete(x, i, 0), y) for i in range(8)])
    without_y = np.array([brute_force(x, np.delete(y, i, 0)) for i in range(6)])
    variance = 7 / 8 * ((without_x - without_x.mean()) ** 2).sum() + 5 / 6 * ((without_y - without_y.mean()) ** 2).sum()
    low, high = kid(x, y).interval
    assert (high - low) / 2 == pytest.approx(1.959964 * np.sqrt(variance), rel=1e-6)


def test_the_interval_covers_the_true_distance_about_95_times_in_100() -> None:
    truth = kid(sample(3000, 10_001, 0.4), sample(3000, 10_002)).value
    hits = 0
    for i in range(300):
        low, high = kid(sample(40, 2 * i, 0.4), sample(40, 2 * i + 1)).interval
        hits += low <= truth <= high
    assert 0.90 <= hits / 300 <= 0.985


def test_the_interval_of_a_paired_difference_covers_too() -> None:
    def pair(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        x = sample(n, seed, 0.5)
        return x, x * 0.9 + 0.05 * sample(n, seed + 50_000)

    truth = kid_difference(*pair(3000, 90_001), sample(3000, 90_002)).value
    hits = 0
    for i in range(300):
        low, high = kid_difference(*pair(40, 2 * i), sample(40, 2 * i + 1)).interval
        hits += low <= truth <= high
    assert 0.90 <= hits / 300 <= 0.985


def test_pairing_by_seed_narrows_the_interval() -> None:
    x, y = sample(40, 1, 0.4), sample(40, 2)
    near = x + 0.05 * sample(40, 3)

    def width(interval: tuple[float, float]) -> float:
        return interval[1] - interval[0]

    shuffled = near[np.random.default_rng(0).permutation(40)]
    assert kid_difference(near, x, y).value == pytest.approx(kid_difference(shuffled, x, y).value)
    assert width(kid_difference(near, x, y).interval) < 0.3 * width(kid_difference(shuffled, x, y).interval)


def test_arms_of_unequal_n_are_refused() -> None:
    with pytest.raises(ValueError, match="equal n"):
        kid_difference(sample(5, 1), sample(6, 2), sample(5, 3))


def test_the_p_value_is_that_of_every_relabelling_where_they_can_be_counted() -> None:
    """5 + 4 images: 126 relabellings, of which the random ones are a sample."""
    x, y = sample(5, 1, d=3), sample(4, 2, 0.9, d=3)
    pooled = np.concatenate([x, y])
    chosen = [list(c) for c in combinations(range(9), 5)]
    every = [brute_force(pooled[c], np.delete(pooled, c, 0)) for c in chosen]
    exact = float(np.mean(np.array(every) >= brute_force(x, y) - 1e-12))
    assert kid_p_value(x, y) == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 1000))


def test_p_values_of_equal_distributions_are_uniform_and_small_for_others() -> None:
    values = np.array([kid_p_value(sample(12, 2 * i), sample(9, 2 * i + 1), seed=i) for i in range(200)])
    assert (values <= 0.05).mean() <= 0.11 and 0.4 < values.mean() < 0.6
    assert kid_p_value(sample(40, 1), sample(40, 2, 0.8)) == 0.001
