"""Can a classifier tell synthetic from real images by their features? AUC of classifiers on images they never saw.

Pure NumPy. 0.5 is guessing; what real images against other real images reach stands beside it as the floor.
"""

from collections.abc import Iterator

import numpy as np

from busray.evidence.stats.intervals import Estimate, newcombe
from busray.evidence.stats.samples import numbered

SPLITS = 5
"""Times that the images are cut in halves."""


FEWEST = 6
"""Clusters a side that are cut in halves at least."""


PENALTIES = np.logspace(-8, 2, 21)
"""Tried for each classifier, in units of the largest squared singular value."""


def separability(
    images: np.ndarray,
    reference: np.ndarray,
    clusters: np.ndarray | None = None,
    image_clusters: np.ndarray | None = None,
) -> Estimate:
    """AUC of features [n, d] against [m, d] with their clusters [m] and [n], at least FEWEST clusters a side.

    Cross-fitted: a linear classifier fitted to either half ranks the other, and the mean over both, and over several
    ways of halving, is the value; clusters are in one half as wholes. Halves that test each other's classifiers are not
    independent (under no difference they all but agree), so the usual interval, as if each image were tested afresh,
    is too narrow: of 40 and 30 images it covered 84 % in simulation. But a mean varies no more than what it is of, and
    in each term the half that is ranked is independent of the classifier. So the interval is that of half as many
    images: Newcombe's (readers.newcombe), counting a cluster as one image. It is about the classifiers that were
    fitted, whose mean true AUC it covers; more images would make better ones.
    """
    features = np.concatenate([images, reference])
    ours, theirs = numbered(image_clusters, images), numbered(clusters, reference)
    sides = np.arange(len(features)) < len(images)
    values = []
    for first in halves(ours, theirs):
        for held in (first, ~first):
            scores = features[held] @ direction(features[~held], sides[~held])
            values.append(auc(scores[sides[held]], scores[~sides[held]]).value)
    value = float(np.mean(values))
    return Estimate(value, newcombe(value, (int(ours.max()) + 1) // 2, (int(theirs.max()) + 1) // 2))


def halves(*clusters: np.ndarray) -> Iterator[np.ndarray]:
    """SPLITS times: whether each image, one side's after the other's, is in the first half, from its cluster's number.

    ValueError where a side has fewer than FEWEST clusters.
    """
    counts = [int(numbers.max()) + 1 for numbers in clusters]
    if min(counts) < FEWEST:
        raise ValueError(f"at least {FEWEST} images (clusters of them) a side are needed, not {counts}")
    chance = np.random.default_rng(0)
    for _ in range(SPLITS):
        firsts = [chance.permutation(count) % 2 == 0 for count in counts]
        yield np.concatenate([first[numbers] for first, numbers in zip(firsts, clusters, strict=True)])


def direction(features: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Weights [d] that rank images of `sides` [n] above others: ridge regression on balanced labels.

    The penalty has the least generalised cross-validation error (Golub, Heath, Wahba 1979) in the same images.
    """
    n, d = features.shape
    x = features - features.mean(0, dtype=np.float64)
    y = np.where(sides, n / sides.sum(), -n / (~sides).sum())
    if n <= d:
        squares, left = np.linalg.eigh(x @ x.T)
        largest = squares[-1]
        kept = squares > n * np.finfo(float).eps * largest
        squares, left = squares[kept], left[:, kept]
        right = x.T @ left / np.sqrt(squares)
    else:
        squares, right = np.linalg.eigh(x.T @ x)
        largest = squares[-1]
        kept = squares > n * np.finfo(float).eps * largest
        squares, right = squares[kept], right[:, kept]
        left = x @ right / np.sqrt(squares)
    along = left.T @ y
    outside = y @ y - along @ along
    best, weights = np.inf, np.zeros(d)
    for penalty in PENALTIES * largest:
        shrunk = penalty / (squares + penalty)
        freedom = n - 1 - (1 - shrunk).sum()
        error = (outside + ((shrunk * along) ** 2).sum()) / freedom**2
        if error < best:
            best, weights = error, right @ (np.sqrt(squares) / (squares + penalty) * along)
    return weights


def auc(positive: np.ndarray, negative: np.ndarray) -> Estimate:
    """Probability that a positive outscores a negative one, ties a half, of scores [m] and [n]; its 95 % interval."""
    m, n = len(positive), len(negative)
    above = np.searchsorted(np.sort(negative), positive, "left").sum()
    not_below = np.searchsorted(np.sort(negative), positive, "right").sum()
    value = float(above + not_below) / (2 * m * n)
    return Estimate(value, newcombe(value, m, n))
