"""Which class a classifier of real images sees in drawn images, and what the class gate did: as figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from busray.evidence.real import ClassFeatures, RealFeatures
from busray.evidence.stats.intervals import Estimate, difference_of_estimates, mean_of_estimates, wilson
from busray.records import CLASS_ALL, REAL, Commit, Figure, Interval

CONSISTENCY, EXCESS = "class_consistency", "class_consistency_excess"
"""Share of drawn images that the judge takes for their class; that less JUDGE."""


JUDGE, GATE = "judge_accuracy", "gate_accuracy"
"""Share of the real test images that the judge, or the gate, takes for their class. Overall, the mean over classes."""


SEEN_AS = "seen_as_"
"""And a class: share of the images of a class, real test ones (REAL) or an arm's first draws, that the judge takes for
that one. Rows of a confusion matrix, whose n is the row's images."""


ACCEPTANCE = "gate_acceptance"
"""Share of the first draws that the gate saw which it let pass."""


FIRST_DRAW, AFTER_GATE = "first-draw", "after-gate"
"""Protocols of CONSISTENCY: as drawn; among the images that a gate let pass, which says little, being chosen so."""


def recalls(
    probabilities: np.ndarray, labels: np.ndarray, units: np.ndarray, names: Sequence[str]
) -> dict[str, Estimate]:
    """Class -> share of its images that are said to be of it, for classes that have any; first the mean over these.

    probabilities [n, classes], labels [n]. Images of one of units [n] are not independent: Wilson's interval is that of
    as many images as there are units, which is wider than it need be where images of a unit are told apart.
    """
    said = probabilities.argmax(1)
    shares = {}
    for label, name in enumerate(names):
        mine = labels == label
        if mine.any():
            share, whole = float((said[mine] == label).mean()), len(np.unique(units[mine]))
            shares[name] = Estimate(share, wilson(share * whole, whole))
    return {CLASS_ALL: mean_of_estimates(list(shares.values())), **shares}


def consistency_figures(
    arms: Mapping[str, ClassFeatures], real: RealFeatures, names: Sequence[str], protocol: str
) -> list[Figure]:
    """CONSISTENCY and EXCESS of each arm overall and a class; for FIRST_DRAW also JUDGE and what SEEN_AS says.

    arms, real: the judge's probabilities [n, classes] as features, columns in the order of names. real.extractor: the
    judge's architecture. Overall the classes count alike, in arms and real images.
    """
    held_out = real.split("test")
    labels = np.concatenate([np.full(len(rows.units), names.index(name)) for name, rows in held_out.items()])
    seen = np.concatenate([rows.features for rows in held_out.values()])
    accuracy = recalls(seen, labels, np.concatenate([rows.units for rows in held_out.values()]), names)
    counts = {CLASS_ALL: len(labels), **{name: len(rows.units) for name, rows in held_out.items()}}

    def figure(metric: str, found: Estimate, n: int, name: str, arm: str, of: str) -> Figure:
        common = (n, counts[name], "test", of, real.extractor, name, arm, real.frame, real.size)
        return Figure(metric, found.value, found.interval, *common)

    trained_on = sum(len(rows) for rows in real.features["train"].values())
    figures = []
    if protocol == FIRST_DRAW:
        figures += [figure(JUDGE, found, trained_on, name, REAL, "single-split") for name, found in accuracy.items()]
        figures += _seen(real.features["test"], names, REAL, "single-split", real)
    for arm, by_class in arms.items():
        drawn = {name: rows for name, rows in by_class.items() if name in held_out}
        if protocol == FIRST_DRAW:
            figures += _seen(drawn, names, arm, protocol, real)
        labels = np.concatenate([np.full(len(rows), names.index(name)) for name, rows in drawn.items()])
        agreement = recalls(np.concatenate(list(drawn.values())), labels, np.arange(len(labels)), names)
        for name, found in agreement.items():
            beside = mean_of_estimates([accuracy[c] for c in drawn]) if name == CLASS_ALL else accuracy[name]
            n = len(labels) if name == CLASS_ALL else len(drawn[name])
            figures.append(figure(CONSISTENCY, found, n, name, arm, protocol))
            figures.append(figure(EXCESS, difference_of_estimates(found, beside), n, name, arm, protocol))
    return figures


def _seen(images: ClassFeatures, names: Sequence[str], arm: str, protocol: str, real: RealFeatures) -> list[Figure]:
    """SEEN_AS of each class of images and each of names; without interval, which of the agreement CONSISTENCY has."""
    figures = []
    for name, rows in images.items():
        common = (len(rows), len(real.features["test"][name]), "test", protocol, real.extractor, name, arm)
        for label, other in enumerate(names):
            share = float((rows.argmax(1) == label).mean())
            figures.append(Figure(f"{SEEN_AS}{other}", share, None, *common, real.frame, real.size))
    return figures


@dataclass(frozen=True)
class GateCounts:
    """What the class gate did with the images of a class."""

    planned: int
    first: int
    """First draws that it let pass."""
    redrawn: int
    """Images that it let pass later."""
    spent: int
    """Images whose draws were all rejected, or whose redraw could not be drawn: quarantined."""
    draws: int
    undrawn: int = 0
    """Images that could not be drawn or encoded: quarantined without a word of the gate."""


def gate_counts(commits: Sequence[Commit], attempts: int) -> dict[str, GateCounts]:
    """By class, from the records of a corpus whose gate allows so many draws an image."""
    counts: dict[str, GateCounts] = {}
    for name in sorted({commit.class_name for commit in commits}):
        mine = [commit for commit in commits if commit.class_name == name]
        again = [one for commit in mine for one in commit.redrawn]
        planned, kept = sum(commit.count for commit in mine), sum(one.kept is not None for one in again)
        further = sum(min(len(one.rejected), attempts - 1) for one in again)
        judged = {one.image_id for one in again}
        undrawn = sum(image_id not in judged for commit in mine for image_id, _ in commit.rejects)
        first = planned - undrawn - len(again)
        counts[name] = GateCounts(planned, first, kept, len(again) - kept, planned + further, undrawn)
    return counts


def gate_figures(
    counts: Mapping[str, GateCounts], record: Mapping[str, Any], arm: str, frame: str, size: int
) -> list[Figure]:
    """ACCEPTANCE a class, and the mean over them; the gate's own accuracy on real test images, from its record."""
    tested, about = record["images"]["test"], (record["architecture"],)
    seen = {name: c.planned - c.undrawn for name, c in counts.items() if c.planned > c.undrawn}
    passed = {name: Estimate(counts[name].first / n, wilson(counts[name].first, n)) for name, n in seen.items()}
    shown = {CLASS_ALL: mean_of_estimates(list(passed.values())), **passed} if passed else {}
    figures = []
    for name, found in shown.items():
        n = sum(seen.values()) if name == CLASS_ALL else seen[name]
        common = (n, tested, "test", FIRST_DRAW, *about, name, arm, frame, size)
        figures.append(Figure(ACCEPTANCE, found.value, found.interval, *common))
    for name, found in record["test"].items():
        common = (record["images"]["train"], found["n"], "test", "single-split", *about, name, REAL, frame, size)
        figures.append(Figure(GATE, found["value"], Interval(*found["interval"]), *common))
    return figures
