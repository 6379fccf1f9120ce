"""Features of the real images by split and class, and the Figure fields that follow from them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from busray.evidence.stats.intervals import Estimate
from busray.evidence.stats.samples import Sample
from busray.records import Figure

SYNTHETIC_ONLY, REAL_AGAINST_REAL = "synthetic-only", "real-against-real"
"""Protocols: drawn images alone against real ones; other real images in their place, as a floor."""

ClassFeatures = Mapping[str, np.ndarray]
"""class -> float32 [n, d]"""

SplitRows = Mapping[str, Mapping[str, np.ndarray]]
"""split -> class -> [n], something about each real image in the order of its features."""


@dataclass(frozen=True)
class RealFeatures:
    """The real images in the features of one extractor."""

    features: Mapping[str, ClassFeatures]
    """By split: train, val, test."""
    units: SplitRows
    """Labels: images of one label (SourceImage.unit) count as one independent draw."""
    extractor: str
    frame: str
    size: int
    """Side of the framed images in pixels."""

    def split(self, name: str) -> dict[str, Sample]:
        """class -> the images of a split, or of all three for `all`."""
        samples: dict[str, list[Sample]] = {}
        for split in self.features if name == "all" else [name]:
            # Classes of a split may be missing in another one: join what there is.
            for class_name, rows in self.features[split].items():
                sample = Sample.of(rows, self.units[split][class_name], class_name)
                samples.setdefault(class_name, []).append(sample)
        return {class_name: Sample.joined(samples[class_name]) for class_name in sorted(samples)}

    def only(self, wanted: SplitRows) -> "RealFeatures":
        """The images where `wanted` (bool) is true."""
        return replace(self, features=_subset(self.features, wanted), units=_subset(self.units, wanted))

    def figure(
        self,
        metric: str,
        value: float | Estimate,
        n: int,
        n_reference: int,
        reference: str,
        protocol: str,
        *,
        class_name: str,
        arm: str,
        floor: bool = False,
        against: str | None = None,
    ) -> Figure:
        """A figure by this extractor; it has an interval where the value is an Estimate."""
        # A plain number has no interval: none is made up.
        number, interval = (value.value, value.interval) if isinstance(value, Estimate) else (value, None)
        return Figure(
            metric=metric,
            value=number,
            interval=interval,
            n=n,
            n_reference=n_reference,
            reference=reference,
            protocol=protocol,
            extractor=self.extractor,
            class_name=class_name,
            arm=arm,
            frame=self.frame,
            size=self.size,
            floor=floor,
            against=against,
        )


def _subset(rows: SplitRows, wanted: SplitRows) -> dict[str, dict[str, np.ndarray]]:
    subset: dict[str, dict[str, np.ndarray]] = {}
    for split, by_class in rows.items():
        subset[split] = {name: values[wanted[split][name]] for name, values in by_class.items()}
    return subset
