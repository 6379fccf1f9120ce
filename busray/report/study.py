"""The downstream study's part of report.html: sentences, bars, a curve over corpus size, tables."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from busray.evidence.stats.paired import LEVEL, POWER
from busray.evidence.study import DETECTABLE, DIFFERENCE, P_HOLM, P_VALUE, StudyResults
from busray.evidence.study_design import MIXED, REAL, UNGATED, gate_pairs
from busray.records import CLASS_ALL, Figure
from busray.report import html, plots
from busray.report.metrics import CLASS_RECALL, METRICS, NONE, Metric, arms_text, p_equation, p_text
from busray.report.tables import Json, Table, distinct, figures_of, first, first_n, grid, select

TITLE = "Downstream study"

COLOURS = {"synthetic": "c2", MIXED: "c1", UNGATED: "c3"}
"""Of the kinds of arms that have a curve."""

STUDIED = {name: METRICS[name] for name in ("accuracy", "macro_f1", "auc")}
STUDIED["recall"] = CLASS_RECALL
"""The study's metrics: `recall` is of a class, the others are of all classes."""


def study_section(study: Json) -> html.Section:
    """What synthetic images are worth to a classifier; nothing inside without figures."""
    figures = figures_of(study)
    if not figures:
        return html.Section(TITLE, html.NOTHING)
    inside = html.sentence_list(study["sentences"]) + html.paragraph(_explanation(figures))
    for reference in distinct(figures, "reference"):
        inside += _test_set(figures, reference, study["primary"]["metric"])
    # Every configuration is listed: who tried many and shows the best one misleads.
    tried = []
    for part in study.get("tried") or []:
        training = part["training"]
        settings = json.dumps(training, sort_keys=True)
        tried.append([part["identity"], part["trainings"], training["architecture"], settings])
    rows = html.table(["identity", "trainings", "architecture", "training"], tried, "words")
    inside += html.folded(f"Configurations tried ({len(tried)})", rows)
    return html.Section(TITLE, inside)


def _explanation(figures: Sequence[Figure]) -> str:
    ungated = ""
    if any(f.arm.startswith(UNGATED) for f in figures):
        ungated = "ungated: mixed, but with the first draw of every image, as if there were no class gate. "
    return (
        "Classifiers trained with and without synthetic images, tested on real ones. Every "
        "training has the same number of steps; its learning rate and step are chosen on val. "
        "synthetic: no real image. mixed: real and synthetic ones. "
        f"{ungated}pretrained: first synthetic, then real. After @: synthetic images for each "
        "real one. The controls have no synthetic image: classical augmentation, balanced "
        "classes, repeated real images."
    )


def _test_set(figures: Sequence[Figure], reference: str, metric: str) -> Markup:
    """Plots and tables on one test set."""
    shown = select(figures, reference=reference, metric=metric, class_name=CLASS_ALL)
    plots = _bars(shown, STUDIED[metric])
    if reference == "test":  # an external test set has the same arms: one curve is enough
        plots += _utility_curve(shown, STUDIED[metric])
    comparisons = html.table(*comparison_rows(figures, reference))
    comparisons = html.folded(f"Comparisons on {reference} images", comparisons)
    return (
        html.heading(f"On {reference} images")
        + html.columns(plots)
        + html.table(*arm_rows(figures, reference))
        + comparisons
    )


def _bars(figures: Sequence[Figure], metric: Metric) -> Markup:
    """A bar an arm from 0, its 95 % interval as a whisker."""
    if not figures:
        return html.NOTHING
    rows = []
    for f in figures:
        # arms of real images, the controls among them, are grey
        real_or_mixed = "c0" if f.arm.startswith("real") else "c1"
        colour = COLOURS.get(f.arm.split("@")[0], real_or_mixed)
        rows.append(plots.Row(f.arm, *metric.scaled(f), metric.number(f.value), colour))
    label = f"{metric.title} of each arm"
    drawing = plots.row_plot([plots.RowGroup("", rows)], "", label, bars=True, reach=1.0)
    return html.figure(drawing, _caption(figures), metric.title)


def _caption(figures: Sequence[Figure]) -> str:
    f = figures[0]
    return (
        f"{f.n_reference} {f.reference} images, classifier {f.extractor}, {f.protocol}. "
        "Lines: 95 % intervals over independent test units and trainings."
    )


def _utility_curve(figures: Sequence[Figure], metric: Metric) -> Markup:
    """The metric over synthetic images for each real one; the dashed line is real images alone."""
    curves: dict[str, list[plots.Point]] = {}
    for f in figures:
        kind, at, ratio = f.arm.partition("@")
        if kind in COLOURS and at:
            curves.setdefault(kind, []).append(plots.Point(float(ratio), *metric.scaled(f)))
    real = first(figures, arm="real")
    if real is None or sum(map(len, curves.values())) < 4:
        return html.NOTHING  # two points a kind are the least that has a slope
    series = []
    for kind, colour in COLOURS.items():
        if kind in curves:
            series.append(plots.Series(kind, sorted(curves[kind]), colour))
    title = f"{metric.title} over corpus size"
    axis = "synthetic images for each real one"
    floor = ("real", metric.scaled(real)[0])
    drawing = plots.curve_plot(series, axis, title, floor=floor, named=True)
    return html.figure(drawing, "", title)  # the bars beside it have the caption


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
        "Single split: one division of the real images, one set of adapters and one corpus. The "
        "intervals do not include how much the figures would change with others.",
    ]


