# pyright: strict
"""Kernel distance (KID: Binkowski et al. 2018, arXiv 1801.01401): unbiased squared MMD,
jackknifed.

Pure NumPy, float64. No subsets are drawn: every image counts, and the value is the same each
time.

Near-duplicates and images of one patient form a unit. A unit counts as one independent draw.
Copies are alike whatever the distribution, so pairs of images of one unit would make the distance
too large; the estimate leaves these pairs out. The jackknife leaves out whole units, so copies do
not narrow an interval. Where every image is its own unit this is the usual KID. `units` are labels
[n]; None means that every image is its own unit.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from busray.evidence.stats.intervals import NORMAL_QUANTILE, Estimate, symmetric
from busray.evidence.stats.samples import one_of_each_unit, unit_numbers

PERMUTATIONS = 999

FEWEST_TO_JACKKNIFE = 3
"""Units per side from which on one of them can be left out."""

KERNEL_ROWS = 1024
"""Rows of a kernel matrix that are in memory at once."""


def polynomial_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """k(x, y) = (x'y / d + 1)^3 of features [n, d] and [m, d] -> [n, m]."""
    return (a.astype(np.float64) @ b.astype(np.float64).T / a.shape[1] + 1) ** 3


def kid(
    images: np.ndarray,
    reference: np.ndarray,
    reference_units: np.ndarray | None = None,
    image_units: np.ndarray | None = None,
) -> Estimate:
    """KID of features [n, d] against [m, d], with units [m] and [n].

    The interval is that of the delete-one-unit jackknife. ValueError below FEWEST_TO_JACKKNIFE
    units per side.
    """
    labels = unit_numbers(image_units, images), unit_numbers(reference_units, reference)
    return _estimate(_leave_one_out(images, reference, *labels))


def kid_p_value(
    images: np.ndarray,
    reference: np.ndarray,
    reference_units: np.ndarray | None = None,
    image_units: np.ndarray | None = None,
    classes: np.ndarray | None = None,
    image_classes: np.ndarray | None = None,
    seed: int = 0,
) -> float:
    """Probability of a KID at least this large if both samples were of one distribution.

    A permutation test (Gretton et al. 2012, JMLR 13) with PERMUTATIONS random relabellings. The
    observed labels count among them, so the p-value is never 0.

    Units change sides as wholes: one image of each, picked by seed, stands for it. If a random
    image of a random unit is distributed as a drawn image is, these images are exchangeable.
    Images of one unit are not (they come together), nor are units at full size, since the large
    ones are all real.

    classes, image_classes: labels [m] and [n], of both sides or of neither. Images then change
    sides within their class, which is exact whatever the class shares of the two sides. The
    distance is that of mixtures with the reference's shares; a class that one side lacks is
    ignored.
    """
    if classes is None or image_classes is None:
        classes, image_classes = np.zeros(len(reference)), np.zeros(len(images))
    rng = np.random.default_rng(seed)
    of_images, of_reference = one_of_each_unit(image_units, rng), one_of_each_unit(reference_units, rng)
    # The MMD^2 of a mixture of classes c with shares s_c is the sum over pairs of classes of
    # s_c s_e w_c' K w_e, with weights w = 1/n on one side and -1/m on the other. Each row of
    # `values`, `first` and `weights` is one relabelling; row 0 has the observed labels.
    values = np.zeros(PERMUTATIONS + 1)
    earlier: list[tuple[np.ndarray, np.ndarray]] = []
    for name in np.intersect1d(image_classes[of_images], classes[of_reference]):
        x = images[of_images][image_classes[of_images] == name]
        y = reference[of_reference][classes[of_reference] == name]
        share, n, m, pooled = (classes == name).mean(), len(x), len(y), np.concatenate([x, y])
        first = np.zeros((PERMUTATIONS + 1, n + m))
        first[:, :n] = 1
        first[1:] = rng.permuted(first[1:], axis=1)
        values += share**2 * _relabelled_mmd(pooled, first)
        weights = share * (first / n - (1 - first) / m)
        for other_pooled, other_weights in earlier:
            values += 2 * ((weights @ polynomial_kernel(pooled, other_pooled)) * other_weights).sum(1)
        earlier.append((pooled, weights))
    return float((values >= values[0] - 1e-12 * abs(values[0])).mean())


def _relabelled_mmd(pooled: np.ndarray, first: np.ndarray) -> np.ndarray:
    """MMD^2 [r] of images pooled [n, d] where first [r, n] is 1, against those where it is 0."""
    kernel = polynomial_kernel(pooled, pooled)
    np.fill_diagonal(kernel, 0)
    towards = first @ kernel
    within, across = (towards * first).sum(1), (towards * (1 - first)).sum(1)
    others = kernel.sum() - within - 2 * across
    n = first[0].sum()
    m = first.shape[1] - n
    # A lone image has no pairs: its sum is 0, and max keeps the division defined.
    return within / max(1, n * (n - 1)) + others / max(1, m * (m - 1)) - 2 * across / (n * m)


def kid_difference(
    a: np.ndarray, b: np.ndarray, reference: np.ndarray, reference_units: np.ndarray | None = None
) -> Estimate:
    """KID of a minus KID of b, both [n, d], against one reference [m, d] with units [m].

    Row i of a and of b were drawn from the same seed. The jackknife leaves out a pair or a unit of
    the reference at a time, so what the arms share does not widen the interval. ValueError where a
    and b differ in n.
    """
    if len(a) != len(b):
        raise ValueError(f"seed-paired arms have equal n, not {len(a)} and {len(b)}")
    labels = unit_numbers(None, a), unit_numbers(reference_units, reference)
    first, second = _leave_one_out(a, reference, *labels), _leave_one_out(b, reference, *labels)
    return _estimate(
        LeftOut(
            first.value - second.value,
            first.without_image - second.without_image,
            first.without_reference - second.without_reference,
        )
    )


class LeftOut(NamedTuple):
    """MMD^2 of everything, without each unit of the images, and without each of the reference."""

    value: float
    without_image: np.ndarray
    without_reference: np.ndarray


def _estimate(mmd: LeftOut) -> Estimate:
    # The two samples are independent, so their jackknife variances add up.
    variance = _jackknife_variance(mmd.without_image) + _jackknife_variance(mmd.without_reference)
    return symmetric(mmd.value, NORMAL_QUANTILE * float(np.sqrt(variance)))


def _jackknife_variance(left_out: np.ndarray) -> float:
    n = len(left_out)
    return float((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())


def _leave_one_out(x: np.ndarray, y: np.ndarray, x_units: np.ndarray, y_units: np.ndarray) -> LeftOut:
    """From row sums of three kernels: no kernel is computed again for a unit that is left out."""
    x_sizes, y_sizes = np.bincount(x_units), np.bincount(y_units)
    if min(len(x_sizes), len(y_sizes)) < FEWEST_TO_JACKKNIFE:
        raise ValueError(
            f"a kernel distance with its interval needs at least {FEWEST_TO_JACKKNIFE} independent "
            f"images per side, not {len(x_sizes)} and {len(y_sizes)}"
        )
    x_mean, x_without = _within(x, x_units, x_sizes)
    y_mean, y_without = _within(y, y_units, y_sizes)
    n, m = len(x), len(y)
    towards_x, towards_y = np.zeros(n), np.zeros(m)
    for rows, kernel in _kernel_blocks(x, y):
        towards_x[rows] = kernel.sum(1)
        towards_y += kernel.sum(0)
    across = towards_x.sum()
    value = x_mean + y_mean - 2 * across / (n * m)
    across_x = (across - np.bincount(x_units, towards_x)) / ((n - x_sizes) * m)
    across_y = (across - np.bincount(y_units, towards_y)) / (n * (m - y_sizes))
    return LeftOut(float(value), x_without + y_mean - 2 * across_x, x_mean + y_without - 2 * across_y)


def _within(x: np.ndarray, units: np.ndarray, sizes: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean kernel over the pairs of different units, of all of them and without each unit."""
    towards = np.zeros(len(x))
    for rows, kernel in _kernel_blocks(x, x):
        kernel[units[rows, None] == units[None]] = 0
        towards[rows] = kernel.sum(1)
    total, pairs = towards.sum(), len(x) ** 2 - (sizes**2).sum()
    # Leaving out a unit removes its rows and its columns: each of its pairs counts twice.
    without = total - 2 * np.bincount(units, towards)
    return total / pairs, without / (pairs - 2 * sizes * (len(x) - sizes))


def _kernel_blocks(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows of a, their kernel [rows, m]), KERNEL_ROWS at a time."""
    for at in range(0, len(a), KERNEL_ROWS):
        rows = np.arange(at, min(at + KERNEL_ROWS, len(a)))
        yield rows, polynomial_kernel(a[rows], b)
