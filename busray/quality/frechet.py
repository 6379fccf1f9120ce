"""Frechet distance between Gaussians fitted to features (Heusel et al. 2017, arXiv 1706.08500). Pure NumPy, float64.

A covariance is kept as a factor F with F'F the covariance, never as the product: squaring rounds off small eigenvalues,
of which 2,048 features have many, and their square roots add up. With A and B the factors of two covariances S and T,
tr (S T)^(1/2) is the sum of the singular values of A B': of a matrix no larger than the smaller sample.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Moments:
    """Number, mean [d] and scatter of features: merged in any order, the same to rounding."""

    n: int
    mean: np.ndarray
    factor: np.ndarray
    """[r, d], of which factor' factor is the centred second moment; after a merge r is at most d."""

    @staticmethod
    def of(features: np.ndarray) -> "Moments":
        """Of features [n, d], n >= 1; non-finite ones raise ValueError."""
        if features.ndim != 2 or not len(features):
            raise ValueError(f"features are [n, d] with n >= 1, not {features.shape}")
        if not np.isfinite(features).all():
            raise ValueError("features hold values that are not finite")
        values = features.astype(np.float64)
        mean = values.mean(0)
        return Moments(len(values), mean, values - mean)

    def merge(self, other: "Moments") -> "Moments":
        """Of both samples together (Chan, Golub, LeVeque 1983), in memory that does not grow with n."""
        n = self.n + other.n
        step = other.mean - self.mean
        between = step * np.sqrt(self.n * other.n / n)
        factor = np.concatenate([self.factor, other.factor, between[None]])
        return Moments(n, self.mean + step * (other.n / n), _reduced(factor))


def frechet(a: Moments, b: Moments) -> float:
    """Squared distance of the means, plus the traces of both covariances less twice that of their product's root.

    Unbiased covariances; ValueError below two images a side.
    """
    if min(a.n, b.n) < 2:
        raise ValueError("a covariance needs at least 2 images")
    first, second = a.factor / np.sqrt(a.n - 1), b.factor / np.sqrt(b.n - 1)
    if min(len(first), len(second)) > first.shape[1]:
        first, second = _reduced(first), _reduced(second)
    root = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    return float(((a.mean - b.mean) ** 2).sum() + (first**2).sum() + (second**2).sum() - 2 * root)


def _reduced(factor: np.ndarray) -> np.ndarray:
    """A factor [min(r, d), d] of the same product, by QR, which loses nothing of the small ones."""
    if len(factor) <= factor.shape[1]:
        return factor
    return np.linalg.qr(factor, mode="r")  # pyright: ignore[reportReturnType] (an array in this mode)
