# pyright: strict
"""Frechet distance between Gaussians fitted to features: of Inception-2015, it is the FID.

Heusel et al. 2017, arXiv 1706.08500.

Pure NumPy, float64. A covariance is kept as a factor F with F'F the covariance, never as the
product. The product loses small eigenvalues. With 2,048 features there are many, and the sum of
their square roots matters. With factors A and B of two covariances S and T, tr (S T)^(1/2) is the
sum of the singular values of A B', a matrix no larger than the smaller sample.

Moments of any number of features are kept in memory that does not grow with it: the factor of more
than d rows is reduced by QR to a triangle of d rows. So moments of parts are computed where the
parts are, and merged in any order.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from busray.evidence.stats.intervals import symmetric, t_quantile
from busray.records import MOST_REPLICATES, Interval

FEWEST_REPLICATES = 5
"""Disjoint samples from which a spread is estimated."""

ROWS_AT_ONCE = 4096
"""Rows that Moments.of_parts adds by one QR: twice Inception's features. Fewer cost more time, as
each QR takes the triangle again; more cost memory."""

FEWEST_FOR_INFINITY = 2048
"""Images a side, as many as Inception has features, that frechet_at_infinity needs."""


@dataclass(frozen=True)
class Moments:
    """Number, mean [d] and scatter of features; merged in any order, the same to rounding."""

    n: int
    mean: np.ndarray
    factor: np.ndarray
    """[r, d]: factor' factor is the centred second moment. After a merge r is at most d."""

    @staticmethod
    def of(features: np.ndarray) -> "Moments":
        """Moments of features [n, d], n >= 1. ValueError for another shape or non-finite values."""
        if features.ndim != 2 or not len(features):
            raise ValueError(f"features are [n, d] with n >= 1, not {features.shape}")
        if not np.isfinite(features).all():
            raise ValueError("features hold values that are not finite")
        values = features.astype(np.float64)
        mean = values.mean(0)
        return Moments(len(values), mean, values - mean)

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both samples together (Chan, Golub, LeVeque 1983), in memory that does not
        grow with n."""
        n = self.n + other.n
        step = other.mean - self.mean
        # The scatter between the two means is one more row of the factor.
        between = step * np.sqrt(self.n * other.n / n)
        factor = np.concatenate([self.factor, other.factor, between[None]])
        return Moments(n, self.mean + step * (other.n / n), _reduced(factor))

    @staticmethod
    def of_parts(parts: Iterable[np.ndarray]) -> "Moments":
        """Moments of all rows of parts [n, d], in the memory of ROWS_AT_ONCE rows and one part.

        ValueError as `of`, and where there is no part.
        """
        return Moments.merged(map(Moments.of, _in_batches(parts)))

    @staticmethod
    def merged(moments: Iterable["Moments"]) -> "Moments":
        """All together; they are taken one by one. ValueError where there are none."""
        rest = iter(moments)
        first = next(rest, None)
        if first is None:
            raise ValueError("no features to take moments of")
        return reduce(Moments.merge, rest, first)

    def scaled(self, centre: np.ndarray, scale: np.ndarray) -> "Moments":
        """Moments of (features - centre) / scale, both [d]."""
        return Moments(self.n, (self.mean - centre) / scale, self.factor / scale)

    def packed(self) -> np.ndarray:
        """float64 [2 + d + d (d + 1) / 2]: n, d, the mean, the factor's triangle row by row.

        For Inception's 2,048 features 16.8 MB, half of what a scatter matrix takes.
        """
        d = len(self.mean)
        triangle = np.zeros((d, d))
        reduced = np.linalg.qr(self.factor, mode="r")
        triangle[: len(reduced)] = reduced
        return np.concatenate([[self.n, d], self.mean, triangle[np.triu_indices(d)]])

    @staticmethod
    def unpacked(values: np.ndarray) -> "Moments":
        """What `packed` packed. ValueError where the values cannot be that."""
        if values.ndim != 1 or len(values) < 2 or values.dtype != np.float64 or not np.isfinite(values).all():
            raise ValueError("no packed moments")
        n, d = int(values[0]), int(values[1])
        if n < 1 or d < 1 or len(values) != 2 + d + d * (d + 1) // 2:
            raise ValueError(f"{len(values)} values are no moments of {n} rows of {d} features")
        factor = np.zeros((d, d))
        factor[np.triu_indices(d)] = values[2 + d :]
        return Moments(n, values[2 : 2 + d].copy(), factor)


def frechet(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2), with unbiased covariances S.

    ValueError below two images per side.
    """
    if min(a.n, b.n) < 2:
        raise ValueError("a covariance needs at least 2 images")
    first, second = a.factor / np.sqrt(a.n - 1), b.factor / np.sqrt(b.n - 1)
    if min(len(first), len(second)) > first.shape[1]:
        # Both samples are larger than d: a QR of each is cheaper than the SVD of n x m values.
        first, second = _reduced(first), _reduced(second)
    root = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    return float(((a.mean - b.mean) ** 2).sum() + (first**2).sum() + (second**2).sum() - 2 * root)


