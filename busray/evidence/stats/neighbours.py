"""Do synthetic images lie where real ones are, and everywhere they are: nearest-neighbour measures on features.

Precision and recall: Kynkaanniemi et al. 2019 (arXiv 1904.06991). Density and coverage: Naeem et al. 2020
(arXiv 2002.09797). Pure NumPy; the distances of BLOCK rows at a time are in memory, in float64.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BLOCK = 512


@dataclass(frozen=True)
class Neighbourhood:
    """Shares in 0..1, but density, which is 1 on average where both samples are of one distribution."""

    precision: float
    """Of the images, those within the k-th neighbour's distance of any reference image."""
    recall: float
    """Of the reference, those within the k-th neighbour's distance of any image."""
    density: float
    """Mean number of reference balls around an image, over k."""
    coverage: float
    """Of the reference, those with an image in their ball."""


def neighbourhood(images: np.ndarray, reference: np.ndarray, k: int = 5) -> Neighbourhood:
    """Of images [n, d] against reference [m, d]; n, m > k. A ball's edge belongs to it."""
    n, m = len(images), len(reference)
    if min(n, m) <= k:
        raise ValueError(f"the {k}-th neighbour needs more than {k} images a side, not {n} and {m}")
    image_radii, reference_radii = radii(images, k), radii(reference, k)
    balls = np.zeros(n)
    recalled, covered = np.zeros(m, bool), np.zeros(m, bool)
    for rows, squares in _squares(reference, images):
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
    """Index [n] of each image's nearest reference image and its distance [n]."""
    index, distance = np.zeros(len(images), np.int64), np.zeros(len(images))
    for rows, squares in _squares(images, reference):
        index[rows] = squares.argmin(1)
        distance[rows] = np.sqrt(squares.min(1))
    return index, distance


def radii(features: np.ndarray, k: int) -> np.ndarray:
    """Squared distance [n] of each row to its k-th nearest other row."""
    radii = np.zeros(len(features))
    for rows, squares in _squares(features, features):
        squares[np.arange(len(squares)), rows] = np.inf  # itself, whatever rounding made of its zero
        radii[rows] = np.partition(squares, k - 1, axis=1)[:, k - 1]
    return radii


def _squares(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows of a, squared distances [rows, m]) a block at a time.

    From inner products about b's mean: less cancellation than about zero, where features all lie far off.
    """
    centre = b.mean(0, dtype=np.float64)
    others = b - centre
    norms = (others**2).sum(1)
    for at in range(0, len(a), BLOCK):
        rows = np.arange(at, min(at + BLOCK, len(a)))
        here = a[rows] - centre
        yield rows, np.maximum((here**2).sum(1)[:, None] + norms[None] - 2 * here @ others.T, 0)
