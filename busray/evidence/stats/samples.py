"""Images of one side of a comparison as features, with what counts as one independent draw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np


def numbered(clusters: np.ndarray | None, features: np.ndarray) -> np.ndarray:
    """Cluster labels [n] of features [n, d] as numbers from 0 on, none left out."""
    if clusters is None:
        return np.arange(len(features))
    if len(clusters) != len(features):
        raise ValueError(f"{len(clusters)} cluster labels for {len(features)} images")
    return np.unique(clusters, return_inverse=True)[1]


def picked(clusters: np.ndarray | None, rng: np.random.Generator) -> np.ndarray | slice:
    """Positions of one image of each cluster, at random; everything where there are no clusters."""
    if clusters is None:
        return slice(None)
    order = rng.permutation(len(clusters))
    return np.sort(order[np.unique(clusters[order], return_index=True)[1]])


Features = Mapping[str, np.ndarray]
"""class -> float32 [n, d]"""


FEWEST = 3
"""Independent images a side below which a class has no figure of its own."""


@dataclass(frozen=True)
class Real:
    """The real images as one extractor sees them, and what every figure about them must say."""

    features: Mapping[str, Features]
    """By split: train, val, test."""
    units: Mapping[str, Mapping[str, np.ndarray]]
    """split -> class -> labels [n]: images of one label (SourceImage.unit) count as one independent draw."""
    extractor: str
    frame: str
    size: int
    """Side of the framed images in pixels."""

    def split(self, name: str) -> dict[str, "Sample"]:
        """class -> the images of a split, or of all three for `all`."""
        splits = list(self.features) if name == "all" else [name]
        classes = sorted({c for split in splits for c in self.features[split]})
        return {
            c: Sample.joined(
                [Sample.of(self.features[s][c], self.units[s][c], c) for s in splits if c in self.features[s]]
            )
            for c in classes
        }

    def only(self, kept: Mapping[str, Mapping[str, np.ndarray]]) -> "Real":
        """The images that are kept (split -> class -> bool [n])."""
        features, units = (
            {split: {name: rows[kept[split][name]] for name, rows in by.items()} for split, by in of.items()}
            for of in (self.features, self.units)
        )
        return replace(self, features=features, units=units)


class Sample(NamedTuple):
    """Images of one side of a comparison: features [n, d], labels [n] of independent draws and [n] of classes."""

    features: np.ndarray
    units: np.ndarray
    classes: np.ndarray

    def rows(self, chosen: slice | np.ndarray) -> "Sample":
        return Sample(*(values[chosen] for values in self))

    @staticmethod
    def of(features: np.ndarray, units: np.ndarray, class_name: str) -> "Sample":
        """Of images of one class."""
        return Sample(features, units, np.full(len(features), class_name))

    @staticmethod
    def drawn(features: np.ndarray, class_name: str) -> "Sample":
        """Of images that each came from a seed of their own."""
        return Sample.of(features, np.array([f"{class_name} {i}" for i in range(len(features))]), class_name)

    @staticmethod
    def joined(samples: Sequence["Sample"]) -> "Sample":
        return Sample(*map(np.concatenate, zip(*samples, strict=True)))


def some(sample: Sample, n: int) -> Sample:
    """n of the images by chance, the same each time."""
    return sample.rows(np.random.default_rng(0).permutation(len(sample.units))[:n])
