"""A finished study as figures. Predictions in, figures out.

All arms share one split, one set of adapters and one corpus. These are not resampled, and every
figure says so by its protocol, `single-split`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from busray import config
from busray.evidence.stats.paired import OVERALL, Difference, Key, Scores, compare, estimate, holm, score
from busray.evidence.study_design import gate_pairs
from busray.records import CLASS_ALL, Figure, Interval

PROTOCOL = "single-split"

DIFFERENCE, P_VALUE, P_HOLM, DETECTABLE = "_difference", "_difference_p_value", "_difference_p_holm", "_detectable"
"""After a metric's name: the difference of two arms; its p-value, of the primary comparison; its
p-value after Holm, over all other comparisons of the study; the smallest true difference that is
found with probability POWER, where there is one."""


@dataclass(frozen=True)
class StudyResults:
    """The predictions of all trainings of a study. Test sets: `test` and, if given, `external`."""

    classes: tuple[str, ...]
    architecture: str
    frame: str
    size: int
    """Of the images in pixels."""
    primary: config.Primary
    images: Mapping[str, int]
    """arm -> training images."""
    labels: Mapping[str, np.ndarray]
    """test set -> [n]"""
    units: Mapping[str, np.ndarray]
    """test set -> [n]"""
    probabilities: Mapping[str, Mapping[str, np.ndarray]]
    """test set -> arm -> [seeds, n, classes]"""
    tasks: int
    seconds: float
    """Of all trainings together."""


class _Compared(NamedTuple):
    """A metric of one arm beside that of another, on one test set."""

    test_set: str
    arm: str
    against: str
    key: Key
    difference: Difference


def study_figures(results: StudyResults) -> list[Figure]:
    """Metrics of each arm on each test set with intervals, then every comparison: each arm with
    study.primary.against, and each mixture with the same one without the class gate."""
    figures: list[Figure] = []
    compared: list[_Compared] = []
    for test_set, by_arm in results.probabilities.items():
        labels, units = results.labels[test_set], results.units[test_set]
        scores = {arm: score(probabilities, labels, units) for arm, probabilities in by_arm.items()}
        for arm, of_arm in scores.items():
            for key in of_arm.point:
                value = estimate(of_arm, key)
                figures.append(_figure(results, test_set, key, arm, None, "", value.value, value.interval))
        compared += _comparisons(test_set, scores, results.primary.against)
    # One family over all test sets. The declared comparison is no part of it: it was chosen
    # beforehand.
    family = [row for row in compared if not _is_primary(row, results.primary)]
    adjusted = iter(holm([row.difference.p_value for row in family]))
    for row in compared:
        about = results, row.test_set, row.key, row.arm, row.against
        difference = row.difference.estimate
        figures.append(_figure(*about, DIFFERENCE, difference.value, difference.interval))
        if _is_primary(row, results.primary):
            figures.append(_figure(*about, P_VALUE, row.difference.p_value, None))
        else:
            figures.append(_figure(*about, P_HOLM, next(adjusted), None))
        if row.difference.detectable is not None:
            figures.append(_figure(*about, DETECTABLE, row.difference.detectable, None))
    return figures


def _comparisons(test_set: str, scores: Mapping[str, Scores], against: str) -> list[_Compared]:
    pairs = [(arm, against) for arm in scores if arm != against]
    pairs += [pair for pair in gate_pairs(scores) if against not in pair]  # else it is there already
    compared: list[_Compared] = []
    for arm, other in pairs:
        for key in scores[arm].point:
            # Accuracy, macro F1 and AUC overall, recall by class: the other metrics follow from
            # these.
            if (key[0] == "recall") != (key[1] is OVERALL):
                compared.append(_Compared(test_set, arm, other, key, compare(scores[arm], scores[other], key)))
    return compared


def _is_primary(row: _Compared, primary: config.Primary) -> bool:
    declared = ("test", primary.arm, primary.against, (primary.metric, OVERALL))
    return (row.test_set, row.arm, row.against, row.key) == declared


def _figure(
    results: StudyResults,
    test_set: str,
    key: Key,
    arm: str,
    against: str | None,
    suffix: str,
    value: float,
    interval: Interval | None,
) -> Figure:
    metric, label = key
    labels = results.labels[test_set]
    return Figure(
        metric=metric + suffix,
        value=value,
        interval=interval,
        n=results.images[arm],
        n_reference=len(labels) if label is None else int((labels == label).sum()),
        reference=test_set,
        protocol=PROTOCOL,
        extractor=results.architecture,
        class_name=CLASS_ALL if label is None else results.classes[label],
        arm=arm,
        frame=results.frame,
        size=results.size,
        against=against,
    )
