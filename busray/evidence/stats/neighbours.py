# pyright: strict
"""Nearest-neighbour measures: do synthetic images lie near real ones, and near each of them?

Precision and recall: Kynkaanniemi et al. 2019 (arXiv 1904.06991). Density and coverage: Naeem et
al. 2020 (arXiv 2002.09797). Pure NumPy, float64.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

DISTANCE_ROWS = 512
"""Rows of a distance matrix that are in memory at once."""


@dataclass(frozen=True)
class Neighbourhood:
    """Shares in 0..1; density alone may exceed 1, its mean where both samples are alike."""

    precision: float
    """Share of the images within the k-th neighbour's distance of any reference image."""
    recall: float
    """Share of the reference within the k-th neighbour's distance of any image."""
    density: float
    """Mean number of reference balls around an image, over k."""
    coverage: float
    """Share of the reference with an image in its own ball."""


def neighbourhood(images: np.ndarray, reference: np.ndarray, k: int = 5) -> Neighbourhood:
    """Measures of images [n, d] against reference [m, d]. A ball's edge belongs to it.

    ValueError unless n, m > k.
    """
    n, m = len(images), len(reference)
    if min(n, m) <= k:
        raise ValueError(f"the {k}-th neighbour needs more than {k} images per side, not {n} and {m}")
    image_radii, reference_radii = squared_radii(images, k), squared_radii(reference, k)
    balls = np.zeros(n)
    recalled, covered = np.zeros(m, bool), np.zeros(m, bool)
    for rows, squares in _squared_distances(reference, images):
        inside = squares <= reference_radii[rows, None]
        balls += inside.sum(0)
        covered[rows] = inside.any(1)
        recalled[rows] = (squares <= image_radii[None]).any(1)
    return Neighbourhood(
        precision=float((balls > 0).mean()),
        recall=float(recalled.mean()),
        density=float(balls.mean() / k),
        coverage=float(covered.mean()),
    )


def nearest(images: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(index [n] of the reference image nearest to each image, its distance [n]); m >= 1."""
    index, distance = np.zeros(len(images), np.int64), np.zeros(len(images))
    for rows, squares in _squared_distances(images, reference):
        index[rows] = squares.argmin(1)
        distance[rows] = np.sqrt(squares.min(1))
    return index, distance


def squared_radii(features: np.ndarray, k: int) -> np.ndarray:
    """Squared distance [n] of each row of features [n, d] to its k-th nearest other row; n > k."""
    squared_radii = np.zeros(len(features))
    for rows, squares in _squared_distances(features, features):
        squares[np.arange(len(squares)), rows] = np.inf  # itself: rounding may not leave its zero
        squared_radii[rows] = np.partition(squares, k - 1, axis=1)[:, k - 1]
    return squared_radii


def _squared_distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows of a, squared distances [rows, m] to b), DISTANCE_ROWS at a time."""
    # |x - y|^2 = |x|^2 + |y|^2 - 2 x'y about b's mean: about zero, features that all lie far off
    # would cancel, and rounding could exceed the distances between them.
    centre = b.mean(0, dtype=np.float64)
    others = b - centre
    norms = (others**2).sum(1)
    for at in range(0, len(a), DISTANCE_ROWS):
        rows = np.arange(at, min(at + DISTANCE_ROWS, len(a)))
        centred = a[rows] - centre
        squares = (centred**2).sum(1)[:, None] + norms[None] - 2 * centred @ others.T
        yield rows, np.maximum(squares, 0)
