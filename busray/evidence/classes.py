"""The class that a classifier of real images (the judge) sees in drawn images, and the work of the
class gate, as figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from busray.evidence.real import ClassFeatures, RealFeatures
from busray.evidence.stats.intervals import (
    Estimate,
    difference_of_estimates,
    mean_of_estimates,
    share_of_units,
    wilson,
)
from busray.evidence.stats.samples import Sample
from busray.records import CLASS_ALL, REAL, ClassifierRecord, Commit, Figure

CONSISTENCY, EXCESS = "class_consistency", "class_consistency_excess"
"""Share of drawn images that the judge takes for their class; the same minus JUDGE."""

JUDGE, GATE = "judge_accuracy", "gate_accuracy"
"""Share of the real test images that the judge, or the gate, takes for their class. Overall it is
the mean over classes."""

SEEN_AS = "seen_as_"
"""Followed by a class: the share of a class's images, real test ones (REAL) or an arm's first
draws, that the judge takes for that other class. Rows of a confusion matrix; n is the row's
images."""

ACCEPTANCE = "gate_acceptance"
"""Share of the first draws judged by the gate that it accepted."""

FIRST_DRAW, AFTER_GATE = "first-draw", "after-gate"
"""Protocols of CONSISTENCY: images as drawn; images that a gate accepted, which says little,
since the gate selects for agreement."""


def recalls(
    probabilities: np.ndarray, labels: np.ndarray, units: np.ndarray, names: Sequence[str]
) -> dict[str, Estimate]:
    """class -> share of its images that are predicted as it; first CLASS_ALL, the mean of these.

    probabilities [n, classes], labels [n] and units [n]. Classes without an image are left out.
    """
    predicted = probabilities.argmax(1)
    shares: dict[str, Estimate] = {}
    for label, name in enumerate(names):
        of_class = labels == label
        if of_class.any():
            # Units: a reader of the interval expects independent images.
            shares[name] = share_of_units(predicted[of_class] == label, units[of_class])
    return {CLASS_ALL: mean_of_estimates(list(shares.values())), **shares}


def consistency_figures(
    arms: Mapping[str, ClassFeatures], real: RealFeatures, names: Sequence[str], protocol: str
) -> list[Figure]:
    """CONSISTENCY and EXCESS of each arm; for FIRST_DRAW also JUDGE and SEEN_AS.

    arms, real: the judge's probabilities [n, classes] as features, columns in the order of names.
    real.extractor: the judge's architecture. Overall the classes count alike, drawn and real.
    """
    tested = real.split("test")
    n_tested = {name: len(sample.units) for name, sample in tested.items()}
    n_tested[CLASS_ALL] = sum(n_tested.values())
    accuracy = _recalls_of(tested, names)

    def figure(metric: str, value: Estimate, n: int, name: str, arm: str, protocol: str) -> Figure:
        return real.figure(metric, value, n, n_tested[name], "test", protocol, class_name=name, arm=arm)

    figures: list[Figure] = []
    if protocol == FIRST_DRAW:
        # The figure stands for a judge trained on so many images.
        trained_on = sum(len(rows) for rows in real.features["train"].values())
        for name, estimate in accuracy.items():
            figures.append(figure(JUDGE, estimate, trained_on, name, REAL, "single-split"))
        figures += _seen_figures(real.features["test"], names, REAL, "single-split", real)
    for arm, by_class in arms.items():
        drawn = {name: Sample.drawn(rows, name) for name, rows in by_class.items() if name in tested}
        if protocol == FIRST_DRAW:
            figures += _seen_figures({name: by_class[name] for name in drawn}, names, arm, protocol, real)
        for name, agreement in _recalls_of(drawn, names).items():
            # Overall, the judge's accuracy is over the classes that this arm has.
            own = mean_of_estimates([accuracy[c] for c in drawn]) if name == CLASS_ALL else accuracy[name]
            n = sum(len(sample.units) for c, sample in drawn.items() if name in (c, CLASS_ALL))
            figures.append(figure(CONSISTENCY, agreement, n, name, arm, protocol))
            # A judge is often wrong on real images too: what counts is the difference.
            excess = difference_of_estimates(agreement, own)
            figures.append(figure(EXCESS, excess, n, name, arm, protocol))
    return figures


def _recalls_of(samples: Mapping[str, Sample], names: Sequence[str]) -> dict[str, Estimate]:
    together = Sample.joined(list(samples.values()))
    labels = np.array([names.index(name) for name in together.classes])
    return recalls(together.features, labels, together.units, names)


def _seen_figures(
    images: ClassFeatures, names: Sequence[str], arm: str, protocol: str, real: RealFeatures
) -> list[Figure]:
    """SEEN_AS for each class of images and each of names. No intervals: CONSISTENCY has them."""
    figures: list[Figure] = []
    for name, rows in images.items():
        n = len(rows), len(real.features["test"][name])
        for label, other in enumerate(names):
            share = float((rows.argmax(1) == label).mean())
            figures.append(real.figure(f"{SEEN_AS}{other}", share, *n, "test", protocol, class_name=name, arm=arm))
    return figures


@dataclass(frozen=True)
class GateCounts:
    """The class gate's decisions on the images of a class."""

    planned: int
    first: int
    """Images accepted as first drawn."""
    redrawn: int
    """Images accepted after a redraw."""
    spent: int
    """Images quarantined since all their draws were rejected, or a redraw could not be drawn."""
    draws: int
    undrawn: int = 0
    """Images quarantined before the gate: they could not be drawn or encoded."""


