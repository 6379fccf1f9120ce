"""Statistics of the copy audit: the search's scores become figures. The search is copies.py.

The audit passes only if the corpus has no copy and the search found every training image that was
planted unchanged. A search that misses one of these proves nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from busray.evidence.copies import (
    IDENTICAL,
    KINDS,
    METHOD,
    Threshold,
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
    """An image of the corpus and the training image that it is nearest to."""

    excess: float
    """Score minus the threshold of its kind: above 0 the image is a copy."""
    score: float
    kind: str
    class_name: str
    index: int
    original: int
    """Number of the training image."""
    mirrored: bool


@dataclass
class Tally:
    """Counts over a corpus, shard by shard. Memory does not grow with the corpus: it keeps only
    the copied training images and the closest pairs."""

    limits: Mapping[str, Threshold]
    """By kind."""
    planned: Mapping[str, int]
    """class -> images of the corpus."""
    edges: Mapping[str, np.ndarray] = field(default_factory=dict)
    """space -> edges of its histogram."""
    histograms: dict[str, np.ndarray] = field(default_factory=dict)
    """space -> counts of the corpus's images."""
    images: int = 0
    copies: int = 0
    closest: list[NearestPair] = field(default_factory=list)
    copied: dict[int, float] = field(default_factory=dict)
    """training image -> smallest share of the corpus, in order of index, that contains its copy."""

    def add(self, class_name: str, rows: np.ndarray) -> None:
        """Count SEARCH_ROW [n] of one class."""
        self.images += len(rows)
        self.copies += int(are_copies(rows, self.limits).sum())
        for space, counts in histograms(rows, self.edges).items():
            self.histograms[space] = self.histograms.get(space, 0) + counts
        # Excess and not score: the scores of images and of lesions follow two laws.
        for kind, limit in self.limits.items():
            excess = rows[f"{kind}_score"] - limit.score
            for row in rows[excess > 0]:
                original, share = int(row[f"{kind}_of"]), (row["index"] + 1) / self.planned[class_name]
                # The smallest share over all copies: a corpus of that share already has this
                # original.
                self.copied[original] = min(self.copied.get(original, 1.0), float(share))
            # The closest of each shard suffice: no other pair of it can be among the closest of
            # all.
            for i in np.argsort(-excess, kind="stable")[:CLOSEST_PAIRS]:
                self.closest.append(_pair(rows[i], kind, class_name, float(excess[i])))
        self.closest = sorted(self.closest, key=lambda pair: -pair.excess)[:CLOSEST_PAIRS]


def _pair(row: np.ndarray, kind: str, class_name: str, excess: float) -> NearestPair:
    return NearestPair(
        excess=excess,
        score=float(row[f"{kind}_score"]),
        kind=kind,
        class_name=class_name,
        index=int(row["index"]),
        original=int(row[f"{kind}_of"]),
        mirrored=bool(row[f"{kind}_mirrored"]),
    )


@dataclass(frozen=True)
class AuditEvidence:
    """The measurements of an audit, and what its figures must say."""

    tally: Tally
    held_out: np.ndarray
    """SEARCH_ROW [n] of real val and test images against train."""
    units: np.ndarray
    """[n] labels of independent draws (SourceImage.unit) of these images."""
    planted: Mapping[str, np.ndarray]
    """transformation -> SEARCH_ROW of copies made of training images."""
    near_duplicates: tuple[int, int]
    """(images with a near-duplicate among the sampled ones, sampled images) of the corpus."""
    training: int
    arm: str
    frame: str
    size: int

    @property
    def false_positives(self) -> tuple[int, int]:
        """(units of the held-out images with one taken for a copy, units).

        Units, since near-duplicates are no independent trials.
        """
        wrong = are_copies(self.held_out, self.tally.limits)
        return len(np.unique(self.units[wrong])), len(np.unique(self.units))

    @property
    def planted_found(self) -> dict[str, int]:
        """transformation -> planted copies that are found."""
        limits = self.tally.limits
        return {name: int(are_copies(rows, limits).sum()) for name, rows in self.planted.items()}

    @property
    def detects(self) -> bool:
        """Whether every training image that was planted unchanged was found, and there was one."""
        # -1, so that an audit without planted images detects nothing.
        return self.planted_found.get(IDENTICAL, -1) == len(self.planted.get(IDENTICAL, ()))

    @property
    def passes(self) -> bool:
        """No copy in the corpus, by a search that detects copies."""
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


def tally(held_out: np.ndarray, planned: Mapping[str, int], shards: Iterable[tuple[str, np.ndarray]]) -> Tally:
    """Count the (class, SEARCH_ROW [n]) of a corpus's shards; thresholds are from held-out images.

    planned: class -> images of the corpus.
    """
    result = Tally(thresholds(held_out, sum(planned.values())), planned, bin_edges(held_out))
    for class_name, rows in shards:
        result.add(class_name, rows)
    return result


def audit_figures(of: AuditEvidence) -> list[Figure]:
    """Copies; false positives and sensitivity of the search; training images copied by corpus size;
    near-duplicates inside the corpus."""
    n, limits = of.tally.images, of.tally.limits
    wrong, units = of.false_positives
    # What chance alone would give. Beside it a reader sees what the copies found are worth.
    expected = n * sum(limit.law.exceeds(limit.score) for limit in limits.values())
    figures = [
        of.figure("copies", of.tally.copies / n, wilson(of.tally.copies, n), n),
        of.figure("copy_false_positives", wrong / units, wilson(wrong, units), units, "real"),
        of.figure("copy_false_alarms_expected", expected, None, n),
    ]
    for kind in KINDS:
        figures.append(of.figure(f"copy_threshold_{kind}", limits[kind].score, None, len(of.held_out), "real"))
    for name, hits in of.planted_found.items():
        trials = len(of.planted[name])
        interval = wilson(hits, trials)
        figures.append(of.figure("copy_sensitivity", hits / trials, interval, trials, f"planted {name}"))
    for share in CORPUS_SHARES:
        copied = sum(first <= share for first in of.tally.copied.values())
        # No interval: training images are not drawn at random, and these are all of them.
        figures.append(of.figure("training_images_copied", copied / of.training, None, round(share * n)))
    duplicates, sampled = of.near_duplicates
    if sampled:
        figures.append(of.figure("near_duplicates_inside", duplicates / sampled, None, sampled))
    return figures


def audit_spread(of: AuditEvidence) -> dict[str, dict[str, Any]]:
    """space -> its histograms' ends, their counts of held-out real images and of the corpus, and
    the threshold (None without one). As many numbers whatever the corpus's size."""
    held_out = histograms(of.held_out, of.tally.edges)
    spread: dict[str, dict[str, Any]] = {}
    for space, edges in of.tally.edges.items():
        spread[space] = {
            "ends": [float(edges[0]), float(edges[-1])],
            "threshold": of.tally.limits[space].score if space in of.tally.limits else None,
            "held_out": held_out[space].tolist(),
            "corpus": of.tally.histograms[space].tolist(),
        }
    return spread
