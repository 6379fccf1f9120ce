"""A finished study as figures. Predictions in, records out.

One split: what the arms share of it, and the one corpus that was drawn, are not resampled. Every figure says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from busray import config
from busray.evidence.stats.paired import OVERALL, Difference, Key, Scores, compare, estimate, holm, score
from busray.evidence.study_design import gate_pairs
from busray.records import CLASS_ALL, Figure, Interval

PROTOCOL = "single-split"


DIFFERENCE, P_VALUE, P_HOLM, DETECTABLE = "_difference", "_difference_p_value", "_difference_p_holm", "_detectable"
"""What follows a metric's name: the difference of two arms; its p-value (primary), or that after Holm over all other
comparisons of the study; the smallest true difference that is found with power POWER, where there is one."""


@dataclass(frozen=True)
class StudyResults:
    """Everything a study's trainings came to. Dictionaries of sets: `test` and, where there is one, `external`."""

    classes: tuple[str, ...]
    architecture: str
    frame: str
    size: int
    """Of the images in pixels."""
    primary: config.Primary
    images: Mapping[str, int]
    """arm -> training images."""
    labels: Mapping[str, np.ndarray]
    """set -> [n]"""
    units: Mapping[str, np.ndarray]
    """set -> [n]"""
    probabilities: Mapping[str, Mapping[str, np.ndarray]]
    """set -> arm -> [seeds, n, classes]"""
    tasks: int
    seconds: float
    """Of all trainings together."""


def study_figures(outcome: StudyResults) -> list[Figure]:
    """Metrics of each arm on each test set with intervals, then every comparison: each arm with study.primary.against,
    and each mixture with the same one without the class gate."""
    figures: list[Figure] = []
    compared: list[tuple[str, tuple[str, str], Key, Difference]] = []
    primary = outcome.primary
    for name, by_arm in outcome.probabilities.items():
        scores = {arm: score(p, outcome.labels[name], outcome.units[name]) for arm, p in by_arm.items()}
        for arm, found in scores.items():
            for key in found.point:
                got = estimate(found, key)
                figures.append(_figure(outcome, name, key, (arm, None), key[0], got.value, got.interval))
        pairs = [(arm, primary.against) for arm in by_arm if arm != primary.against]
        pairs += [pair for pair in gate_pairs(by_arm) if primary.against not in pair]  # else it is there already
        compared += [
            (name, pair, key, compare(scores[pair[0]], scores[pair[1]], key))
            for pair in pairs
            for key in _endpoints(scores[pair[0]])
        ]
    rest = [row for row in compared if not _is_primary(row, primary)]
    adjusted = iter(holm([difference.p_value for *_, difference in rest]))
    for row in compared:
        name, pair, key, found = row
        p_value = (P_VALUE, found.p_value) if _is_primary(row, primary) else (P_HOLM, next(adjusted))
        value, interval = found.estimate.value, found.estimate.interval
        figures.append(_figure(outcome, name, key, pair, key[0] + DIFFERENCE, value, interval))
        figures.append(_figure(outcome, name, key, pair, key[0] + p_value[0], p_value[1], None))
        if found.detectable is not None:
            figures.append(_figure(outcome, name, key, pair, key[0] + DETECTABLE, found.detectable, None))
    return figures


def _endpoints(scores: Scores) -> list[Key]:
    """What is compared: accuracy, macro F1 and AUC overall, recall a class. The rest follows from these."""
    return [
        key
        for key in scores.point
        if (key[0] == "recall" and key[1] is not OVERALL) or (key[0] != "recall" and key[1] is OVERALL)
    ]


def _is_primary(row: tuple[str, tuple[str, str], Key, Difference], primary: config.Primary) -> bool:
    name, pair, key, _ = row
    return (name, pair, key) == ("test", (primary.arm, primary.against), (primary.metric, OVERALL))


def _figure(
    outcome: StudyResults,
    name: str,
    key: Key,
    arms: tuple[str, str | None],
    metric: str,
    value: float,
    interval: Interval | None,
) -> Figure:
    label, labels = key[1], outcome.labels[name]
    return Figure(
        metric=metric,
        value=value,
        interval=interval,
        n=outcome.images[arms[0]],
        n_reference=len(labels) if label is None else int((labels == label).sum()),
        reference=name,
        protocol=PROTOCOL,
        extractor=outcome.architecture,
        class_name=CLASS_ALL if label is None else outcome.classes[label],
        arm=arms[0],
        against=arms[1],
        frame=outcome.frame,
        size=outcome.size,
    )
