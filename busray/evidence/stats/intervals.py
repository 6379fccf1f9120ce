"""Estimates with 95 % intervals: shares, means, medians, Student's t. Numbers in, numbers out."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from busray.records import Interval

NORMAL = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    interval: Interval


def t_cdf(t: float, freedom: float) -> float:
    """Student's distribution function."""
    angle, area = _half_of_t(freedom)
    inside = float(np.interp(np.arctan(abs(t) / np.sqrt(freedom)), angle, area))
    return 0.5 + np.sign(t) * inside / 2


def t_quantile(probability: float, freedom: float) -> float:
    """The t whose distribution function is probability (0.5 or above, below 1)."""
    angle, area = _half_of_t(freedom)
    return float(np.sqrt(freedom) * np.tan(np.interp(2 * probability - 1, area, angle)))


def _half_of_t(freedom: float) -> tuple[np.ndarray, np.ndarray]:
    """(angles, share of t's positive half below each): with t = sqrt(freedom) tan(angle) its density is
    cos(angle)^(freedom - 1), which is nothing from t = 40 on where freedom is large."""
    angle = np.linspace(0, min(np.pi / 2, 40 / np.sqrt(freedom)), 20_001)
    density = np.cos(angle) ** (freedom - 1)
    area = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return angle, area / area[-1]


QUANTILE = NormalDist().inv_cdf(0.975)


def newcombe(value: float, m: int, n: int) -> Interval:
    """95 % interval of an AUC from m and n independent images.

    Newcombe's (2006, doi 10.1002/sim.2324, method 5), which keeps its coverage where nearly every pair is in order: of
    five-point scores with 12 a side and a true value of 0.98, DeLong's covered 62 % in simulation.
    """

    def inside(t: float) -> bool:
        spread = 1 + ((m + n) / 2 - 1) * ((1 - t) / (2 - t) + t / (1 + t))
        return (value - t) ** 2 <= QUANTILE**2 * t * (1 - t) * spread / (m * n)

    ends = []
    for outer in (0.0, 1.0):
        inner = value
        for _ in range(50):
            middle = (inner + outer) / 2
            inner, outer = (middle, outer) if inside(middle) else (inner, middle)
        ends.append((inner + outer) / 2)
    return Interval(*ends)


def wilson(part: float, whole: int) -> Interval:
    """Wilson's 95 % interval of a share (1927); whole >= 1."""
    share, z2 = part / whole, QUANTILE**2
    middle = (share + z2 / (2 * whole)) / (1 + z2 / whole)
    half = QUANTILE / (1 + z2 / whole) * (share * (1 - share) / whole + z2 / (4 * whole**2)) ** 0.5
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def mean_of_estimates(estimates: Sequence[Estimate]) -> Estimate:
    """Mean of independent estimates, its interval recovered from theirs (MOVER: Zou and Donner 2008, doi
    10.1002/sim.3095)."""
    value, k = sum(e.value for e in estimates) / len(estimates), len(estimates)
    below, above = (sum((e.value - e.interval[side]) ** 2 for e in estimates) ** 0.5 / k for side in (0, 1))
    return Estimate(value, Interval(value - below, value + above))


def difference_of_estimates(one: Estimate, other: Estimate) -> Estimate:
    """One less the other, independent of it; interval as of mean, which for two shares is Newcombe's (1998, method 10,
    doi 10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I)."""
    value = one.value - other.value
    below = ((one.value - one.interval[0]) ** 2 + (other.interval[1] - other.value) ** 2) ** 0.5
    above = ((one.interval[1] - one.value) ** 2 + (other.value - other.interval[0]) ** 2) ** 0.5
    return Estimate(value, Interval(value - below, value + above))


def jackknife_mean(values: np.ndarray, units: np.ndarray) -> Estimate:
    """Mean of values [n] with the delete-one-cluster jackknife over units [n], at least 2 of them, and Student's t."""
    _, number = np.unique(units, return_inverse=True)
    sizes, sums = np.bincount(number), np.bincount(number, values)
    without = (values.sum() - sums) / (len(values) - sizes)
    k = len(sizes)
    half = t_quantile(0.975, k - 1) * float(np.sqrt((k - 1) / k * ((without - without.mean()) ** 2).sum()))
    mean = float(values.mean())
    return Estimate(mean, Interval(mean - half, mean + half))


def share_of_units(values: np.ndarray, units: np.ndarray) -> Estimate:
    """Share of true values [n]. Images of one of units [n] are not independent: Wilson's interval is that of as many
    images as there are units."""
    part, whole = float(values.mean()), len(np.unique(units))
    return Estimate(part, wilson(part * whole, whole))


def median_interval(values: np.ndarray) -> Interval | None:
    """Interval of the median of 95 % or more, whatever the distribution, between two order statistics; None below 6
    values, where there is none (binomial; David and Nagaraja, Order Statistics, 2003, 7.1)."""
    n = len(values)
    k = np.arange(n)
    steps = np.concatenate([[-n * np.log(2)], np.log((n - k) / (k + 1))])
    below = int((np.cumsum(np.exp(np.cumsum(steps))) <= 0.025).sum())  # P(binomial(n, 1/2) < below) <= 2.5 %
    if below == 0:
        return None
    ordered = np.sort(values)
    return Interval(float(ordered[below - 1]), float(ordered[n - below]))
