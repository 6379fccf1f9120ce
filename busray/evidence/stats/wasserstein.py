"""Wasserstein-1 distance of two samples, and its p-value by permutation. Pure NumPy."""

import numpy as np

from busray.evidence.stats.kernel import PERMUTATIONS
from busray.evidence.stats.samples import Sample, picked

BLOCK = 500
"""Permutations that are in memory at once."""


def wasserstein(x: np.ndarray, y: np.ndarray) -> float:
    """Wasserstein-1 distance of samples [n] and [m]: the area between their distribution functions, in their unit."""
    values = np.concatenate([x, y])
    order = np.argsort(values, kind="stable")
    return float(_between(np.diff(values[order]), (np.arange(len(values)) < len(x))[order]))


def enough_permutations(tests: int) -> int:
    """Permutations of each of so many tests: PERMUTATIONS, or as many more as let the least p-value be a fifth of the
    level 0.05 / tests that Bonferroni asks of each."""
    return max(PERMUTATIONS, 100 * tests - 1)


def wasserstein_p_value(x: Sample, y: Sample, seed: int = 0, permutations: int = PERMUTATIONS) -> float:
    """Probability of a distance at least this large between samples of one distribution, by permutation; the observed
    one counts among them, so it is at least 1 / (permutations + 1).

    Clusters change sides as wholes, each carried by one of its images, as in kernel.kid_p_value.
    """
    rng = np.random.default_rng(seed)
    first, second = (s.features[picked(s.units, rng)] for s in (x, y))
    values = np.concatenate([first, second])
    order = np.argsort(values, kind="stable")
    gaps, ours = np.diff(values[order]), (np.arange(len(values)) < len(first))[order]
    observed = _between(gaps, ours)
    reached = 0
    for at in range(0, permutations, BLOCK):
        sides = rng.permuted(np.tile(ours, (min(BLOCK, permutations - at), 1)), axis=1)
        reached += int((_between(gaps, sides) >= observed * (1 - 1e-12)).sum())
    return (reached + 1) / (permutations + 1)


def _between(gaps: np.ndarray, ours: np.ndarray) -> np.ndarray:
    """The distances [...] from the gaps between sorted values [n - 1], and which of these are the first sample's: bool
    [..., n]."""
    below = np.cumsum(ours, -1)
    first = below[..., -1:]
    other = np.arange(1, ours.shape[-1] + 1) - below
    return (np.abs(below / first - other / (ours.shape[-1] - first))[..., :-1] * gaps).sum(-1)
