"""Kernel distance (KID: Binkowski et al. 2018, arXiv 1801.01401): unbiased squared MMD, with jackknife intervals.

Pure NumPy, float64. No subsets are drawn: every image counts, and the figure is the same each time.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

QUANTILE = NormalDist().inv_cdf(0.975)
PERMUTATIONS = 999


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    interval: tuple[float, float]

    @property
    def excludes_zero(self) -> bool:
        return not self.interval[0] <= 0 <= self.interval[1]


def polynomial_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """k(x, y) = (x'y / d + 1)^3 of features [n, d] and [m, d] -> [n, m]."""
    return (a.astype(np.float64) @ b.astype(np.float64).T / a.shape[1] + 1) ** 3


def kid(images: np.ndarray, reference: np.ndarray) -> Estimate:
    """KID of features [n, d] against [m, d], n and m >= 3."""
    return _estimate(*_leave_one_out(images, reference))


def kid_p_value(images: np.ndarray, reference: np.ndarray, seed: int = 0) -> float:
    """Probability of a KID at least this large if both were of one distribution: a permutation test (Gretton et al.
    2012), in PERMUTATIONS random relabellings; the observed one counts among them, so it is never 0."""
    n, m = len(images), len(reference)
    pooled = np.concatenate([images, reference])
    kernel = polynomial_kernel(pooled, pooled)
    np.fill_diagonal(kernel, 0)
    first = np.zeros((PERMUTATIONS + 1, n + m))
    first[:, :n] = 1
    first[1:] = np.random.default_rng(seed).permuted(first[1:], axis=1)
    towards = first @ kernel
    within, across = (towards * first).sum(1), (towards * (1 - first)).sum(1)
    others = kernel.sum() - within - 2 * across
    values = within / (n * (n - 1)) + others / (m * (m - 1)) - 2 * across / (n * m)
    return float((values >= values[0] - 1e-12 * abs(values[0])).mean())


def kid_difference(a: np.ndarray, b: np.ndarray, reference: np.ndarray) -> Estimate:
    """KID of a minus KID of b, both [n, d], row i of each drawn from the same seed, against one reference [m, d].

    The jackknife drops a pair or a reference image at a time, so what the arms share does not widen the interval.
    """
    if len(a) != len(b):
        raise ValueError(f"seed-paired arms have equal n, not {len(a)} and {len(b)}")
    value, without_image, without_reference = _leave_one_out(a, reference)
    other_value, without_other_image, without_other_reference = _leave_one_out(b, reference)
    return _estimate(
        value - other_value, without_image - without_other_image, without_reference - without_other_reference
    )


def _estimate(value: float, without_image: np.ndarray, without_reference: np.ndarray) -> Estimate:
    """Normal interval from the jackknife variances of the two samples, which are independent."""
    half = QUANTILE * float(np.sqrt(_variance(without_image) + _variance(without_reference)))
    return Estimate(float(value), (float(value) - half, float(value) + half))


def _variance(left_out: np.ndarray) -> float:
    n = len(left_out)
    return float((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())


def _leave_one_out(x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """MMD^2 of all, without each image [n], and without each reference image [m], from row sums of three kernels."""
    n, m = len(x), len(y)
    if min(n, m) < 3:
        raise ValueError(f"a kernel distance with its interval needs at least 3 images a side, not {n} and {m}")
    xx, yy, xy = polynomial_kernel(x, x), polynomial_kernel(y, y), polynomial_kernel(x, y)
    np.fill_diagonal(xx, 0)
    np.fill_diagonal(yy, 0)
    within_x, within_y, across = xx.sum(), yy.sum(), xy.sum()
    value = within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * across / (n * m)
    without_image = (
        (within_x - 2 * xx.sum(1)) / ((n - 1) * (n - 2))
        + within_y / (m * (m - 1))
        - 2 * (across - xy.sum(1)) / ((n - 1) * m)
    )
    without_reference = (
        within_x / (n * (n - 1))
        + (within_y - 2 * yy.sum(1)) / ((m - 1) * (m - 2))
        - 2 * (across - xy.sum(0)) / (n * (m - 1))
    )
    return float(value), without_image, without_reference
