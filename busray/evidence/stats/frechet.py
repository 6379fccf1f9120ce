"""Frechet distance between Gaussians fitted to features (Heusel et al. 2017, arXiv 1706.08500). Pure NumPy, float64.

A covariance is kept as a factor F with F'F the covariance, never as the product: squaring rounds off small eigenvalues,
of which 2,048 features have many, and their square roots add up. With A and B the factors of two covariances S and T,
tr (S T)^(1/2) is the sum of the singular values of A B': of a matrix no larger than the smaller sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from busray.evidence.stats.intervals import t_quantile
from busray.records import Interval

SECTIONS = 5
"""Disjoint samples that a spread is from, at least."""


MOST = 10
"""As many at most: images beyond are not looked at."""


ESTIMABLE = 2048
"""Images a side, as many as Inception has features, that a distance at infinitely many images needs."""


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


@dataclass(frozen=True)
class Spread:
    """A distance between n images and a reference, and over how many disjoint samples of images it spreads how far."""

    value: float
    interval: Interval | None
    """Of 95 %, about the mean distance of n such images from this reference; None where images are too few."""
    replicates: int | None


def frechet_spread(samples: Sequence[np.ndarray], sizes: Sequence[int], reference: np.ndarray) -> Spread:
    """Distance of n = sum(sizes) images from a reference [m, d], with its spread conditional on that reference.

    samples: a class each, features [at least its size, d] in an order by chance. Where there are images for SECTIONS or
    more disjoint replicates of n, the value is their mean and the interval that of a mean (t). Else the value is that
    of the first n images and the interval is by sectioning (Asmussen, Glynn 2007, III.5): n is cut in SECTIONS disjoint
    parts, each with its share of every class; they lie off by a larger bias, which does not matter, and their standard
    deviation over the root of their number is that of n images, or more where d is much larger than a part.
    """
    target = Moments.of(reference)
    whole = min(MOST, *(len(rows) // n for rows, n in zip(samples, sizes, strict=True)))
    if whole >= SECTIONS:
        parts = _parts([rows[: whole * n] for rows, n in zip(samples, sizes, strict=True)], whole)
        values = [frechet(Moments.of(part), target) for part in parts]
        value = float(np.mean(values))
    else:
        first = [rows[:n] for rows, n in zip(samples, sizes, strict=True)]
        value = frechet(Moments.of(np.concatenate(first)), target)
        if min(sizes) < 2 * SECTIONS:
            return Spread(value, None, None)
        parts = _parts(first, SECTIONS)
        values = [frechet(Moments.of(part), target) for part in parts]
    half = t_quantile(0.975, len(parts) - 1) * float(np.std(values, ddof=1)) / len(parts) ** 0.5
    return Spread(value, Interval(value - half, value + half), len(parts))


def frechet_at_infinity(samples: Sequence[np.ndarray], reference: np.ndarray) -> float | None:
    """Distance from a reference at infinitely many images: a line through that of 1/1, 1/2, ... of the images over 1/n
    (Chong, Forsyth 2020, arXiv 1911.07023), each the mean of all its disjoint parts; the reference's own bias stays.

    None, for not estimable, below ESTIMABLE images in the reference, or twice as many drawn ones.
    """
    most = min(5, sum(map(len, samples)) // ESTIMABLE)
    if len(reference) < ESTIMABLE or most < 2:
        return None
    target = Moments.of(reference)
    values = []
    for parts in range(1, most + 1):
        values.append(np.mean([frechet(Moments.of(part), target) for part in _parts(samples, parts)]))
    return float(np.polynomial.Polynomial.fit(range(1, most + 1), values, 1)(0))


def _parts(samples: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """Disjoint parts, each with its share of every class."""
    return [np.concatenate([rows[i::count] for rows in samples]) for i in range(count)]


def _reduced(factor: np.ndarray) -> np.ndarray:
    """A factor [min(r, d), d] of the same product, by QR, which loses nothing of the small ones."""
    if len(factor) <= factor.shape[1]:
        return factor
    return np.linalg.qr(factor, mode="r")  # pyright: ignore[reportReturnType] (an array in this mode)
