"""A classifier's AUC is that of pairs it has not seen, units stay whole, and the interval
covers."""

from statistics import NormalDist

import numpy as np
import pytest

from busray.evidence.stats.separability import HALVINGS, RIDGE_PENALTIES, auc, direction, halves, separability

PHI = NormalDist().cdf


def sample(n: int, seed: int, shift: float = 0.0, d: int = 20) -> np.ndarray:
    """Gaussian of identity covariance; each feature is off by shift."""
    return np.random.default_rng(seed).standard_normal((n, d)) + shift


def in_units(k: int, seed: int, d: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """(features, labels) of k units of 1 to 6 near-duplicates."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(k), rng.integers(1, 7, k))
    return rng.standard_normal((k, d))[labels] + 0.1 * rng.standard_normal((len(labels), d)), labels


def pairs_in_order(positive: np.ndarray, negative: np.ndarray) -> float:
    return float(np.mean([(a > b) + (a == b) / 2 for a in positive for b in negative]))


def fitted(x: np.ndarray, y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(images held out, direction) of each classifier, where each image is a unit of its own."""
    features, sides = np.concatenate([x, y]), np.arange(len(x) + len(y)) < len(x)
    parts = [held for first in halves(np.arange(len(x)), np.arange(len(y))) for held in (first, ~first)]
    return [(held, direction(features[~held], sides[~held])) for held in parts]


def test_it_is_the_mean_over_halves_of_pairs_in_order() -> None:
    x, y = sample(23, 1, 0.3), sample(31, 2)
    values = [pairs_in_order(x[held[:23]] @ w, y[held[23:]] @ w) for held, w in fitted(x, y)]
    assert len(values) == 2 * HALVINGS
    assert separability(x, y).value == pytest.approx(np.mean(values))


@pytest.mark.parametrize("d", [8, 90])
def test_the_direction_is_the_ridge_with_the_least_cross_validation_error(d: int) -> None:
    """By inverses in the space of images, for fewer and for more features than images. The residual
    is penalty x inverse x y: as y minus what is fitted, rounding would decide about the penalty."""
    x = np.concatenate([sample(20, 1, 0.4, d), sample(25, 2, 0.0, d)])
    sides = np.arange(45) < 20
    y = np.where(sides, 45 / 20, -45 / 25)
    centred = x - x.mean(0)
    largest = np.linalg.svd(centred, compute_uv=False)[0] ** 2
    errors, weights = [], []
    for penalty in RIDGE_PENALTIES * largest:
        inverse = np.linalg.inv(centred @ centred.T + penalty * np.eye(45))
        freedom = penalty * np.trace(inverse) - 1  # the mean is fitted, without a penalty
        errors.append(((penalty * inverse @ y) ** 2).sum() / freedom**2)
        weights.append(centred.T @ inverse @ y)
    np.testing.assert_allclose(direction(x, sides), weights[int(np.argmin(errors))], rtol=1e-6, atol=1e-9)


def test_a_unit_is_in_one_half_and_halves_are_of_like_size() -> None:
    for first in halves(np.repeat(np.arange(23), 3), np.arange(8)):
        assert all(len(set(first[i : i + 3])) == 1 for i in range(0, 69, 3))
        assert (first[:69:3].sum(), first[69:].sum()) == (12, 4)
    with pytest.raises(ValueError, match="at least 6 independent images"):
        next(halves(np.arange(5), np.arange(9)))


def test_images_of_one_distribution_are_not_told_apart_and_copies_in_a_unit_do_not_help() -> None:
    """Copies in both halves would be recognised: 0.5 holds because units are whole."""
    whole, torn = [], []
    for i in range(20):
        (x, x_labels), (y, y_labels) = in_units(20, 2 * i), in_units(20, 2 * i + 1)
        whole.append(separability(x, y, y_labels, x_labels).value)
        torn.append(separability(x, y).value)
    assert np.mean(whole) == pytest.approx(0.5, abs=0.06)
    assert np.mean(torn) > 0.8


def test_images_far_apart_are_told_apart_and_the_interval_stays_open() -> None:
    found = separability(sample(30, 1, 5.0), sample(30, 2))
    assert found.value == 1
    assert found.interval[0] < 0.95 and found.interval[1] == pytest.approx(1)


@pytest.mark.parametrize(("shift", "n", "m"), [(0.0, 40, 30), (0.25, 60, 40), (0.6, 40, 40), (0.0, 12, 9)])
def test_the_interval_covers_the_classifiers_true_auc_about_95_times_in_100(shift: float, n: int, m: int) -> None:
    hits = 0
    for i in range(200):
        x, y = sample(n, 2 * i, shift), sample(m, 2 * i + 1)
        truth = np.mean([PHI(shift * w.sum() / (np.sqrt(2) * np.linalg.norm(w))) for _, w in fitted(x, y)])
        low, high = separability(x, y).interval
        hits += low <= truth <= high
    assert hits / 200 >= 0.93


def test_the_interval_covers_with_units_too_where_counting_images_would_not() -> None:
    hits = naive = 0
    for i in range(200):
        (x, x_labels), (y, y_labels) = in_units(25, 2 * i, 3), in_units(25, 2 * i + 1, 3)
        found = separability(x, y, y_labels, x_labels)
        hits += found.interval[0] <= 0.5 <= found.interval[1]
        half = 1.96 * np.sqrt((1 / len(x) + 1 / len(y)) / 12)
        naive += abs(found.value - 0.5) <= half
    assert hits / 200 >= 0.93
    assert naive / 200 < 0.8


def test_the_order_of_images_changes_nothing() -> None:
    (x, x_labels), y = in_units(30, 1), sample(40, 2, 0.2)
    order = np.random.default_rng(0).permutation(len(x))
    plain = separability(x, y, None, x_labels)
    assert separability(x[order], y, None, x_labels[order]).value == pytest.approx(plain.value, abs=1e-12)


def test_auc_is_the_share_of_pairs_in_order(rng: np.random.Generator) -> None:
    for _ in range(20):
        a, b = rng.integers(1, 6, rng.integers(1, 30)), rng.integers(1, 6, rng.integers(1, 30))
        pairs = [1.0 if x > y else 0.5 if x == y else 0.0 for x in a for y in b]
        assert auc(a, b).value == pytest.approx(np.mean(pairs), abs=1e-12)
        low, high = auc(a, b).interval
        assert 0 <= low <= auc(a, b).value <= high <= 1
        mirrored = auc(b, a).interval
        assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-9)


@pytest.mark.parametrize(("n", "shift"), [(12, 0.0), (12, 3.0), (30, 1.2), (60, 2.3)])
def test_the_aucs_interval_covers_the_true_value_of_simulated_readers(n: int, shift: float) -> None:
    """Five-point readers: a normal impression cut into five; the true AUC is summed from the
    cells' probabilities."""
    stats = pytest.importorskip("scipy.stats")
    cuts = np.array([-0.8, -0.1, 0.6, 1.3]) + shift / 2 - 0.25
    cells = [np.diff([0, *stats.norm.cdf(cuts - mean), 1]) for mean in (shift, 0)]
    true = sum(cells[0][i] * cells[1][j] * ((i > j) + (i == j) / 2) for i in range(5) for j in range(5))
    rng = np.random.default_rng(3)
    covered, trials = 0, 600
    for _ in range(trials):
        scores = [np.digitize(rng.normal(mean, 1, n), cuts) + 1 for mean in (shift, 0)]
        low, high = auc(*scores).interval
        covered += low <= true <= high
    assert 0.93 <= covered / trials <= 0.99