def gate_counts(commits: Sequence[Commit], attempts: int) -> dict[str, GateCounts]:
    """class -> counts, from the records of a corpus whose gate allows so many draws per image."""
    by_class: dict[str, list[Commit]] = {}
    for commit in commits:
        by_class.setdefault(commit.class_name, []).append(commit)
    return {name: _class_gate_counts(by_class[name], attempts) for name in sorted(by_class)}


def _class_gate_counts(commits: Sequence[Commit], attempts: int) -> GateCounts:
    planned = first = redrawn = spent = redraws = undrawn = 0
    for commit in commits:
        judged = {image.image_id for image in commit.redrawn}
        not_drawn = sum(image_id not in judged for image_id, _ in commit.rejects)
        planned += commit.count
        undrawn += not_drawn
        first += commit.count - not_drawn - len(commit.redrawn)
        for image in commit.redrawn:
            redrawn += image.kept is not None
            spent += image.kept is None
            # Each rejected draw was followed by another one, except the last that is allowed.
            redraws += min(len(image.rejected), attempts - 1)
    return GateCounts(planned, first, redrawn, spent, planned + redraws, undrawn)


def gate_figures(
    counts: Mapping[str, GateCounts], record: ClassifierRecord, arm: str, frame: str, size: int
) -> list[Figure]:
    """ACCEPTANCE by class and the mean over classes; GATE of the gate's record."""
    n_judged: dict[str, int] = {}
    accepted: dict[str, Estimate] = {}
    for name, of_class in counts.items():
        # An image that could not be drawn was never shown to the gate.
        n = of_class.planned - of_class.undrawn
        if n:
            n_judged[name] = n
            accepted[name] = Estimate(of_class.first / n, wilson(of_class.first, n))
    if accepted:
        n_judged[CLASS_ALL] = sum(n_judged.values())
        accepted = {CLASS_ALL: mean_of_estimates(list(accepted.values())), **accepted}
    gate = RealFeatures({}, {}, record.architecture, frame, size)
    figures: list[Figure] = []
    for name, value in accepted.items():
        n = n_judged[name], record.images["test"]
        figures.append(gate.figure(ACCEPTANCE, value, *n, "test", FIRST_DRAW, class_name=name, arm=arm))
    for name, recall in record.test.items():
        n, value = (record.images["train"], recall.n), Estimate(recall.value, recall.interval)
        figures.append(gate.figure(GATE, value, *n, "test", "single-split", class_name=name, arm=REAL))
    return figures
