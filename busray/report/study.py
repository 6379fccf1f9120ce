"""The downstream study's part of report.html: sentences, bars, a curve over corpus size, tables."""

import json
from collections.abc import Mapping, Sequence

import numpy as np

from busray.evidence.stats.paired import LEVEL, POWER
from busray.evidence.study import DETECTABLE, DIFFERENCE, P_HOLM, P_VALUE, StudyResults
from busray.evidence.study_design import MIXED, REAL, UNGATED, gate_pairs
from busray.records import CLASS_ALL, Figure
from busray.report.html import (
    Point,
    Row,
    RowGroup,
    Series,
    columns,
    curve_plot,
    figure,
    folded,
    heading,
    paragraph,
    row_plot,
    section,
    sentence_list,
    table,
)
from busray.report.metrics import CLASS_RECALL, METRICS, NONE, Metric, arms_text, p_equation, p_text
from busray.report.tables import Json, Table, figures_of

COLOURS = {"synthetic": "c2", MIXED: "c1", UNGATED: "c3"}
"""Of the kinds of arms that have a curve."""

STUDIED = {**{name: METRICS[name] for name in ("accuracy", "macro_f1", "auc")}, "recall": CLASS_RECALL}
"""The study's metrics: `recall` is of a class, the others are of all classes."""


def study_section(study: Json) -> str:
    """What synthetic images are worth to a classifier. Empty without figures."""
    figures = figures_of(study)
    if not figures:
        return ""
    parts = [sentence_list(study["sentences"]), paragraph(_explanation(figures))]
    for reference in dict.fromkeys(f.reference for f in figures):
        parts.append(_test_set(figures, reference, study["primary"]["metric"]))
    tried = []
    for part in study.get("tried") or []:
        settings = json.dumps(part["training"], sort_keys=True)
        tried.append([part["identity"], part["trainings"], part["training"]["architecture"], settings])
    rows = table(["identity", "trainings", "architecture", "training"], tried, "words")
    parts.append(folded(f"Configurations tried ({len(tried)})", rows))
    return section("Downstream study", "".join(parts))


def _explanation(figures: Sequence[Figure]) -> str:
    ungated = ""
    if any(f.arm.startswith(UNGATED) for f in figures):
        ungated = "ungated: mixed, but with the first draw of every image, as if there were no class gate. "
    return (
        "Classifiers trained with and without synthetic images, tested on real ones. Every training has the same "
        "number of steps; its learning rate and step are chosen on val. synthetic: no real image. mixed: real and "
        f"synthetic ones. {ungated}pretrained: first synthetic, then real. After @: synthetic images for each real "
        "one. The controls have no synthetic image: classical augmentation, balanced classes, repeated real images."
    )


def _test_set(figures: Sequence[Figure], reference: str, metric: str) -> str:
    """Plots and tables on one test set."""
    shown = [f for f in figures if (f.reference, f.metric, f.class_name) == (reference, metric, CLASS_ALL)]
    plots = _bars(shown, STUDIED[metric])
    if reference == "test":
        plots += _utility_curve(shown, STUDIED[metric])
    comparisons = folded(f"Comparisons on {reference} images", table(*comparison_rows(figures, reference)))
    return heading(f"On {reference} images") + columns(plots) + table(*arm_rows(figures, reference)) + comparisons


def _bars(figures: Sequence[Figure], metric: Metric) -> str:
    """A bar an arm from 0, its 95 % interval as a whisker."""
    if not figures:
        return ""
    rows = []
    for f in figures:
        colour = COLOURS.get(f.arm.split("@")[0], "c0" if f.arm.startswith("real") else "c1")
        rows.append(Row(f.arm, *metric.scaled(f), metric.number(f.value), colour))
    drawing = row_plot([RowGroup("", rows)], "", f"{metric.title} of each arm", bars=True, reach=1.0)
    return figure(drawing, _caption(figures), metric.title)


def _caption(figures: Sequence[Figure]) -> str:
    f = figures[0]
    return (
        f"{f.n_reference} {f.reference} images, classifier {f.extractor}, {f.protocol}. Lines: 95 % intervals over "
        "independent test units and trainings."
    )


def _utility_curve(figures: Sequence[Figure], metric: Metric) -> str:
    """The metric over synthetic images for each real one; the dashed line is real images alone."""
    curves: dict[str, list[Point]] = {}
    for f in figures:
        kind, at, ratio = f.arm.partition("@")
        if kind in COLOURS and at:
            curves.setdefault(kind, []).append(Point(float(ratio), *metric.scaled(f)))
    real = next((f for f in figures if f.arm == "real"), None)
    if real is None or sum(map(len, curves.values())) < 4:
        return ""
    series = [Series(kind, sorted(curves[kind]), colour) for kind, colour in COLOURS.items() if kind in curves]
    title = f"{metric.title} over corpus size"
    axis = "synthetic images for each real one"
    drawing = curve_plot(series, axis, title, floor=("real", metric.scaled(real)[0]), named=True)
    return figure(drawing, _caption(figures), title)


Lookup = Mapping[tuple[str, str, str | None, str, str], Figure]
"""(test set, arm, against, metric, class) -> figure"""


def _lookup(figures: Sequence[Figure]) -> Lookup:
    return {(f.reference, f.arm, f.against, f.metric, f.class_name): f for f in figures}


def study_sentences(figures: Sequence[Figure], outcome: StudyResults) -> list[str]:
    """What the study found, the declared comparison first."""
    at = _lookup(figures)
    return [
        _primary_sentence(at, outcome),
        _setting_sentence(at, outcome),
        *_gate_sentence(at, outcome),
        _other_comparisons(figures, at),
        "Single split: one division of the real images, one set of adapters and one corpus. The intervals do not "
        "include how much the figures would change with others.",
    ]


