"""Metrics and intervals of the downstream study against loops, SciPy, closed forms and
simulated coverage."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from busray.evidence.stats import paired as study
from busray.evidence.stats.paired import (
    LEVEL,
    OVERALL,
    Difference,
    Scores,
    bootstrap_weights,
    compare,
    estimate,
    holm,
    metrics,
    score,
)


def predictions(rng: np.random.Generator, n: int = 40, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with ties, labels of every class."""
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    raw = rng.integers(1, 6, (n, classes)) + 3.0 * (np.arange(classes) == labels[:, None])
    return raw / raw.sum(1, keepdims=True), labels


def by_hand(probabilities: np.ndarray, labels: np.ndarray) -> dict[tuple[str, int | None], float]:
    """Loops over images and pairs."""
    guessed = [int(np.argmax(row)) for row in probabilities]
    pairs = list(zip(guessed, labels.tolist(), strict=True))
    out: dict[tuple[str, int | None], float] = {("accuracy", None): sum(g == t for g, t in pairs) / len(pairs)}
    f1, areas = [], []
    for c in sorted(set(labels.tolist())):
        hit = sum(g == t == c for g, t in pairs)
        missed, wrong = sum(t == c != g for g, t in pairs), sum(g == c != t for g, t in pairs)
        out["recall", c] = hit / (hit + missed)
        f1.append(hit / (hit + (missed + wrong) / 2))
        inside, outside = probabilities[labels == c, c], probabilities[labels != c, c]
        wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in product(inside, outside)]
        areas.append(sum(wins) / len(wins))
        out["auc", c] = areas[-1]
    out["macro_f1", None] = sum(f1) / len(f1)
    out["auc", None] = sum(areas) / len(areas)
    out["recall", None] = sum(v for (m, c), v in out.items() if m == "recall" and c is not None) / len(f1)
    return out


def test_every_metric_is_that_of_a_loop_over_images_and_pairs(rng: np.random.Generator) -> None:
    probabilities, labels = predictions(rng)
    found, wanted = metrics(probabilities, labels), by_hand(probabilities, labels)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key] == pytest.approx([value], abs=1e-12), key


def test_auc_is_the_mann_whitney_statistic_of_scipy(rng: np.random.Generator) -> None:
    probabilities, labels = predictions(rng, 60)
    ranks = stats.mannwhitneyu(probabilities[labels == 1, 1], probabilities[labels != 1, 1])
    pairs = (labels == 1).sum() * (labels != 1).sum()
    assert metrics(probabilities, labels)["auc", 1][0] == pytest.approx(ranks.statistic / pairs, abs=1e-12)


def test_a_weight_is_a_number_of_copies(rng: np.random.Generator) -> None:
    probabilities, labels = predictions(rng)
    weights = rng.integers(0, 3, len(labels))
    weights[:3] = 1  # every class stays
    weighted = metrics(probabilities, labels, weights[None])
    copied = metrics(probabilities.repeat(weights, axis=0), labels.repeat(weights))
    assert weighted.keys() == copied.keys()
    for key in weighted:
        assert weighted[key] == pytest.approx(copied[key], abs=1e-12), key


def test_a_class_that_the_test_set_lacks_has_no_figure_and_its_prediction_is_a_mistake() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [0.2, 0.7, 0.1]])
    found = metrics(probabilities, np.array([0, 0, 1]))
    assert found["accuracy", OVERALL][0] == pytest.approx(2 / 3)
    assert found["recall", 0][0] == pytest.approx(0.5) and ("recall", 2) not in found
    assert found["macro_f1", OVERALL][0] == pytest.approx((2 / 3 + 1) / 2)


def test_one_class_has_no_auc() -> None:
    assert ("auc", OVERALL) not in metrics(np.array([[0.8, 0.2], [0.4, 0.6]]), np.array([0, 0]))


def test_a_bootstrap_sample_takes_whole_units_and_keeps_every_class() -> None:
    labels = np.array([0] * 6 + [1] * 4)
    units = np.array(["a", "a", "a", "b", "c", "d", "e", "f", "f", "g"])
    weights = bootstrap_weights(labels, units, 500, seed=1)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 7] == weights[:, 8]).all()
    taken = weights[:, [0, 3, 4, 5]].sum(1), weights[:, [6, 7, 9]].sum(1)
    assert (taken[0] == 4).all() and (taken[1] == 3).all()
    assert weights.mean(0) == pytest.approx(np.ones(10), abs=0.15)


