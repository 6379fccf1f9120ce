"""The downstream study's part of report.html: what it found in words, bars, the curve over corpus size, tables."""

import json
from collections.abc import Mapping
from html import escape as _e
from typing import Any

from busray.quality.page import folded, scale, svg, table, text, ticks
from busray.quality.study_design import MIXED, UNGATED
from busray.quality.study_figures import NAMES, arm_rows, comparison_rows
from busray.records import CLASS_ALL

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
