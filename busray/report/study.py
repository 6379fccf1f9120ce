"""The downstream study's part of report.html: what it found in words, bars, the curve over corpus size, tables."""

import json
from collections.abc import Mapping
from html import escape as _e
from typing import Any

import numpy as np

from busray.evidence.stats.paired import LEVEL, POWER
from busray.evidence.study import DETECTABLE, DIFFERENCE, P_HOLM, P_VALUE, Outcome
from busray.evidence.study_design import MIXED, REAL, UNGATED, gate_pairs
from busray.records import CLASS_ALL, Figure
from busray.report.html import folded, scale, svg, table, text, ticks
from busray.report.tables import NONE

Json = dict[str, Any]


COLOURS = {"synthetic": 2, MIXED: 1, UNGATED: 3}
"""Of the kinds of arms that have a curve; the page's colours c1, c2, c3."""


def study_section(study: Json) -> str:
    """What synthetic images are worth to a classifier: sentences, bars of the primary metric, curve, tables."""
    figures = study.get("figures") or []
    if not figures:
        return ""
    metric, parts = study["primary"]["metric"], []
    for reference in dict.fromkeys(f["reference"] for f in figures):
        shown = [f for f in figures if (f["reference"], f["metric"], f["class"]) == (reference, metric, CLASS_ALL)]
        plots = _bars(shown, NAMES[metric]) + (_utility_curve(shown, NAMES[metric]) if reference == "test" else "")
        parts.append(
            f'<h3>On {reference} images</h3><div class="columns">{plots}</div>{table(*arm_rows(figures, reference))}'
            + folded(f"Comparisons on {reference} images", table(*comparison_rows(figures, reference)))
        )
    gated = any(f["arm"].startswith(UNGATED) for f in figures)
    ungated = "ungated: mixed, but with the first draw of every image, as if there were no class gate. " * gated
    said = "".join(f"<li>{_e(sentence)}</li>" for sentence in study["sentences"])
    tried = [
        [c["identity"], c["trainings"], c["training"]["architecture"], json.dumps(c["training"], sort_keys=True)]
        for c in study.get("tried") or []
    ]
    return (
        f'<section><h2>Downstream study</h2><ul class="verdicts">{said}</ul>'
        "<p>Classifiers trained with and without synthetic images, tested on real ones. Every training has the same "
        "number of steps; its learning rate and step are chosen on val. synthetic: no real image. mixed: real and "
        f"synthetic ones. {ungated}pretrained: first synthetic, then real. After @: synthetic images for each real "
        "one. The controls have no synthetic image: classical augmentation, classes drawn equally often, real images "
        f"repeated.</p>{''.join(parts)}"
        + folded(
            f"Configurations tried ({len(tried)})",
            table(["identity", "trainings", "architecture", "training"], tried, "words"),
        )
        + "</section>"
    )


def _bars(figures: list[Json], label: str) -> str:
    """A bar an arm from 0, its 95 % interval as a whisker."""
    if not figures:
        return ""
    left = 12.0 + 6.6 * max(len(f["arm"]) for f in figures)
    at = scale(0, max(1.0, *(f["interval"][1] for f in figures)), left, 350)
    marks = ""
    for i, f in enumerate(figures):
        y, (low, high) = 14 + 22 * i, map(at, f["interval"])
        kind = COLOURS.get(f["arm"].split("@")[0], 0 if f["arm"].startswith("real") else 1)
        bar = f"M{at(0):.1f} {y - 7}H{at(f['value']):.1f}V{y + 7}H{at(0):.1f}Z"
        marks += f'<g class="c{kind}"><path fill="currentColor" d="{bar}"/></g>'
        marks += f'<path stroke="var(--ink)" stroke-width="1.5" d="M{low:.1f} {y}H{high:.1f}"/>'
        marks += text(0, y + 4, f["arm"]) + text(400, y + 4, f"{f['value']:.3f}", anchor="end")
    bottom = 22 * len(figures) + 8
    grid = "".join(
        f'<path class="rule" d="M{at(t):.1f} 2V{bottom}"/>{text(at(t), bottom + 14, f"{t:g}", "soft", "middle")}'
        for t in ticks(0, 1)
    )
    drawing = svg(400, bottom + 20, f"{label} of each arm", grid + marks)
    return f"<figure><h3>{_e(label)}</h3>{drawing}<figcaption>{_e(_study_legend(figures))}</figcaption></figure>"


def _study_legend(figures: list[Json]) -> str:
    f = figures[0]
    return (
        f"{f['n_reference']} {f['reference']} images, classifier {f['extractor']}, {f['protocol']}. Lines: 95 % "
        "intervals over test clusters and trainings."
    )


def _utility_curve(figures: list[Json], label: str) -> str:
    """The metric over the number of synthetic images for each real one; the dashed line is real images alone."""
    curves = {
        kind: sorted((float(f["arm"].split("@")[1]), f) for f in figures if f["arm"].startswith(f"{kind}@"))
        for kind in COLOURS
    }
    curves = {kind: curve for kind, curve in curves.items() if curve}
    real = next((f for f in figures if f["arm"] == "real"), None)
    points = [point for curve in curves.values() for point in curve]
    if len(points) < 4 or real is None:
        return ""
    ends = [v for _, f in points for v in f["interval"]] + [real["value"]]
    x, y = scale(0, max(ratio for ratio, _ in points), 46, 320), scale(min(ends), max(ends), 184, 24)
    drawn = text(183, 228, "synthetic images for each real one", "soft", "middle")
    for t in ticks(min(ends), max(ends)):
        drawn += f'<path class="rule" d="M46 {y(t):.1f}H320"/>{text(40, y(t) + 4, f"{t:g}", "soft", "end")}'
    drawn += "".join(text(x(t), 208, f"{t:g}", "soft", "middle") for t in ticks(0, max(r for r, _ in points)))
    drawn += f'<path class="floor" d="M46 {y(real["value"]):.1f}H320"/>'
    names = _apart({"real": y(real["value"]), **{kind: y(curve[-1][1]["value"]) for kind, curve in curves.items()}})
    drawn += "".join(text(326, height + 4, name) for name, height in names.items())
    for kind, curve in curves.items():
        line = "M" + "L".join(f"{x(ratio):.1f} {y(f['value']):.1f}" for ratio, f in curve)
        bars = "".join(f"M{x(r):.1f} {y(f['interval'][0]):.1f}V{y(f['interval'][1]):.1f}" for r, f in curve)
        dots = "".join(
            f'<circle fill="currentColor" cx="{x(r):.1f}" cy="{y(f["value"]):.1f}" r="4"/>' for r, f in curve
        )
        path = f'<path fill="none" stroke="currentColor" stroke-width="1.5" d="{line}{bars}"/>'
        drawn += f'<g class="c{COLOURS[kind]}">{path}{dots}</g>'
    drawing = svg(400, 234, f"{label} over corpus size", drawn)
    legend = f"<figcaption>{_e(_study_legend(figures))}</figcaption>"
    return f"<figure><h3>{_e(label)} over corpus size</h3>{drawing}{legend}</figure>"


def _apart(heights: Mapping[str, float]) -> dict[str, float]:
    """Heights at which names can be read: a name that would cover the one above it moves down."""
    placed, above = {}, float("-inf")
    for name, height in sorted(heights.items(), key=lambda item: item[1]):
        placed[name] = above = max(height, above + 12)
    return placed


NAMES = {"accuracy": "accuracy", "macro_f1": "macro F1", "auc": "AUC", "recall": "recall"}


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
