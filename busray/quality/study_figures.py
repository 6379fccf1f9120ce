"""A finished study as figures, sentences and tables. Predictions in, records and words out.

One split: what the arms share of it, and the one corpus that was drawn, are not resampled. Every figure says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from busray import config
from busray.quality.study import LEVEL, OVERALL, POWER, Difference, Key, Scores, compare, estimate, holm, score
from busray.quality.study_design import REAL, gate_pairs
from busray.quality.tables import NONE
from busray.records import CLASS_ALL, Figure

Json = dict[str, Any]
PROTOCOL = "single-split"
NAMES = {"accuracy": "accuracy", "macro_f1": "macro F1", "auc": "AUC", "recall": "recall"}
DIFFERENCE, P_VALUE, P_HOLM, DETECTABLE = "_difference", "_difference_p_value", "_difference_p_holm", "_detectable"
"""What follows a metric's name: the difference of two arms; its p-value (primary), or that after Holm over all other
comparisons of the study; the smallest true difference that is found with power POWER, where there is one."""


@dataclass(frozen=True)
class Outcome:
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
    clusters: Mapping[str, np.ndarray]
    """set -> [n]"""
    probabilities: Mapping[str, Mapping[str, np.ndarray]]
    """set -> arm -> [seeds, n, classes]"""
    tasks: int
    seconds: float
    """Of all trainings together."""


def study_figures(outcome: Outcome) -> list[Figure]:
    """Metrics of each arm on each test set with intervals, then every comparison: each arm with study.primary.against,
    and each mixture with the same one without the class gate."""
    figures: list[Figure] = []
    compared: list[tuple[str, tuple[str, str], Key, Difference]] = []
    primary = outcome.primary
    for name, by_arm in outcome.probabilities.items():
        scores = {arm: score(p, outcome.labels[name], outcome.clusters[name]) for arm, p in by_arm.items()}
        for arm, found in scores.items():
            for key in found.point:
                got = estimate(found, key)
                figures.append(_figure(outcome, name, key, arm, key[0], got.value, (got.low, got.high)))
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
        name, (arm, against), key, found = row
        pair = f"{arm} - {against}"
        p_value = (P_VALUE, found.p_value) if _is_primary(row, primary) else (P_HOLM, next(adjusted))
        interval = (found.low, found.high)
        figures.append(_figure(outcome, name, key, pair, key[0] + DIFFERENCE, found.value, interval))
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
    outcome: Outcome,
    name: str,
    key: Key,
    arm: str,
    metric: str,
    value: float,
    interval: tuple[float, float] | None,
) -> Figure:
    label, labels = key[1], outcome.labels[name]
    return Figure(
        metric=metric,
        value=value,
        interval=interval,
        n=outcome.images[arm.split(" - ")[0]],
        n_reference=len(labels) if label is None else int((labels == label).sum()),
        reference=name,
        protocol=PROTOCOL,
        extractor=outcome.architecture,
        class_name=CLASS_ALL if label is None else outcome.classes[label],
        arm=arm,
        frame=outcome.frame,
        size=outcome.size,
    )


# ---- in words -------------------------------------------------------------------------------------------------------


def study_sentences(figures: list[Figure], outcome: Outcome) -> list[str]:
    """What the study found, the declared comparison first."""
    primary = outcome.primary
    at = {(f.reference, f.arm, f.metric, f.class_name): f for f in figures}
    pair = ("test", f"{primary.arm} - {primary.against}")
    found = at[*pair, primary.metric + DIFFERENCE, CLASS_ALL]
    p_value = at[*pair, primary.metric + P_VALUE, CLASS_ALL].value
    detectable = at.get((*pair, primary.metric + DETECTABLE, CLASS_ALL))
    seeds = len(next(iter(outcome.probabilities["test"].values())))
    independent = len(np.unique(outcome.clusters["test"]))
    said = "told apart" if p_value < LEVEL else "not told apart"
    power = (
        f"A true difference of {detectable.value:.3f} would be found with a probability of {POWER:.0%}."
        if detectable
        else f"With {independent} clusters of test images and {seeds} trainings an arm no true difference would be "
        f"found with a probability of {POWER:.0%}."
    )
    sentences = [
        f"Primary comparison, declared beforehand: {NAMES[primary.metric]} on test, {primary.arm} less "
        f"{primary.against}: {_signed(found)}, p = {p_value:.3f}, so the two are {said}. {power}",
        f"{found.n_reference} test images in {independent} clusters, {seeds} trainings an arm, classifier "
        f"{outcome.architecture}: trained on {REAL} images alone it reaches an accuracy of "
        f"{_whole(at['test', REAL, 'accuracy', CLASS_ALL])} and a macro F1 of "
        f"{_whole(at['test', REAL, 'macro_f1', CLASS_ALL])}.",
    ]
    gate = [
        f"{arm} {_signed(at['test', arm, primary.metric + DIFFERENCE, CLASS_ALL])}, p = {after_holm.value:.3f}"
        for arm in (f"{gated} - {ungated}" for gated, ungated in gate_pairs(outcome.images))
        if (after_holm := at.get(("test", arm, primary.metric + P_HOLM, CLASS_ALL)))
    ]
    if gate:
        sentences.append(f"The class gate's part in {NAMES[primary.metric]} on test, p after Holm: {'; '.join(gate)}.")
    rest = [f for f in figures if f.metric.endswith(P_HOLM)]
    standing = [f for f in rest if f.value < LEVEL]
    told = "; ".join(
        f"{f.arm}, {NAMES[f.metric.removesuffix(P_HOLM)]} {f.class_name} on {f.reference} "
        f"{_signed(at[f.reference, f.arm, f.metric.removesuffix(P_HOLM) + DIFFERENCE, f.class_name])}"
        for f in standing
    )
    sentences.append(
        f"Of {len(rest)} other comparisons {len(standing)} stand out from chance at {LEVEL} after Holm's correction"
        + (f": {told}." if standing else ".")
    )
    sentences.append(
        "Single split: one division of the real images, one set of adapters and one corpus; how much the figures would "
        "change with others is not in the intervals."
    )
    return sentences


def _signed(figure: Figure) -> str:
    assert figure.interval is not None
    return f"{figure.value:+.3f} [{figure.interval[0]:+.3f}, {figure.interval[1]:+.3f}]"


def _whole(figure: Figure) -> str:
    assert figure.interval is not None
    return f"{figure.value:.3f} [{figure.interval[0]:.3f}, {figure.interval[1]:.3f}]"


# ---- as tables ------------------------------------------------------------------------------------------------------


def arm_rows(figures: list[Json], reference: str = "test") -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of every arm's metrics on a test set, with 95 % intervals."""
    mine = {(f["arm"], f["metric"], f["class"]): f for f in figures if f["reference"] == reference}
    shown = [key for key in dict.fromkeys((m, c) for _, m, c in mine) if key[0] in NAMES]
    shown = [(m, c) for m, c in shown if c == CLASS_ALL and m != "recall"] + [
        (m, c) for m, c in shown if m == "recall" and c != CLASS_ALL
    ]
    columns = ["arm", "training images", *(NAMES[m] if c == CLASS_ALL else f"{NAMES[m]} {c}" for m, c in shown)]
    rows = []
    for arm in dict.fromkeys(arm for arm, metric, _ in mine if metric in NAMES):
        cells = [mine.get((arm, m, c)) for m, c in shown]
        n = next(str(f["n"]) for f in cells if f)
        rows.append([arm, n, *(_cell(f) for f in cells)])
    return columns, rows


