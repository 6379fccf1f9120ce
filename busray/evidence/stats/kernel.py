"""Kernel distance (KID: Binkowski et al. 2018, arXiv 1801.01401): unbiased squared MMD, with jackknife intervals.

Pure NumPy, float64. No subsets are drawn: every image counts, and the figure is the same each time. Near-duplicates and
images of one patient are a cluster, which counts as one independent draw: they make neither a pair of their own sample
(copies are alike whatever the distribution, so such pairs would bias the distance upwards) nor an interval narrower.
Where every image is a cluster of its own this is the usual KID. `clusters` are labels [n]; None: each its own.
"""

from collections.abc import Iterator

import numpy as np

from busray.evidence.stats.intervals import NORMAL, Estimate
from busray.evidence.stats.samples import numbered, picked
from busray.records import Interval

PERMUTATIONS = 999


FEWEST = 3
"""Clusters a side from which on one of them can be left out."""


BLOCK = 1024
"""Rows of a kernel matrix that are in memory at once."""


def polynomial_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """k(x, y) = (x'y / d + 1)^3 of features [n, d] and [m, d] -> [n, m]."""
    return (a.astype(np.float64) @ b.astype(np.float64).T / a.shape[1] + 1) ** 3


def kid(
    images: np.ndarray,
    reference: np.ndarray,
    clusters: np.ndarray | None = None,
    image_clusters: np.ndarray | None = None,
) -> Estimate:
    """KID of features [n, d] against [m, d] with their clusters [m] and [n], at least 3 a side.

    The interval is that of the delete-one-cluster jackknife, of which the brute-force loop is the definition.
    """
    return _estimate(
        *_leave_one_out(images, reference, numbered(image_clusters, images), numbered(clusters, reference))
    )


def kid_p_value(
    images: np.ndarray,
    reference: np.ndarray,
    clusters: np.ndarray | None = None,
    image_clusters: np.ndarray | None = None,
    classes: np.ndarray | None = None,
    image_classes: np.ndarray | None = None,
    seed: int = 0,
) -> float:
    """Probability of a KID at least this large if both were of one distribution: a permutation test (Gretton et al.
    2012), in PERMUTATIONS random relabellings; the observed one counts among them, so it is never 0.

    Clusters change sides as wholes, each with the weight of one draw and carried by one of its images, picked by seed.
    That is what is exchangeable: if a random image of a random cluster is distributed as a drawn image is, the picked
    images and the drawn ones are independent and alike. Images of a cluster are not (they come together), and neither
    are clusters at full size, for the large ones are all on the real side.

    classes, image_classes: labels [m] and [n], of both sides or of neither. Images change sides within their class,
    which is exact whatever the two class mixes are, and the distance is of mixtures that both have the classes in the
    shares of the reference's images; a class that one side lacks is ignored.
    """
    if classes is None or image_classes is None:
        classes, image_classes = np.zeros(len(reference)), np.zeros(len(images))
    rng = np.random.default_rng(seed)
    ours, theirs = picked(image_clusters, rng), picked(clusters, rng)
    values = np.zeros(PERMUTATIONS + 1)
    earlier: list[tuple[np.ndarray, np.ndarray]] = []
    for name in np.intersect1d(image_classes[ours], classes[theirs]):
        x, y = images[ours][image_classes[ours] == name], reference[theirs][classes[theirs] == name]
        share, n, m, pooled = (classes == name).mean(), len(x), len(y), np.concatenate([x, y])
        first = np.zeros((PERMUTATIONS + 1, n + m))
        first[:, :n] = 1
        first[1:] = rng.permuted(first[1:], axis=1)
        values += share**2 * _relabelled(pooled, first)
        steps = share * (first / n - (1 - first) / m)
        for others, of_others in earlier:
            values += 2 * ((steps @ polynomial_kernel(pooled, others)) * of_others).sum(1)
        earlier.append((pooled, steps))
    return float((values >= values[0] - 1e-12 * abs(values[0])).mean())