def _primary_sentence(at: Lookup, outcome: StudyResults) -> str:
    primary, metric = outcome.primary, STUDIED[outcome.primary.metric]
    pair = ("test", primary.arm, primary.against)
    difference = metric.text(at[*pair, primary.metric + DIFFERENCE, CLASS_ALL], "+")
    p_value = at[*pair, primary.metric + P_VALUE, CLASS_ALL].value
    detectable = at.get((*pair, primary.metric + DETECTABLE, CLASS_ALL))
    result = "distinguishable" if p_value < LEVEL else "not distinguishable"
    power = (
        f"With {_independent(outcome)} independent units of test images and {_seeds(outcome)} trainings an arm, no "
        f"true difference would be found with a probability of {POWER:.0%}."
    )
    if detectable:
        number = metric.number(detectable.value)
        power = f"A true difference of {number} would be found with a probability of {POWER:.0%}."
    return (
        f"Primary comparison, declared beforehand: {metric.title} on test, {primary.arm} minus {primary.against}: "
        f"{difference}, {p_equation(p_value)}, so the two are {result}. {power}"
    )


def _setting_sentence(at: Lookup, outcome: StudyResults) -> str:
    accuracy, f1 = (at["test", REAL, None, metric, CLASS_ALL] for metric in ("accuracy", "macro_f1"))
    return (
        f"{accuracy.n_reference} test images in {_independent(outcome)} independent units, {_seeds(outcome)} trainings "
        f"an arm, classifier {outcome.architecture}: trained on {REAL} images alone it reaches an accuracy of "
        f"{METRICS['accuracy'].text(accuracy)} and a macro F1 of {METRICS['macro_f1'].text(f1)}."
    )


def _seeds(outcome: StudyResults) -> int:
    return len(next(iter(outcome.probabilities["test"].values())))


def _independent(outcome: StudyResults) -> int:
    return len(np.unique(outcome.units["test"]))


def _gate_sentence(at: Lookup, outcome: StudyResults) -> list[str]:
    """The gated mixtures against the same ones without the gate; nothing without a gate."""
    name, parts = outcome.primary.metric, []
    for gated, ungated in gate_pairs(outcome.images):
        if after_holm := at.get(("test", gated, ungated, name + P_HOLM, CLASS_ALL)):
            difference = STUDIED[name].text(at["test", gated, ungated, name + DIFFERENCE, CLASS_ALL], "+")
            parts.append(f"{gated} - {ungated} {difference}, {p_equation(after_holm.value)}")
    title = STUDIED[name].title
    return [f"The class gate's part in {title} on test, p after Holm: {'; '.join(parts)}."] if parts else []


def _other_comparisons(figures: Sequence[Figure], at: Lookup) -> str:
    others = [f for f in figures if f.metric.endswith(P_HOLM)]
    significant = [f for f in others if f.value < LEVEL]
    named = []
    for f in significant:
        name = f.metric.removesuffix(P_HOLM)
        difference = STUDIED[name].text(at[f.reference, f.arm, f.against, name + DIFFERENCE, f.class_name], "+")
        named.append(f"{arms_text(f)}, {STUDIED[name].title} {f.class_name} on {f.reference} {difference}")
    return (
        f"Of {len(others)} other comparisons, {len(significant)} are significant at {LEVEL} after Holm's correction"
        + (f": {'; '.join(named)}." if named else ".")
    )


def arm_rows(figures: Sequence[Figure], reference: str = "test") -> Table:
    """Every arm's metrics on a test set, with 95 % intervals."""
    arms: dict[str, dict[tuple[str, str], Figure]] = {}
    for f in figures:
        if f.reference == reference and f.metric in STUDIED and (f.metric == "recall") == (f.class_name != CLASS_ALL):
            arms.setdefault(f.arm, {})[f.metric, f.class_name] = f
    keys = list(dict.fromkeys(key for cells in arms.values() for key in cells))
    keys.sort(key=lambda key: key[0] == "recall")
    rows = []
    for arm, cells in arms.items():
        n = next(cells[key].n for key in keys if key in cells)
        rows.append([arm, str(n), *(STUDIED[metric].text(cells.get((metric, name))) for metric, name in keys)])
    heads = [STUDIED[metric].title + ("" if name == CLASS_ALL else f" {name}") for metric, name in keys]
    return Table(["arm", "training images", *heads], rows)


def comparison_rows(figures: Sequence[Figure], reference: str = "test") -> Table:
    """Every comparison on a test set: difference, p, smallest difference that would be found."""
    at, rows = _lookup(figures), []
    for f in figures:
        if f.reference != reference or not f.metric.endswith(DIFFERENCE):
            continue
        name, pair = f.metric.removesuffix(DIFFERENCE), (reference, f.arm, f.against)
        metric, primary = STUDIED[name], at.get((*pair, name + P_VALUE, f.class_name))
        p_value = primary or at[*pair, name + P_HOLM, f.class_name]
        detectable = at.get((*pair, name + DETECTABLE, f.class_name))
        kind = "primary" if primary else "after Holm"
        smallest = metric.number(detectable.value) if detectable else NONE
        rows.append(
            [arms_text(f), metric.title, f.class_name, metric.text(f, "+"), p_text(p_value.value), kind, smallest]
        )
    return Table(["arms", "metric", "class", "difference [95 % interval]", "p", "p is", "detectable"], rows)