def test_a_class_of_one_unit_has_no_spread_to_tell() -> None:
    with pytest.raises(ValueError, match="fewer than 2 independent"):
        bootstrap_weights(np.array([0, 0, 1, 1]), np.array(["a", "b", "c", "c"]), 10, seed=1)


def test_holm_is_the_textbook_loop_and_keeps_the_family_wise_error(rng: np.random.Generator) -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
    false_alarms = np.mean([min(holm(rng.random(8).tolist())) < LEVEL for _ in range(4000)])
    assert false_alarms == pytest.approx(LEVEL, abs=0.012)


# ---- intervals ----

ACCURACY = ("accuracy", OVERALL)
MACRO_F1, AUC = ("macro_f1", OVERALL), ("auc", OVERALL)
RECALL = ("recall", 0)


def scored(right: np.ndarray, labels: np.ndarray, units: np.ndarray, seed: int = 0) -> Scores:
    """`score` for accuracy alone, of right [seeds, n], in 200 samples: quick enough to simulate
    with."""
    weights = bootstrap_weights(labels, units, 200, seed)
    samples = right @ weights.T / weights.sum(1)
    return Scores({ACCURACY: right.mean(1)}, {ACCURACY: samples}, {OVERALL: len(np.unique(units))})


def test_the_simulations_below_score_as_the_study_does(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "BOOTSTRAP_REPLICATES", 200)
    labels, units = np.arange(30) // 3 % 2, np.arange(30) // 3
    right = rng.random((2, 30)) < 0.6
    whole = score(np.eye(2)[np.where(right, labels, 1 - labels)], labels, units)
    quick = scored(right, labels, units)
    assert whole.point[ACCURACY] == pytest.approx(quick.point[ACCURACY])
    assert whole.samples[ACCURACY] == pytest.approx(quick.samples[ACCURACY])
    assert whole.units[OVERALL] == quick.units[OVERALL] == 10


