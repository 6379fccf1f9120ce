"""KID is the unbiased estimate of every pair, its intervals cover, and pairing narrows them."""

from itertools import combinations

import numpy as np
import pytest

from busray.evidence.stats.kernel import kid, kid_difference, kid_p_value, polynomial_kernel


def sample(n: int, seed: int, shift: float = 0.0, d: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)) + shift


def in_units(k: int, seed: int, shift: float = 0.0, d: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """(features, labels) of k units of 1 to 6 near-duplicates; one image of each is distributed
    as sample's are."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(k), rng.integers(1, 7, k))
    centres = rng.standard_normal((k, d)) * np.sqrt(1 - 0.15**2)
    return centres[labels] + 0.15 * rng.standard_normal((len(labels), d)) + shift, labels


def brute_force(
    x: np.ndarray, y: np.ndarray, y_labels: np.ndarray | None = None, x_labels: np.ndarray | None = None
) -> float:
    """MMD^2 by its definition, pair by pair; pairs of a unit do not count."""

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    def within(z: np.ndarray, labels: np.ndarray | None) -> float:
        of = np.arange(len(z)) if labels is None else labels
        pairs = [k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if of[i] != of[j]]
        return sum(pairs) / len(pairs)

    return within(x, x_labels) + within(y, y_labels) - 2 * float(np.mean([[k(a, b) for b in y] for a in x]))


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


# ---- units ----


LABELS = np.array(["p", "q", "q", "r", "p", "s", "q", "t"])


def without(z: np.ndarray, labels: np.ndarray, one: str) -> tuple[np.ndarray, np.ndarray]:
    return z[labels != one], labels[labels != one]


def test_the_interval_is_that_of_a_loop_that_leaves_out_each_unit_on_either_side() -> None:
    x, y, x_labels = sample(7, 1), sample(8, 2, 0.3), np.array([0, 1, 1, 2, 3, 3, 4])
    found = kid(x, y, LABELS, x_labels)
    assert found.value == pytest.approx(brute_force(x, y, LABELS, x_labels), rel=1e-10)
    half = 0.0
    for labels, drop in (
        (LABELS, lambda c: brute_force(x, *without(y, LABELS, c), x_labels=x_labels)),
        (x_labels, lambda c: brute_force(without(x, x_labels, c)[0], y, LABELS, without(x, x_labels, c)[1])),
    ):
        values = np.array([drop(c) for c in np.unique(labels)])
        half += (len(values) - 1) / len(values) * ((values - values.mean()) ** 2).sum()
    assert (found.interval[1] - found.interval[0]) / 2 == pytest.approx(1.959964 * np.sqrt(half), rel=1e-6)


def test_a_difference_is_that_of_a_loop_that_leaves_out_pairs_and_units() -> None:
    a, b, y = sample(6, 1), sample(6, 3, 0.2), sample(8, 2, 0.3)
    found = kid_difference(a, b, y, LABELS)

    def difference(a: np.ndarray, b: np.ndarray, y: np.ndarray, labels: np.ndarray) -> float:
        return brute_force(a, y, labels) - brute_force(b, y, labels)

    assert found.value == pytest.approx(difference(a, b, y, LABELS), rel=1e-10)
    pairs = np.array([difference(np.delete(a, i, 0), np.delete(b, i, 0), y, LABELS) for i in range(6)])
    units = np.array([difference(a, b, *without(y, LABELS, c)) for c in np.unique(LABELS)])
    variance = sum((len(v) - 1) / len(v) * ((v - v.mean()) ** 2).sum() for v in (pairs, units))
    assert (found.interval[1] - found.interval[0]) / 2 == pytest.approx(1.959964 * np.sqrt(variance), rel=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_with_units_the_interval_covers_and_one_that_ignores_them_does_not(shift: float) -> None:
    truth = kid(sample(3000, 10_001, shift), sample(3000, 10_002)).value if shift else 0.0
    ours = narrow = naive = 0
    for i in range(200):
        x, (y, labels) = sample(100, 2 * i, shift), in_units(30, 2 * i + 1)
        found, ignoring = kid(x, y, labels), kid(x, y)
        half = (ignoring.interval[1] - ignoring.interval[0]) / 2
        ours += found.interval[0] <= truth <= found.interval[1]
        narrow += abs(found.value - truth) <= half  # the right value with an interval that takes images for draws
        naive += ignoring.interval[0] <= truth <= ignoring.interval[1]
    assert 0.91 <= ours / 200 <= 1
    assert naive / 200 < 0.75 and narrow < ours - 10


def test_a_paired_difference_against_units_covers() -> None:
    def pair(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        x = sample(n, seed, 0.5)
        return x, x * 0.9 + 0.3 + 0.05 * sample(n, seed + 50_000)

    truth = kid_difference(*pair(3000, 90_001), sample(3000, 90_002)).value
    ours = naive = 0
    for i in range(200):
        arms, (y, labels) = pair(150, 2 * i), in_units(20, 2 * i + 1)
        for_ours, for_naive = kid_difference(*arms, y, labels).interval, kid_difference(*arms, y).interval
        ours += for_ours[0] <= truth <= for_ours[1]
        naive += for_naive[0] <= truth <= for_naive[1]
    assert 0.90 <= ours / 200 <= 0.99 and naive / 200 < 0.89


def test_copies_within_a_unit_do_not_move_the_distance_on_average() -> None:
    trials = [(sample(60, 2 * i), *in_units(20, 2 * i + 1)) for i in range(100)]
    ours = np.array([kid(x, y, labels).value for x, y, labels in trials])
    every = np.array([kid(x, y).value for x, y, _ in trials])
    assert abs(ours.mean()) < 3 * ours.std() / 10 < every.mean()


def test_p_values_with_units_are_uniform_and_those_that_ignore_them_are_not() -> None:
    trials = [(sample(30, 2 * i), *in_units(12, 2 * i + 1)) for i in range(200)]
    ours = np.array([kid_p_value(x, y, labels, seed=i) for i, (x, y, labels) in enumerate(trials)])
    naive = np.array([kid_p_value(x, y, seed=i) for i, (x, y, _) in enumerate(trials)])
    assert (ours <= 0.05).mean() <= 0.11 and 0.4 < ours.mean() < 0.6
    assert (naive <= 0.05).mean() > 0.5
    assert kid_p_value(sample(40, 1, 0.8), *in_units(30, 2)) == 0.001


def of_classes(n: int, m: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(features, class labels) of n and m images of two classes 1 SD apart in each feature."""
    rows = np.concatenate([sample(n, seed), sample(m, seed + 50_000, 1.0)]) + shift
    return rows, np.repeat(["b", "m"], [n, m])


def test_p_values_are_uniform_where_units_make_the_class_mixes_differ() -> None:
    """60 single images of one class and 20 pairs of the other, against as many images that are
    all single."""
    labels = np.concatenate([np.arange(60), np.repeat(np.arange(60, 80), 2)])
    ours, pooled = [], []
    for i in range(100):
        (x, x_classes), (y, y_classes) = of_classes(60, 40, 2 * i), of_classes(60, 40, 2 * i + 1)
        y[61::2] = y[60::2] + 0.1 * sample(20, i + 90_000)
        ours.append(kid_p_value(x, y, labels, None, y_classes, x_classes, i))
        pooled.append(kid_p_value(x, y, labels, seed=i))
    assert np.mean(np.array(ours) <= 0.05) <= 0.11 and 0.4 < np.mean(ours) < 0.6
    assert np.mean(np.array(pooled) <= 0.05) > 0.2


def test_p_values_are_uniform_where_the_sides_have_one_class_mix() -> None:
    ours, pooled = [], []
    for i in range(100):
        (x, x_classes), (y, y_classes) = of_classes(12, 8, 2 * i), of_classes(9, 6, 2 * i + 1)
        ours.append(kid_p_value(x, y, classes=y_classes, image_classes=x_classes, seed=i))
        pooled.append(kid_p_value(x, y, seed=i))
    assert np.mean(np.array(ours) <= 0.05) <= 0.11 and 0.4 < np.mean(ours) < 0.6
    assert np.mean(pooled) > 0.6


def test_the_p_value_within_classes_is_the_share_of_relabellings_within_them_that_reach_the_distance() -> None:
    """4 + 3 and 3 + 2 images: 35 x 10 relabellings, of which the random ones are a sample;
    another class is ignored."""
    rng = np.random.default_rng(4)
    sides = [rng.standard_normal((n, 3)) + shift for n, shift in ((4, 0.0), (3, 0.9), (3, 2.0), (2, 2.6))]
    shares = np.array([3, 2]) / 5

    def distance(*sides: np.ndarray) -> float:
        steps = [np.concatenate([np.full(len(x), 1 / len(x)), np.full(len(y), -1 / len(y))]) * share
                 for x, y, share in zip(sides[::2], sides[1::2], shares, strict=True)]  # fmt: skip
        across = steps[0] @ polynomial_kernel(np.concatenate(sides[:2]), np.concatenate(sides[2:])) @ steps[1]
        return float(shares[0] ** 2 * brute_force(*sides[:2]) + shares[1] ** 2 * brute_force(*sides[2:]) + 2 * across)

    def relabelled(x: np.ndarray, y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        pooled = np.concatenate([x, y])
        chosen = [list(c) for c in combinations(range(len(pooled)), len(x))]
        return [(pooled[c], np.delete(pooled, c, 0)) for c in chosen]

    every = [distance(*b, *m) for b in relabelled(*sides[:2]) for m in relabelled(*sides[2:])]
    exact = float(np.mean(np.array(every) >= distance(*sides) - 1e-12))
    x, y = np.concatenate([sides[0], sides[2]]), np.concatenate([sides[1], sides[3]])
    found = kid_p_value(x, y, classes=np.repeat(["b", "m"], [3, 2]), image_classes=np.repeat(["b", "m"], [4, 3]))
    assert found == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 1000)) and 0.01 < exact < 0.9


def test_images_that_differ_within_a_class_are_told_apart_whatever_the_mixes() -> None:
    (x, x_classes), (y, y_classes) = of_classes(60, 40, 1, 0.6), of_classes(60, 20, 2)
    assert kid_p_value(x, y, classes=y_classes, image_classes=x_classes) == 0.001


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, (y, labels) = sample(40, 1, 0.2), in_units(10, 2)
    whole = kid(x, y, labels)
    monkeypatch.setattr("busray.evidence.stats.kernel.KERNEL_ROWS", 7)
    parts = kid(x, y, labels)
    assert (parts.value, *parts.interval) == pytest.approx((whole.value, *whole.interval), abs=1e-12)


def test_too_few_units_and_labels_for_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3 independent images"):
        kid(sample(9, 1), sample(9, 2), np.repeat([0, 1], [4, 5]))
    with pytest.raises(ValueError, match="8 unit labels for 9 images"):
        kid(sample(9, 1), sample(9, 2), LABELS)
