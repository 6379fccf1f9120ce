# pyright: strict
"""Wasserstein-1 distance of two samples of numbers, and its p-value by permutation. Pure NumPy."""

import numpy as np

from busray.evidence.stats.kernel import PERMUTATIONS
from busray.evidence.stats.samples import Sample, one_of_each_unit

PERMUTATIONS_AT_ONCE = 500
"""Permutations that are in memory at once."""


def wasserstein(x: np.ndarray, y: np.ndarray) -> float:
    """Distance of samples [n] and [m], in their unit: the area between their distribution functions
    (Vallender 1974)."""
    values = np.concatenate([x, y])
    order = np.argsort(values, kind="stable")
    return float(_between(np.diff(values[order]), (np.arange(len(values)) < len(x))[order]))


def enough_permutations(tests: int) -> int:
    """Permutations for each of `tests` tests, at least PERMUTATIONS.

    Bonferroni asks 0.05 / tests of each. The least p-value possible is a fifth of that or less.
    """
    return max(PERMUTATIONS, 100 * tests - 1)


def wasserstein_p_value(x: Sample, y: Sample, seed: int = 0, permutations: int = PERMUTATIONS) -> float:
    """Probability of a distance at least this large if both samples, of features [n] and [m],
    were of one distribution, by permutation.

    The observed labels count among the permutations, so it is at least 1 / (permutations + 1).
    Units change sides as wholes, one random image for each, as in kernel.kid_p_value.
    """
    rng = np.random.default_rng(seed)
    first, second = (s.features[one_of_each_unit(s.units, rng)] for s in (x, y))
    values = np.concatenate([first, second])
    # The pooled values never change: they are sorted once, and only their sides are permuted.
    order = np.argsort(values, kind="stable")
    gaps, in_first = np.diff(values[order]), (np.arange(len(values)) < len(first))[order]
    observed = _between(gaps, in_first)
    reached = 0
    for at in range(0, permutations, PERMUTATIONS_AT_ONCE):
        count = min(PERMUTATIONS_AT_ONCE, permutations - at)
        sides = rng.permuted(np.tile(in_first, (count, 1)), axis=1)
        reached += int((_between(gaps, sides) >= observed * (1 - 1e-12)).sum())
    return (reached + 1) / (permutations + 1)


def _between(gaps: np.ndarray, in_first: np.ndarray) -> np.ndarray:
    """Distances [...] from the gaps [n - 1] between sorted values, of which those where in_first
    [..., n] is true are the first sample's."""
    n: int = in_first.shape[-1]
    of_first = np.cumsum(in_first, -1)
    of_second = np.arange(1, n + 1) - of_first
    in_all = of_first[..., -1:]
    apart = np.abs(of_first / in_all - of_second / (n - in_all))
    return (apart[..., :-1] * gaps).sum(-1)