def _relabelled(pooled: np.ndarray, first: np.ndarray) -> np.ndarray:
    """MMD^2 [r] of images [n, d] where first [r, n] is 1, against those where it is 0; a lone image has no pairs."""
    kernel = polynomial_kernel(pooled, pooled)
    np.fill_diagonal(kernel, 0)
    towards = first @ kernel
    within, across = (towards * first).sum(1), (towards * (1 - first)).sum(1)
    others = kernel.sum() - within - 2 * across
    n = first[0].sum()
    m = first.shape[1] - n
    return within / max(1, n * (n - 1)) + others / max(1, m * (m - 1)) - 2 * across / (n * m)


def kid_difference(a: np.ndarray, b: np.ndarray, reference: np.ndarray, clusters: np.ndarray | None = None) -> Estimate:
    """KID of a minus KID of b, both [n, d], row i of each drawn from the same seed, against one reference [m, d].

    The jackknife drops a pair or a cluster [m] of the reference at a time, so what the arms share does not widen the
    interval.
    """
    if len(a) != len(b):
        raise ValueError(f"seed-paired arms have equal n, not {len(a)} and {len(b)}")
    pairs, labels = numbered(None, a), numbered(clusters, reference)
    first, second = _leave_one_out(a, reference, pairs, labels), _leave_one_out(b, reference, pairs, labels)
    return _estimate(first[0] - second[0], first[1] - second[1], first[2] - second[2])


def _estimate(value: float, without_image: np.ndarray, without_reference: np.ndarray) -> Estimate:
    """Normal interval from the jackknife variances of the two samples, which are independent."""
    half = NORMAL * float(np.sqrt(_variance(without_image) + _variance(without_reference)))
    return Estimate(float(value), Interval(float(value) - half, float(value) + half))


def _variance(left_out: np.ndarray) -> float:
    n = len(left_out)
    return float((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())


def _leave_one_out(
    x: np.ndarray, y: np.ndarray, x_clusters: np.ndarray, y_clusters: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """MMD^2 of all, without each cluster of x, and without each of y, from row sums of three kernels."""
    x_sizes, y_sizes = np.bincount(x_clusters), np.bincount(y_clusters)
    if min(len(x_sizes), len(y_sizes)) < FEWEST:
        raise ValueError(
            f"a kernel distance with its interval needs at least {FEWEST} images (clusters of them) a side, "
            f"not {len(x_sizes)} and {len(y_sizes)}"
        )
    x_mean, x_without = _within(x, x_clusters, x_sizes)
    y_mean, y_without = _within(y, y_clusters, y_sizes)
    n, m = len(x), len(y)
    towards_x, towards_y = np.zeros(n), np.zeros(m)
    for rows, kernel in _kernel(x, y):
        towards_x[rows] = kernel.sum(1)
        towards_y += kernel.sum(0)
    across = towards_x.sum()
    value = x_mean + y_mean - 2 * across / (n * m)
    across_x = (across - np.bincount(x_clusters, towards_x)) / ((n - x_sizes) * m)
    across_y = (across - np.bincount(y_clusters, towards_y)) / (n * (m - y_sizes))
    return float(value), x_without + y_mean - 2 * across_x, x_mean + y_without - 2 * across_y


def _within(x: np.ndarray, clusters: np.ndarray, sizes: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean kernel over the pairs of different clusters, of all and without each cluster."""
    towards = np.zeros(len(x))
    for rows, kernel in _kernel(x, x):
        kernel[clusters[rows, None] == clusters[None]] = 0
        towards[rows] = kernel.sum(1)
    total, pairs = towards.sum(), len(x) ** 2 - (sizes**2).sum()
    without = total - 2 * np.bincount(clusters, towards)
    return total / pairs, without / (pairs - 2 * sizes * (len(x) - sizes))


def _kernel(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows of a, their kernel [rows, m]) a block at a time."""
    for at in range(0, len(a), BLOCK):
        rows = np.arange(at, min(at + BLOCK, len(a)))
        yield rows, polynomial_kernel(a[rows], b)
