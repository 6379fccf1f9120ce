# pyright: strict
"""Metrics of classifiers on test images, and differences of two arms, with intervals.

Pure NumPy. Predictions are probabilities [seeds, n, classes] of n test images, by classifiers
trained from several seeds. Images of one unit (near-duplicates, a patient) are never counted as
independent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from busray.evidence.stats.intervals import Estimate, t_cdf, t_quantile
from busray.records import Interval

BOOTSTRAP_REPLICATES = 2000

POWER = 0.8

LEVEL = 0.05

OVERALL = None
"""In place of a class's number."""

Key = tuple[str, int | None]
"""(metric, class): `accuracy`, `macro_f1`, `auc` and `recall` OVERALL, the last two also of a
class. `auc` OVERALL is the mean of one class against the rest, `recall` OVERALL the mean over
classes."""


@dataclass(frozen=True)
class Difference:
    """Difference between two arms, paired by seed, on the same test images."""

    estimate: Estimate
    """Its interval lies within [-1, 1]."""
    p_value: float
    """Two-sided, of no difference."""
    detectable: float | None
    """The smallest true difference that this design finds with probability POWER at level LEVEL,
    by the t law. None where it exceeds 1, which no difference does, and where the p-value cannot
    be below LEVEL: with fewer than 6 units."""