def worlds(rng: np.random.Generator, seeds: int, gain: float, repeats: int, size: int) -> list[Difference]:
    """Differences of two arms of which the first is better by `gain`: units of `size` images
    that are hard together, trainings that are better or worse as a whole, and chance in each
    image."""
    n = 120
    units = np.arange(n) // size
    labels = units % 2
    found = []
    for i in range(repeats):
        hard = rng.normal(0, 0.12, n // size)[units]
        arms = []
        for shift in (0.0, gain):
            own, skill = rng.normal(0, 0.1, n // size)[units], rng.normal(0, 0.03, seeds)[:, None]
            arms.append(
                scored(rng.random((seeds, n)) < np.clip(0.6 + shift + hard + own + skill, 0, 1), labels, units, i)
            )
        found.append(compare(arms[1], arms[0], ACCURACY))
    return found


@pytest.mark.parametrize(("seeds", "size"), [(2, 1), (3, 1), (5, 4)])
def test_an_interval_of_a_difference_covers_the_truth_as_often_as_it_says(
    rng: np.random.Generator, seeds: int, size: int
) -> None:
    found = worlds(rng, seeds, gain=0.05, repeats=300, size=size)
    assert 0.92 <= np.mean([d.estimate.interval.low <= 0.05 <= d.estimate.interval.high for d in found]) <= 0.99


def test_images_of_one_unit_counted_as_independent_would_cover_too_seldom(rng: np.random.Generator) -> None:
    """The negative control of the test above: units of 6 images, right or wrong together."""
    n, size = 120, 6
    labels = (np.arange(n) // size) % 2
    covered = {True: 0, False: 0}
    for _ in range(200):
        right = np.repeat([(rng.random(n // size) < 0.7)[np.arange(n) // size]], 2, axis=0)
        for whole in covered:
            got = estimate(scored(right, labels, np.arange(n) // size if whole else np.arange(n)), ACCURACY)
            covered[whole] += got.interval.low <= 0.7 <= got.interval.high
    assert covered[True] >= 176 and covered[False] <= 140


def test_seeds_left_out_of_the_interval_would_make_it_too_narrow(rng: np.random.Generator) -> None:
    """Trainings that differ much: the interval has to be wider than the bootstrap of the test
    images alone says."""
    labels, units = np.arange(120) % 2, np.arange(120)
    narrow = 0
    covered = 0
    for i in range(200):
        right = rng.random((3, 120)) < np.clip(0.7 + rng.normal(0, 0.1, 3), 0, 1)[:, None]
        scores = scored(right, labels, units, i)
        got = estimate(scores, ACCURACY)
        covered += got.interval.low <= 0.7 <= got.interval.high
        narrow += abs(got.value - 0.7) <= 1.96 * scores.samples[ACCURACY].mean(0).std()
    assert covered >= 180 and narrow <= 140


def test_no_difference_is_called_one_no_more_often_than_the_level(rng: np.random.Generator) -> None:
    found = worlds(rng, 3, gain=0.0, repeats=300, size=2)
    assert np.mean([d.p_value < LEVEL for d in found]) <= 0.08


def test_a_difference_as_large_as_the_detectable_one_is_found_four_times_in_five(rng: np.random.Generator) -> None:
    none = worlds(rng, 4, gain=0.0, repeats=60, size=2)
    detectable = float(np.median([d.detectable for d in none if d.detectable is not None]))
    found = worlds(rng, 4, gain=detectable, repeats=200, size=2)
    assert 0.7 <= np.mean([d.p_value < LEVEL for d in found]) <= 0.95


# ---- at the edge: all right, all alike, few images ----


def of_a_class(right: np.ndarray, seed: int = 0) -> Scores:
    """`score` for the recall of a class, of right [seeds, n], each image a unit: quick enough
    to simulate with."""
    n = right.shape[1]
    found = scored(right, np.zeros(n, np.int64), np.arange(n), seed)
    return Scores({RECALL: found.point[ACCURACY]}, {RECALL: found.samples[ACCURACY]}, {0: n})


def test_the_recall_of_a_class_rests_on_its_own_units() -> None:
    """17 images in 12 units of the class, 95 others."""
    labels, units = np.repeat([0, 1], [17, 95]), np.concatenate([np.arange(17) % 12, np.arange(12, 107)])
    right = np.repeat([np.arange(112) % 3 > 0], 3, axis=0)
    found = score(np.eye(2)[np.where(right, labels, 1 - labels)], labels, units)
    assert found.units == {OVERALL: 107, 0: 12, 1: 95}
    interval = estimate(found, RECALL)
    error = found.samples[RECALL].mean(0).std(ddof=1)
    assert interval.value - interval.interval.low == pytest.approx(stats.t.ppf(0.975, 11) * error, rel=1e-3)


@pytest.mark.parametrize("truth", [0.95, 0.9])
def test_the_interval_of_a_class_of_17_covers_a_recall_near_1_where_the_trainings_agree(
    rng: np.random.Generator, truth: float
) -> None:
    covered = 0
    for i in range(400):
        found = estimate(of_a_class(np.repeat(rng.random((1, 17)) < truth, 3, axis=0), i), RECALL)
        assert 0 <= found.interval.low < found.interval.high <= 1
        covered += found.interval.low <= truth <= found.interval.high
    assert covered >= 0.92 * 400


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_of_a_rare_difference_covers_it_in_a_small_class(rng: np.random.Generator, seeds: int) -> None:
    """One arm is wrong about a tenth of the images; both err by chance now and then in one
    training."""
    covered = 0
    for i in range(300):
        hard, chance = rng.random(17) < 0.1, rng.random((2, seeds, 17)) < 0.02
        found = compare(of_a_class(~chance[0], i), of_a_class(~(chance[1] | hard), i), RECALL)
        covered += found.estimate.interval.low <= 0.98 * 0.1 <= found.estimate.interval.high
    assert covered >= 0.92 * 300


def test_an_arm_that_is_always_right_may_yet_be_wrong_elsewhere() -> None:
    """All right of k: the variance of Agresti and Coull, whatever the metric; without it every
    interval is a point."""
    labels = np.arange(40) % 2
    found = score(np.stack([np.eye(2)[labels]] * 3), labels, np.arange(40))
    for key in found.point:
        k = 40 if key[1] is OVERALL else 20
        p = (k + 2) / (k + 4)
        low = 1 - stats.t.ppf(0.975, k - 1) * np.sqrt(p * (1 - p) / k)
        interval = estimate(found, key)
        assert (interval.value, *interval.interval) == pytest.approx((1, low, 1), abs=1e-4), key


def test_a_mistake_more_never_makes_an_interval_narrower_or_its_low_end_higher() -> None:
    """40 images, 3 trainings, of which the first is wrong about none, one, two, ... of them."""
    labels = np.arange(40) % 2
    for key in (ACCURACY, MACRO_F1, AUC):
        found = []
        for wrong in range(5):
            said = np.stack([np.where(np.arange(40) < wrong, 1 - labels, labels), labels, labels])
            found.append(estimate(score(np.eye(2)[said], labels, np.arange(40)), key))
        lows, halves = [f.interval.low for f in found], [f.value - f.interval.low for f in found]
        assert lows == sorted(lows, reverse=True) and halves == sorted(halves), key
        assert lows[0] == pytest.approx(0.933, abs=1e-3)


def test_the_interval_of_a_macro_f1_near_1_covers_it(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 images, 3 % of them hard for every training, and each training errs by chance about 2
    %."""
    monkeypatch.setattr(study, "BOOTSTRAP_REPLICATES", 200)
    labels, truth, covered = np.arange(40) % 2, 0.97 * 0.98, 0
    for _ in range(150):
        right = (rng.random((3, 40)) < 0.98) & (rng.random(40) < 0.97)
        found = estimate(score(np.eye(2)[np.where(right, labels, 1 - labels)], labels, np.arange(40)), MACRO_F1)
        covered += found.interval.low <= truth <= found.interval.high
    assert covered >= 0.94 * 150


def test_the_interval_of_an_auc_near_1_covers_it(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of unit variance a class, a fifth of it each training's own, so far apart that the
    AUC is 0.98."""
    monkeypatch.setattr(study, "BOOTSTRAP_REPLICATES", 200)
    labels, truth, covered = np.arange(40) % 2, 0.98, 0
    apart = stats.norm.ppf(truth) * np.sqrt(2)
    for _ in range(150):
        scores = apart * labels + rng.normal(0, 0.8**0.5, 40) + rng.normal(0, 0.2**0.5, (3, 40))
        malignant = 1 / (1 + np.exp(apart / 2 - scores))
        found = estimate(score(np.stack([1 - malignant, malignant], 2), labels, np.arange(40)), AUC)
        covered += found.interval.low <= truth <= found.interval.high
    assert covered >= 0.94 * 150


def test_arms_that_answer_alike_have_no_difference_and_could_yet_have_one(rng: np.random.Generator) -> None:
    probabilities, labels = predictions(rng)
    both = score(np.stack([probabilities] * 2), labels, np.arange(len(labels)))
    for key in (ACCURACY, MACRO_F1, AUC):
        found = compare(both, both, key)
        assert (found.estimate.value, found.p_value) == (0, 1)
        assert found.detectable is not None
        low, high = found.estimate.interval
        assert low == -high and 0.05 < high < found.detectable < 0.3


@pytest.mark.parametrize("wobble", [0, 1])
def test_three_images_against_none_of_three_do_not_stand_out(wobble: int) -> None:
    """Nor where one training errs once, so that there is a spread. An exact sign test gives
    0.25."""
    labels = np.repeat([0, 1], [3, 20])
    right, wrong = (np.repeat(np.where(labels == 0, label, 1)[None], 3, axis=0) for label in (0, 1))
    right[0, :wobble] = 1
    arms = [score(np.eye(2)[said], labels, np.arange(23)) for said in (right, wrong)]
    found = compare(*arms, RECALL)
    low, high = found.estimate.interval
    assert found.p_value == 0.25 and low < 0 < found.estimate.value <= high <= 1
    assert found.detectable is None


@pytest.mark.parametrize(("units", "there"), [(4, False), (5, False), (6, True)])
def test_there_is_a_detectable_difference_only_where_a_p_value_can_be_below_the_level(units: int, there: bool) -> None:
    """Trainings and images that all agree, each image in ten near-duplicates: 2 * 0.5^5 is
    above 0.05."""
    labels = np.repeat(np.arange(units) % 2, 10)
    right = score(np.eye(2)[np.stack([labels] * 3)], labels, np.repeat(np.arange(units), 10))
    found = compare(right, right, ACCURACY)
    assert (found.detectable is not None) == there
    assert there == (2 * 0.5**units < LEVEL)


def test_a_large_difference_stands_out_of_many_comparisons(rng: np.random.Generator) -> None:
    labels, units = np.arange(120) % 2, np.arange(120)
    arms = [scored(np.repeat(rng.random((1, 120)) < p, 3, axis=0), labels, units) for p in (0.9, 0.5)]
    found = compare(*arms, ACCURACY)
    assert holm([found.p_value, *[0.5] * 118])[0] < LEVEL


def test_the_order_of_the_images_changes_no_figure(rng: np.random.Generator) -> None:
    probabilities, labels = predictions(rng, 60)
    units = np.arange(60) // 2 * 2
    labels = labels[units]
    order = rng.permutation(60)
    key = ("auc", OVERALL)
    straight = score(np.stack([probabilities] * 2), labels, units)
    shuffled = score(np.stack([probabilities[order]] * 2), labels[order], units[order])
    assert shuffled.point[key] == pytest.approx(straight.point[key], abs=1e-12)
    assert np.sort(shuffled.samples[key], None) == pytest.approx(np.sort(straight.samples[key], None), abs=1e-9)