@dataclass(frozen=True)
class FrechetSpread:
    """A distance of n images from a reference, and its spread over disjoint samples of images."""

    value: float
    interval: Interval | None
    """95 %, about the mean distance of n such images from this reference. None: too few images."""
    replicates: int | None
    """Disjoint samples that the interval is from."""


def frechet_spread(samples: Sequence[np.ndarray], sizes: Sequence[int], reference: np.ndarray) -> FrechetSpread:
    """Distance of n = sum(sizes) images from a reference [m, d], with its spread.

    samples: for each class features [at least its size, d], in random order.

    With FEWEST_REPLICATES x n images or more, the value is the mean over disjoint replicates of n
    images, with Student's interval of a mean. Otherwise the value is that of the first n images,
    and the interval is by sectioning in FEWEST_REPLICATES parts (Asmussen and Glynn 2007, III.5).
    """
    target = Moments.of(reference)
    whole = min(MOST_REPLICATES, *(len(rows) // n for rows, n in zip(samples, sizes, strict=True)))
    if whole >= FEWEST_REPLICATES:
        enough = [rows[: whole * n] for rows, n in zip(samples, sizes, strict=True)]
        values = _distances(_parts(enough, whole), target)
        value = float(np.mean(values))
    else:
        first = [rows[:n] for rows, n in zip(samples, sizes, strict=True)]
        value = frechet(Moments.of(np.concatenate(first)), target)
        if min(sizes) < 2 * FEWEST_REPLICATES:  # a part needs 2 images of every class
            return FrechetSpread(value, None, None)
        # Parts have a larger bias than n images. That shifts all of them alike, and only their
        # spread is used: over the root of their number it is that of n images, or more where d is
        # large.
        values = _distances(_parts(first, FEWEST_REPLICATES), target)
    half = t_quantile(0.975, len(values) - 1) * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return FrechetSpread(value, symmetric(value, half).interval, len(values))


def frechet_at_infinity(samples: Sequence[np.ndarray], reference: np.ndarray) -> float | None:
    """Distance from a reference [m, d] extrapolated to infinitely many images; samples as above.

    A line over 1/n through the distances of 1/1, 1/2, ... of the images (Chong and Forsyth 2020,
    arXiv 1911.07023), each the mean of all its disjoint parts. The reference's own bias stays.
    None below FEWEST_FOR_INFINITY reference images, or twice as many drawn ones.
    """
    most = min(5, sum(map(len, samples)) // FEWEST_FOR_INFINITY)
    if len(reference) < FEWEST_FOR_INFINITY or most < 2:
        return None
    target = Moments.of(reference)
    counts = range(1, most + 1)
    values = [float(np.mean(_distances(_parts(samples, count), target))) for count in counts]
    return float(np.polynomial.Polynomial.fit(counts, values, 1)(0))


def _distances(parts: Sequence[np.ndarray], target: Moments) -> list[float]:
    return [frechet(Moments.of(part), target) for part in parts]


def _parts(samples: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """`count` disjoint parts, each with its share of every class."""
    return [np.concatenate([rows[i::count] for rows in samples]) for i in range(count)]


def _in_batches(parts: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    """The rows of the parts in their order, at most ROWS_AT_ONCE together."""
    waiting: list[np.ndarray] = []
    for part in parts:
        for at in range(0, len(part), ROWS_AT_ONCE):
            rows = part[at : at + ROWS_AT_ONCE]
            if waiting and sum(map(len, waiting)) + len(rows) > ROWS_AT_ONCE:
                yield np.concatenate(waiting)
                waiting = []
            waiting.append(rows)
    if waiting:
        yield np.concatenate(waiting)


def _reduced(factor: np.ndarray) -> np.ndarray:
    """A factor [min(r, d), d] of the same product. QR keeps the small singular values."""
    if len(factor) <= factor.shape[1]:
        return factor
    return np.linalg.qr(factor, mode="r")  # pyright: ignore[reportReturnType] (an array in this mode)
