# pyright: strict
"""Images of one side of a comparison as features, with what counts as one independent draw."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FEWEST_UNITS = 3
"""Independent images per side below which a class has no figure of its own."""


class Sample(NamedTuple):
    """Images of one side of a comparison."""

    features: np.ndarray
    """[n, d]"""
    units: np.ndarray
    """[n] labels: images of one label (near-duplicates, a patient) are one independent draw."""
    classes: np.ndarray
    """[n] class names"""

    def rows(self, chosen: slice | np.ndarray) -> "Sample":
        return Sample(self.features[chosen], self.units[chosen], self.classes[chosen])

    @staticmethod
    def of(features: np.ndarray, units: np.ndarray, class_name: str) -> "Sample":
        """Images of one class."""
        return Sample(features, units, np.full(len(features), class_name))

    @staticmethod
    def drawn(features: np.ndarray, class_name: str) -> "Sample":
        """Images of one class that each came from their own seed."""
        return Sample.of(features, np.array([f"{class_name} {i}" for i in range(len(features))]), class_name)

    @staticmethod
    def joined(samples: Sequence["Sample"]) -> "Sample":
        return Sample(*map(np.concatenate, zip(*samples, strict=True)))


def unit_numbers(units: np.ndarray | None, features: np.ndarray) -> np.ndarray:
    """Unit labels [n] of features [n, d] as numbers 0, 1, ...; None: every image its own unit.

    ValueError where there is not one label for each image.
    """
    if units is None:
        return np.arange(len(features))
    if len(units) != len(features):
        raise ValueError(f"{len(units)} unit labels for {len(features)} images")
    return np.unique(units, return_inverse=True)[1]


def one_of_each_unit(units: np.ndarray | None, rng: np.random.Generator) -> np.ndarray | slice:
    """Positions of one random image of each of units [n], in order; all positions for None."""
    if units is None:
        return slice(None)
    order = rng.permutation(len(units))
    # np.unique gives the first place of each label: in a random order, a random image of it.
    return np.sort(order[np.unique(units[order], return_index=True)[1]])


def random_subset(sample: Sample, n: int) -> Sample:
    """n of the images in random order, the same each time; all of them where there are fewer."""
    return sample.rows(np.random.default_rng(0).permutation(len(sample.units))[:n])
