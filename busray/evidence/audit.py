"""Statistics of the copy audit: scores of searched images become figures. The search is copies.py.

The gate counts copies. It passes only if the search also found every training image that was planted
unchanged: a search that misses one proves nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from busray.evidence.copies import (
    IDENTICAL,
    KINDS,
    METHOD,
    GumbelLaw,
    are_copies,
    bin_edges,
    histograms,
    thresholds,
)
from busray.evidence.stats.intervals import wilson
from busray.records import CLASS_ALL, Figure, Interval

CLOSEST_PAIRS = 12
"""Pairs shown."""


CORPUS_SHARES = (0.125, 0.25, 0.5, 1.0)
"""Shares of the corpus at which copied training images are counted."""


PROTOCOL = "copy-audit"


@dataclass(frozen=True)
class NearestPair:
    """An image of the corpus beside the training image that it is nearest to."""

    excess: float
    """Score less the threshold of its kind: above 0 it is a copy."""
    score: float
    kind: str
    class_name: str
    index: int
    original: int
    """Number of the training image."""
    mirrored: bool


@dataclass
class Tally:
    """A corpus's rows counted a shard at a time: holds the copies and the closest pairs, whatever the corpus's size."""

    limits: Mapping[str, tuple[float, GumbelLaw]]
    counts: Mapping[str, int]
    """class -> images of the corpus."""
    edges: Mapping[str, np.ndarray] = field(default_factory=dict)
    """space -> edges of its histogram."""
    spread: dict[str, np.ndarray] = field(default_factory=dict)
    """space -> counts of the corpus's images."""
    images: int = 0
    copies: int = 0
    closest: list[NearestPair] = field(default_factory=list)
    copied: dict[int, float] = field(default_factory=dict)
    """Training image -> smallest share of the corpus, taken in order of index, that holds a copy of it."""

    def add(self, class_name: str, found: np.ndarray) -> None:
        """Count rows of FOUND of one class."""
        self.images += len(found)
        self.copies += int(are_copies(found, dict(self.limits)).sum())
        for space, counts in histograms(found, dict(self.edges)).items():
            self.spread[space] = self.spread.get(space, 0) + counts
        for kind, (limit, _) in self.limits.items():
            excess = found[f"{kind}_score"] - limit
            for i in np.nonzero(excess > 0)[0]:
                original, share = int(found[f"{kind}_of"][i]), (found["index"][i] + 1) / self.counts[class_name]
                self.copied[original] = min(self.copied.get(original, 1.0), float(share))
            for i in np.argsort(-excess, kind="stable")[:CLOSEST_PAIRS]:
                fields = (float(found[f"{kind}_score"][i]), kind, class_name, int(found["index"][i]))
                of = int(found[f"{kind}_of"][i]), bool(found[f"{kind}_mirrored"][i])
                self.closest.append(NearestPair(float(excess[i]), *fields, *of))
        self.closest = sorted(self.closest, key=lambda s: -s.excess)[:CLOSEST_PAIRS]


@dataclass(frozen=True)
class AuditEvidence:
    """What the audit has measured, and what its figures must say."""

    tally: Tally
    held_out: np.ndarray
    """FOUND rows of real val and test images against train."""
    units: np.ndarray
    """Labels of independent draws (SourceImage.unit) of these images."""
    planted: Mapping[str, np.ndarray]
    """transformation -> FOUND rows of copies made of training images."""
    near_duplicates: tuple[int, int]
    """(images with a near-duplicate among the sampled, images sampled) of the corpus."""
    training: int
    arm: str
    frame: str
    size: int

    @property
    def false_positives(self) -> tuple[int, int]:
        """(units of the held-out images of which one is taken for a copy, units): near-duplicates are no independent
        trials."""
        wrong = are_copies(self.held_out, dict(self.tally.limits))
        return len(np.unique(self.units[wrong])), len(np.unique(self.units))

    @property
    def planted_found(self) -> dict[str, int]:
        """transformation -> planted copies that are found."""
        return {name: int(are_copies(rows, dict(self.tally.limits)).sum()) for name, rows in self.planted.items()}

    @property
    def detects(self) -> bool:
        """Whether every training image planted as it is was found: a search that misses one proves no absence."""
        return self.planted_found.get(IDENTICAL, -1) == len(self.planted.get(IDENTICAL, ()))

    @property
    def passes(self) -> bool:
        """No copy in the corpus, by a search that would have seen it."""
        return self.detects and not self.tally.copies

    def figure(self, metric: str, value: float, interval: Interval | None, n: int, arm: str = "") -> Figure:
        return Figure(
            metric=metric,
            value=value,
            interval=interval,
            n=n,
            n_reference=self.training,
            reference="train",
            protocol=PROTOCOL,
            extractor=METHOD,
            class_name=CLASS_ALL,
            arm=arm or self.arm,
            frame=self.frame,
            size=self.size,
        )


def tally(held_out: np.ndarray, counts: Mapping[str, int], shards: Iterable[tuple[str, np.ndarray]]) -> Tally:
    """Count (class, FOUND rows) of a corpus, with thresholds from real images held out."""
    result = Tally(thresholds(held_out, sum(counts.values())), counts, bin_edges(held_out))
    for class_name, found in shards:
        result.add(class_name, found)
    return result


def audit_figures(of: AuditEvidence) -> list[Figure]:
    """Copies; what the test errs by and finds; training images copied against corpus size; near-duplicates inside."""
    n, limits = of.tally.images, dict(of.tally.limits)
    (wrong, units), held = of.false_positives, len(of.held_out)
    chance = n * sum(law.exceeds(limit) for limit, law in limits.values())
    figures = [
        of.figure("copies", of.tally.copies / n, wilson(of.tally.copies, n), n),
        of.figure("copy_false_positives", wrong / units, wilson(wrong, units), units, "real"),
        of.figure("copy_false_alarms_expected", chance, None, n),
    ]
    for kind in KINDS:
        figures.append(of.figure(f"copy_threshold_{kind}", limits[kind][0], None, held, "real"))
    for name, hits in of.planted_found.items():
        made = len(of.planted[name])
        figures.append(of.figure("copy_sensitivity", hits / made, wilson(hits, made), made, f"planted {name}"))
    for share in CORPUS_SHARES:
        copied = sum(at <= share for at in of.tally.copied.values())
        figures.append(of.figure("training_images_copied", copied / of.training, None, round(share * n)))
    if of.near_duplicates[1]:
        figures.append(
            of.figure(
                "near_duplicates_inside", of.near_duplicates[0] / of.near_duplicates[1], None, of.near_duplicates[1]
            )
        )
    return figures


def audit_spread(of: AuditEvidence) -> dict[str, dict[str, Any]]:
    """space -> the ends of its histograms, their counts of real images held out and of the corpus, and the threshold
    (None where none is): the same few numbers whatever the corpus's size."""
    held_out = histograms(of.held_out, dict(of.tally.edges))
    return {
        space: {
            "ends": [float(edges[0]), float(edges[-1])],
            "threshold": of.tally.limits[space][0] if space in of.tally.limits else None,
            "held_out": held_out[space].tolist(),
            "corpus": of.tally.spread[space].tolist(),
        }
        for space, edges in of.tally.edges.items()
    }
