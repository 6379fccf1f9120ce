"""What a classifier's test predictions are worth: metrics, paired intervals over test clusters and trainings, Holm.

Pure NumPy. Predictions are probabilities [seeds, n, classes] of n test images by classifiers trained from several
seeds; images of one cluster (near-duplicates, a patient) are never counted as independent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from busray.evidence.stats.intervals import Estimate, t_cdf, t_quantile
from busray.records import Interval

REPLICATES = 2000


POWER = 0.8


LEVEL = 0.05


METRICS = ("accuracy", "macro_f1", "auc", "recall")
"""`auc` and `recall` also exist for each class; `auc` of all is the mean of one-vs-rest, `recall` of all the mean."""


OVERALL = None
"""In place of a class's number."""


Key = tuple[str, int | None]
"""(metric, class)"""


@dataclass(frozen=True)
class Difference:
    """Difference between two arms, paired by seed, on the same test images."""

    estimate: Estimate
    """Its interval lies within [-1, 1]."""
    p_value: float
    """Two-sided, of no difference."""
    detectable: float | None
    """The smallest true difference that this design finds with probability POWER at level LEVEL, by the t law. None
    where that is above 1, which no difference is, and with fewer than 6 clusters, whose p-value cannot be below
    LEVEL."""


def metrics(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> dict[Key, np.ndarray]:
    """Every metric of probabilities [n, classes] under each row of weights [b, n] (default: one row of ones) -> [b].

    Classes without a test image have none, and count in no mean; a prediction of one of them is a mistake. F1 of a
    class that is never predicted is 0. Images of equal probability count half in AUC.
    """
    n, classes = probabilities.shape
    counted = np.ones((1, n)) if weights is None else np.asarray(weights, float)
    here = np.unique(labels)
    guessed = probabilities.argmax(1)
    cells = np.zeros((n, classes, classes))
    cells[np.arange(n), labels, guessed] = 1
    confusion = (counted @ cells.reshape(n, -1)).reshape(len(counted), classes, classes)[:, here]
    hits = np.stack([confusion[:, i, label] for i, label in enumerate(here)], 1)
    truth, said = confusion.sum(2), confusion.sum(1)[:, here]
    recall = hits / truth
    out: dict[Key, np.ndarray] = {
        ("accuracy", OVERALL): hits.sum(1) / counted.sum(1),
        ("macro_f1", OVERALL): (2 * hits / (truth + said)).mean(1),
        ("recall", OVERALL): recall.mean(1),
    }
    out |= {("recall", int(label)): recall[:, i] for i, label in enumerate(here)}
    if len(here) > 1:
        areas = {int(label): _auc(probabilities[:, label], labels == label, counted) for label in here}
        out |= {("auc", label): area for label, area in areas.items()}
        out["auc", OVERALL] = np.mean(list(areas.values()), axis=0)
    return out


def _auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[b]: the weighted share of (positive, negative) pairs in the right order, ties half."""
    above = np.sign(scores[positive][:, None] - scores[~positive][None]) / 2 + 0.5
    ours, others = weights[:, positive], weights[:, ~positive]
    return ((ours @ above) * others).sum(1) / (ours.sum(1) * others.sum(1))


def cluster_weights(labels: np.ndarray, clusters: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """How often each image [n] is in each bootstrap sample of whole clusters: [replicates, n].

    Within a class, so that every sample has every class as the split has; a cluster counts to the class of its first
    image. ValueError for a class with fewer than two clusters, of which no spread could be told.
    """
    if lone := without_spread(labels, clusters):
        raise ValueError(f"classes {lone} have fewer than 2 clusters of test images")
    draw = np.random.default_rng(seed)
    class_of, cluster_of = _strata(labels, clusters)
    counts = np.zeros((replicates, len(class_of)))
    for label in np.unique(labels):
        members = np.flatnonzero(class_of == label)
        counts[:, members] = draw.multinomial(len(members), np.full(len(members), 1 / len(members)), replicates)
    return counts[:, cluster_of]


def without_spread(labels: np.ndarray, clusters: np.ndarray) -> list[int]:
    """Classes of which there are images, but not two clusters."""
    class_of, _ = _strata(labels, clusters)
    return [int(label) for label in np.unique(labels) if (class_of == label).sum() < 2]


def _strata(labels: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(class of each cluster, that of its first image; cluster of each image)."""
    _, first, cluster_of = np.unique(clusters, return_index=True, return_inverse=True)
    return labels[first], cluster_of


@dataclass(frozen=True)
class Scores:
    """An arm's metrics: of the test set as it is [seeds], and in bootstrap samples of its clusters [seeds, b]."""

    point: dict[Key, np.ndarray]
    samples: dict[Key, np.ndarray]
    clusters: dict[int | None, int]
    """Of the images of each class, and of all under OVERALL."""


def score(probabilities: np.ndarray, labels: np.ndarray, clusters: np.ndarray, seed: int = 0) -> Scores:
    """Scores of probabilities [seeds, n, classes]. Arms of one seed are resampled alike, so differences are paired."""
    weights = cluster_weights(labels, clusters, REPLICATES, seed)
    point = [metrics(one, labels) for one in probabilities]
    samples = [metrics(one, labels, weights) for one in probabilities]
    return Scores(
        {key: np.stack([m[key][0] for m in point]) for key in point[0]},
        {key: np.stack([m[key] for m in samples]) for key in point[0]},
        {OVERALL: len(np.unique(clusters))}
        | {int(label): len(np.unique(clusters[labels == label])) for label in np.unique(labels)},
    )


def estimate(scores: Scores, key: Key) -> Estimate:
    """An arm's metric, averaged over its seeds."""
    value, error, freedom = _spread(scores.point[key], scores.samples[key], scores.clusters[key[1]])
    half = t_quantile(1 - LEVEL / 2, freedom) * error
    return Estimate(value, Interval(max(value - half, 0.0), min(value + half, 1.0)))


def compare(arm: Scores, against: Scores, key: Key) -> Difference:
    """An arm's metric less another's; row s of both was trained from one seed, sample b of both drew one test set.

    The p-value is the t law's, but never below 2 * 0.5^k, an exact sign test's of k clusters that all speak for one
    arm: of a few images the t law would say more than they can.
    """
    point, samples = arm.point[key] - against.point[key], arm.samples[key] - against.samples[key]
    clusters = arm.clusters[key[1]]
    value, error, freedom = _spread(point, samples, clusters)
    reach = t_quantile(1 - LEVEL / 2, freedom)
    interval = Interval(max(value - reach * error, -1.0), min(value + reach * error, 1.0))
    smallest = 2 * 0.5**clusters
    p_value = min(max(2 * (1 - t_cdf(abs(value) / error, freedom)), smallest), 1.0)
    detectable = (reach + t_quantile(POWER, freedom)) * error
    found = detectable if detectable <= 1 and smallest < LEVEL else None
    return Difference(Estimate(value, interval), p_value, found)


def _spread(point: np.ndarray, samples: np.ndarray, clusters: int) -> tuple[float, float, float]:
    """(mean over seeds, its standard error, degrees of freedom) from point [seeds] and samples [seeds, b].

    Two sources: test clusters, from the bootstrap of the seeds' mean; trainings, from the variance between seeds over
    their number, which is what resampling seeds comes to in the limit. What a training does to single images is in
    both, so the error is on the safe side. Degrees of freedom by Satterthwaite, of the clusters that the metric is of
    (a class's own): few of them or few seeds give wide intervals.

    Images that are all right, or pairs that are all alike, have no spread to resample, and yet others may be wrong or
    differ. So the clusters' part of a variance is at least that of k right of k after Agresti and Coull (1998, doi
    10.1080/00031305.1998.10480550), who add two right and two wrong: about 2 / k^2. That is made for shares, and other
    metrics take it too: of few mistakes their samples have little spread, and one mistake more must not make an
    interval narrower. A mean over classes counts all clusters, though a small class may decide it.
    """
    right = (clusters + 2) / (clusters + 4)
    from_clusters = max(float(samples.mean(0).var(ddof=1)), right * (1 - right) / clusters)
    from_seeds = float(point.var(ddof=1) / len(point)) if len(point) > 1 else 0.0
    total = from_clusters + from_seeds
    below = from_clusters**2 / max(clusters - 1, 1) + (from_seeds**2 / (len(point) - 1) if len(point) > 1 else 0.0)
    return float(point.mean()), float(np.sqrt(total)), total**2 / below


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of a family, in its order (Holm 1979): below a level, its family-wise error is below it too."""
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min((len(p_values) - rank) * p_values[i], 1.0))
        adjusted[i] = largest
    return adjusted