def comparison_rows(figures: list[Json], reference: str = "test") -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of every comparison on a test set: difference, interval, p, smallest difference to be found."""
    mine = {(f["arm"], f["metric"], f["class"]): f for f in figures if f["reference"] == reference}
    columns = ["arms", "metric", "class", "difference [95 % interval]", "p", "p is", "detectable"]
    rows = []
    for (arm, metric, name), found in mine.items():
        if metric.endswith(DIFFERENCE):
            base = metric.removesuffix(DIFFERENCE)
            declared = mine.get((arm, base + P_VALUE, name))
            p_value = declared or mine[arm, base + P_HOLM, name]
            detectable = mine.get((arm, base + DETECTABLE, name))
            low, high = found["interval"]
            rows.append(
                [
                    arm,
                    NAMES[base],
                    name,
                    f"{found['value']:+.3f} [{low:+.3f}, {high:+.3f}]",
                    f"{p_value['value']:.3f}",
                    "primary" if declared else "after Holm",
                    f"{detectable['value']:.3f}" if detectable else NONE,
                ]
            )
    return columns, rows


def _cell(figure: Json | None) -> str:
    if figure is None:
        return NONE
    return f"{figure['value']:.3f} [{figure['interval'][0]:.3f}, {figure['interval'][1]:.3f}]"