def _primary_sentence(at: Lookup, outcome: StudyResults) -> str:
    primary, metric = outcome.primary, STUDIED[outcome.primary.metric]
    pair = ("test", primary.arm, primary.against)
    difference = metric.text(at[*pair, primary.metric + DIFFERENCE, CLASS_ALL], "+")
    p_value = at[*pair, primary.metric + P_VALUE, CLASS_ALL].value
    detectable = at.get((*pair, primary.metric + DETECTABLE, CLASS_ALL))
    result = "distinguishable" if p_value < LEVEL else "not distinguishable"
    # "not distinguishable" may also mean a small test: say what could have been found.
    if detectable:
        power = f"A true difference of {metric.number(detectable.value)}"
    else:
        power = (
            f"With {_independent(outcome)} independent units of test images and "
            f"{_seeds(outcome)} trainings an arm, no true difference"
        )
    return (
        f"Primary comparison, declared beforehand: {metric.title} on test, {primary.arm} minus "
        f"{primary.against}: {difference}, {p_equation(p_value)}, so the two are {result}. "
        f"{power} would be found with a probability of {POWER:.0%}."
    )


def _setting_sentence(at: Lookup, outcome: StudyResults) -> str:
    accuracy = at["test", REAL, None, "accuracy", CLASS_ALL]
    f1 = at["test", REAL, None, "macro_f1", CLASS_ALL]
    return (
        f"{accuracy.n_reference} test images in {_independent(outcome)} independent units, "
        f"{_seeds(outcome)} trainings an arm, classifier {outcome.architecture}: trained on {REAL} "
        f"images alone it reaches an accuracy of {METRICS['accuracy'].text(accuracy)} and a macro "
        f"F1 of {METRICS['macro_f1'].text(f1)}."
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
            difference = at["test", gated, ungated, name + DIFFERENCE, CLASS_ALL]
            text = STUDIED[name].text(difference, "+")
            parts.append(f"{gated} - {ungated} {text}, {p_equation(after_holm.value)}")
    if not parts:
        return []
    title, listed = STUDIED[name].title, "; ".join(parts)
    return [f"The class gate's part in {title} on test, p after Holm: {listed}."]


def _other_comparisons(figures: Sequence[Figure], at: Lookup) -> str:
    others = [f for f in figures if f.metric.endswith(P_HOLM)]
    significant = [f for f in others if f.value < LEVEL]
    named = []
    for f in significant:
        name = f.metric.removesuffix(P_HOLM)
        metric = STUDIED[name]
        difference = at[f.reference, f.arm, f.against, name + DIFFERENCE, f.class_name]
        where = f"{metric.title} {f.class_name} on {f.reference}"
        named.append(f"{arms_text(f)}, {where} {metric.text(difference, '+')}")
    listed = f": {'; '.join(named)}" if named else ""
    return (
        f"Of {len(others)} other comparisons, {len(significant)} are significant at {LEVEL} after "
        f"Holm's correction{listed}."
    )


def arm_rows(figures: Sequence[Figure], reference: str = "test") -> Table:
    """Every arm's metrics on a test set, with 95 % intervals."""
    shown = []
    for f in select(figures, reference=reference, metric=tuple(STUDIED)):
        # recall is of a class, the others are of all classes
        if (f.metric == "recall") == (f.class_name != CLASS_ALL):
            shown.append(f)
    columns = list(dict.fromkeys((f.metric, f.class_name) for f in shown))
    columns.sort(key=lambda column: column[0] == "recall")
    heads = ["arm", "training images"]
    for metric, name in columns:
        heads.append(STUDIED[metric].title + ("" if name == CLASS_ALL else f" {name}"))
    rows = []
    for arm, cells in grid(shown, lambda f: f.arm, lambda f: (f.metric, f.class_name)).items():
        texts = [STUDIED[column[0]].text(cells.get(column)) for column in columns]
        rows.append([arm, first_n(cells, columns), *texts])
    return Table(heads, rows)


def comparison_rows(figures: Sequence[Figure], reference: str = "test") -> Table:
    """Every comparison on a test set: difference, p, smallest difference that would be found."""
    at, rows = _lookup(figures), []
    for f in select(figures, reference=reference):
        if not f.metric.endswith(DIFFERENCE):
            continue
        name, pair = f.metric.removesuffix(DIFFERENCE), (reference, f.arm, f.against)
        metric, primary = STUDIED[name], at.get((*pair, name + P_VALUE, f.class_name))
        # the declared comparison is one test and needs no correction; all others share Holm's
        p_value = primary or at[*pair, name + P_HOLM, f.class_name]
        detectable = at.get((*pair, name + DETECTABLE, f.class_name))
        kind = "primary" if primary else "after Holm"
        smallest = metric.number(detectable.value) if detectable else NONE
        row = [arms_text(f), metric.title, f.class_name, metric.text(f, "+")]
        rows.append([*row, p_text(p_value.value), kind, smallest])
    heads = ["arms", "metric", "class", "difference [95 % interval]", "p", "p is", "detectable"]
    return Table(heads, rows)