def metrics(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> dict[Key, np.ndarray]:
    """Every metric [b] of probabilities [n, classes] of images of classes labels [n].

    weights [b, n] counts each image so often in each of b samples; default: one sample, each
    once. Classes without a test image have no metric and count in no mean, but predicting one of
    them is a mistake. F1 of a class that is never predicted is 0. Equal probabilities count half
    in AUC.
    """
    n, classes = probabilities.shape
    counted = np.ones((1, n)) if weights is None else np.asarray(weights, float)
    present = np.unique(labels)
    predicted = probabilities.argmax(1)
    # confusion [b, true classes that are present, predicted classes] of each sample, in one
    # product.
    cells = np.zeros((n, classes, classes))
    cells[np.arange(n), labels, predicted] = 1
    confusion = (counted @ cells.reshape(n, -1)).reshape(len(counted), classes, classes)[:, present]
    hits = np.stack([confusion[:, i, label] for i, label in enumerate(present)], 1)
    true_counts, predicted_counts = confusion.sum(2), confusion.sum(1)[:, present]
    recall = hits / true_counts
    out: dict[Key, np.ndarray] = {
        ("accuracy", OVERALL): hits.sum(1) / counted.sum(1),
        ("macro_f1", OVERALL): (2 * hits / (true_counts + predicted_counts)).mean(1),
        ("recall", OVERALL): recall.mean(1),
    }
    for i, label in enumerate(present):
        out["recall", int(label)] = recall[:, i]
    if len(present) > 1:
        areas = {int(label): _auc(probabilities[:, label], labels == label, counted) for label in present}
        out |= {("auc", label): area for label, area in areas.items()}
        out["auc", OVERALL] = np.mean(list(areas.values()), axis=0)
    return out


def _auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[b]: the weighted share of (positive, negative) pairs in the right order, ties half."""
    in_order = np.sign(scores[positive][:, None] - scores[~positive][None]) / 2 + 0.5
    of_positive, of_negative = weights[:, positive], weights[:, ~positive]
    return ((of_positive @ in_order) * of_negative).sum(1) / (of_positive.sum(1) * of_negative.sum(1))


def bootstrap_weights(labels: np.ndarray, units: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """How often each image [n] is in each bootstrap sample of whole units: [replicates, n].

    Units are drawn within their class, so that every sample has each class as often as the split
    has. ValueError for a class with fewer than two units, whose spread is not estimable.
    """
    if lone := classes_without_spread(labels, units):
        raise ValueError(f"classes {lone} have fewer than 2 independent test images")
    rng = np.random.default_rng(seed)
    class_of_unit, unit_of_image = _strata(labels, units)
    counts = np.zeros((replicates, len(class_of_unit)))
    for label in np.unique(labels):
        members = np.flatnonzero(class_of_unit == label)
        shares = np.full(len(members), 1 / len(members))
        counts[:, members] = rng.multinomial(len(members), shares, replicates)
    return counts[:, unit_of_image]


def classes_without_spread(labels: np.ndarray, units: np.ndarray) -> list[int]:
    """Classes with images, but with fewer than two units."""
    class_of_unit, _ = _strata(labels, units)
    return [int(label) for label in np.unique(labels) if (class_of_unit == label).sum() < 2]


def _strata(labels: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(class of each unit, that of its first image; number of the unit of each image)."""
    _, first, unit_of_image = np.unique(units, return_index=True, return_inverse=True)
    return labels[first], unit_of_image


@dataclass(frozen=True)
class Scores:
    """Metrics of an arm on the test set [seeds], and on bootstrap samples of its units [seeds,
    b]."""

    point: dict[Key, np.ndarray]
    samples: dict[Key, np.ndarray]
    units: dict[int | None, int]
    """How many there are in each class, and in all under OVERALL."""


def score(probabilities: np.ndarray, labels: np.ndarray, units: np.ndarray, seed: int = 0) -> Scores:
    """Scores of probabilities [seeds, n, classes] of images of classes labels [n] and units [n].

    Arms of the same seed are resampled alike, so that their differences are paired.
    """
    weights = bootstrap_weights(labels, units, BOOTSTRAP_REPLICATES, seed)
    point = [metrics(of_seed, labels) for of_seed in probabilities]
    samples = [metrics(of_seed, labels, weights) for of_seed in probabilities]
    counts: dict[int | None, int] = {OVERALL: len(np.unique(units))}
    for label in np.unique(labels):
        counts[int(label)] = len(np.unique(units[labels == label]))
    return Scores(
        {key: np.stack([by_key[key][0] for by_key in point]) for key in point[0]},
        {key: np.stack([by_key[key] for by_key in samples]) for key in point[0]},
        counts,
    )


def estimate(scores: Scores, key: Key) -> Estimate:
    """A metric of an arm, averaged over its seeds; the interval lies within [0, 1]."""
    value, error, freedom = _spread(scores.point[key], scores.samples[key], scores.units[key[1]])
    half = t_quantile(1 - LEVEL / 2, freedom) * error
    return Estimate(value, Interval(max(value - half, 0.0), min(value + half, 1.0)))


def compare(arm: Scores, against: Scores, key: Key) -> Difference:
    """A metric of one arm minus that of another.

    Row s of both was trained from the same seed; sample b of both drew the same test set.
    """
    point, samples = arm.point[key] - against.point[key], arm.samples[key] - against.samples[key]
    units = arm.units[key[1]]
    value, error, freedom = _spread(point, samples, units)
    reach = t_quantile(1 - LEVEL / 2, freedom)
    interval = Interval(max(value - reach * error, -1.0), min(value + reach * error, 1.0))
    # An exact sign test of k units that all favour one arm gives 2 * 0.5^k. The t law could go
    # below that for few units, which is more than so few can show.
    smallest = 2 * 0.5**units
    p_value = min(max(2 * (1 - t_cdf(abs(value) / error, freedom)), smallest), 1.0)
    detectable = (reach + t_quantile(POWER, freedom)) * error
    possible = detectable <= 1 and smallest < LEVEL
    return Difference(Estimate(value, interval), p_value, detectable if possible else None)


def _spread(point: np.ndarray, samples: np.ndarray, units: int) -> tuple[float, float, float]:
    """(mean over seeds, its standard error, degrees of freedom) from point [seeds], samples
    [seeds, b].

    Two sources of variance are added. Test units: the bootstrap variance of the mean over seeds.
    Trainings: the variance between seeds over their number, the limit of resampling seeds. The
    effect of a training on single images is in both, so the error is on the safe side.

    The degrees of freedom are Satterthwaite's (1946), with the number of units that the metric is
    of: those of the class for a class's metric, all for a mean over classes, though a small class
    may decide it.
    """
    # Images that are all right, or pairs that are all alike, leave no spread to resample, yet other
    # images may be wrong or differ. So the variance over units is at least that of k right of k by
    # Agresti and Coull (1998, doi 10.1080/00031305.1998.10480550), who add two right and two wrong:
    # about 2 / k^2. It is made for shares, but other metrics take it too: samples of few mistakes
    # spread little, and one more mistake must not make an interval narrower.
    right = (units + 2) / (units + 4)
    from_units = max(float(samples.mean(0).var(ddof=1)), right * (1 - right) / units)
    from_seeds = float(point.var(ddof=1) / len(point)) if len(point) > 1 else 0.0
    total = from_units + from_seeds
    of_seeds = from_seeds**2 / (len(point) - 1) if len(point) > 1 else 0.0
    freedom = total**2 / (from_units**2 / max(units - 1, 1) + of_seeds)
    return float(point.mean()), float(np.sqrt(total)), freedom


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of a family, in its order (Holm 1979, Scand. J. Stat. 6).

    Rejecting those below a level keeps the family-wise error below that level.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min((len(p_values) - rank) * p_values[i], 1.0))
        adjusted[i] = largest
    return adjusted
