"""Frechet distance between Gaussians fitted to features (Heusel et al. 2017, arXiv 1706.08500). Pure NumPy, float64.

Three exact routes, for what is at hand: two sets of moments, moments and a small reference, two small samples.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Moments:
    """Number, mean [d] and centred second moment [d, d] of features: merged in any order, the same to rounding."""

    n: int
    mean: np.ndarray
    m2: np.ndarray

    @staticmethod
    def of(features: np.ndarray) -> "Moments":
        """Of features [n, d], n >= 1; non-finite ones raise ValueError."""
        if features.ndim != 2 or not len(features):
            raise ValueError(f"features are [n, d] with n >= 1, not {features.shape}")
        if not np.isfinite(features).all():
            raise ValueError("features hold values that are not finite")
        values = features.astype(np.float64)
        mean = values.mean(0)
        centred = values - mean
        return Moments(len(values), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> "Moments":
        """Of both samples together (Chan, Golub, LeVeque 1983)."""
        n = self.n + other.n
        step = other.mean - self.mean
        m2 = self.m2 + other.m2 + np.outer(step, step) * (self.n * other.n / n)
        return Moments(n, self.mean + step * (other.n / n), m2)

    def covariance(self) -> np.ndarray:
        """Unbiased, [d, d]; ValueError below two samples."""
        if self.n < 2:
            raise ValueError("a covariance needs at least 2 images")
        return self.m2 / (self.n - 1)


def frechet(a: Moments, b: Moments) -> float:
    """From moments alone: d x d eigenproblems; the slow route, for two large samples."""
    first, second = a.covariance(), b.covariance()
    values, vectors = np.linalg.eigh(first)
    kept = values > _noise(values)
    factor = vectors[:, kept] * np.sqrt(values[kept])
    return _distance(a.mean, b.mean, np.trace(first), np.trace(second), _roots(factor.T @ second @ factor))


def frechet_to(reference: np.ndarray, a: Moments) -> float:
    """From moments and the features [m, d] of a reference, m < d: an m x m eigenproblem."""
    mean, factor = _factor(reference)
    covariance = a.covariance()
    trace = float((factor**2).sum())
    return _distance(a.mean, mean, np.trace(covariance), trace, _roots(factor @ covariance @ factor.T))


def frechet_between(a: np.ndarray, b: np.ndarray) -> float:
    """From the features [n, d] and [m, d] of two small samples: the nuclear norm of their centred products [n, m]."""
    (first_mean, first), (second_mean, second) = _factor(a), _factor(b)
    root = float(np.linalg.svd(first @ second.T, compute_uv=False).sum())
    return _distance(first_mean, second_mean, float((first**2).sum()), float((second**2).sum()), root)


def _factor(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d] and X [n, d] with X'X the covariance."""
    if len(features) < 2:
        raise ValueError("a covariance needs at least 2 images")
    values = features.astype(np.float64)
    mean = values.mean(0)
    return mean, (values - mean) / np.sqrt(len(values) - 1)


def _roots(product: np.ndarray) -> float:
    """Sum of the square roots of a positive semidefinite matrix's eigenvalues, those of rounding left out."""
    values = np.linalg.eigvalsh((product + product.T) / 2)
    return float(np.sqrt(values[values > _noise(values)]).sum())


def _noise(values: np.ndarray) -> float:
    """Below this an eigenvalue is rounding: its square root would add up to what is no longer negligible."""
    return float(len(values) * np.finfo(np.float64).eps * max(values.max(initial=0.0), 0.0))


def _distance(a: np.ndarray, b: np.ndarray, first: float, second: float, root: float) -> float:
    return float(((a - b) ** 2).sum() + first + second - 2 * root)
