"""The copy audit's part of report.html: what it found in words, its figures, the closest pairs side by side."""

import base64
import math
from collections.abc import Sequence
from html import escape as _e
from typing import Any

from busray.evidence.audit import Evidence, Sighting
from busray.evidence.copies import (
    FALSE_ALARMS,
    IDENTICAL,
)
from busray.evidence.stats.intervals import wilson
from busray.report.html import folded, scale, svg, table, text, ticks

Json = dict[str, Any]


NAMES = {
    "copies": "share of the corpus that copies a training image",
    "copy_false_positives": "share of clusters of real images held out with one taken for a copy",
    "copy_false_alarms_expected": "false alarms allowed in the corpus",
    "copy_threshold_image": "score above which an image is a copy",
    "copy_threshold_lesion": "score above which its lesion is one",
    "copy_sensitivity": "share of planted copies found",
    "training_images_copied": "share of training images copied by as much of the corpus",
    "near_duplicates_inside": "share of n sampled images with a near-duplicate among those n",
    "auth_pct": "AuthPct, as a share (description only)",
    "c_t": "C_T; below 0: nearer to train than test images are (description only)",
}


SPACE_NAMES = {
    "image": ("The whole image", "score of the nearest training image (higher is nearer)"),
    "lesion": ("The lesion", "score of the nearest training lesion (higher is nearer)"),
    "features": ("Features", "distance to the nearest training image (smaller is nearer)"),
}
"""space -> title and axis of its plot"""


TOP, BOTTOM = 40.0, 180.0
"""Of a plot."""


def audit_rows(figures: list[Json]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of the audit's figures."""
    rows = []
    for f in figures:
        interval = f"[{f['interval'][0]:.4f}, {f['interval'][1]:.4f}]" if f["interval"] else ""
        rows.append([NAMES[f["metric"]], f["arm"], f"{f['value']:.4f}", interval, f["n"], f["n_reference"]])
    return ["figure", "of", "value", "95 % interval", "n", "training images"], [[str(c) for c in row] for row in rows]


def of_now(audit: Json, images: int) -> Json:
    """An audit as a report of so many images of the corpus holds it: `outdated` says where it was of fewer, else None.

    Images are only ever added to a corpus, so their number tells.
    """
    audited = next(f["n"] for f in audit["figures"] if f["metric"] == "copies")
    said = (
        f"The audit is of an earlier state of this corpus ({audited:,} of {images:,} images): run `busray audit` again."
    )
    return {**audit, "outdated": said if audited < images else None}


def copies_section(audit: Json, panels: bytes | None) -> str:
    """Empty where there was no audit. panels: PNG of the closest pairs."""
    if not audit:
        return ""
    sentences = [*([audit["outdated"]] if audit.get("outdated") else []), *audit["sentences"]]
    said = "".join(f"<li>{_e(sentence)}</li>" for sentence in sentences)
    drawing = ""
    if panels:
        source = base64.b64encode(panels).decode()
        drawing = (
            f'<figure><img src="data:image/png;base64,{source}" style="max-width:100%" alt="closest pairs">'
            "<figcaption>The closest pairs: an image of the corpus, and beside it the training image that it is "
            "nearest to (mirrored where its mirror image is). Closest does not mean copied.</figcaption></figure>"
        )
    return (
        f'<section><h2>Copies of training images</h2><ul class="verdicts">{said}</ul>'
        "<p>Each image's nearest training images, by squares of their pixels at many scales and places (also mirrored, "
        "and lesions alone) and by features, are aligned with it and compared in fine detail. Thresholds are from real "
        "images that are in no training set.</p>"
        + table(*audit_rows(audit["figures"]))
        + _spread(audit.get("spread") or {})
        + drawing
        + folded("The closest pairs", table(audit["closest"]["columns"], audit["closest"]["rows"], "words"))
        + "</section>"
    )


def _spread(spaces: Json) -> str:
    """A plot a space; empty for audits of before these were counted."""
    plots = "".join(_space_plot(*SPACE_NAMES[space], counted) for space, counted in spaces.items())
    return f'<h3>Nearest training images</h3><div class="columns">{plots}</div>' if plots else ""


def _space_plot(title: str, axis: str, counted: Json) -> str:
    """Shares of real images held out (filled) and of the corpus (line) in each bin, with the threshold.

    The shares' axis is logarithmic: a copy in a million images is to be seen.
    """
    real, ours, threshold = counted["held_out"], counted["corpus"], counted["threshold"]
    width = (counted["ends"][1] - counted["ends"][0]) / len(real)
    held = [counted["ends"][0] + i * width for i, both in enumerate(zip(real, ours, strict=True)) if any(both)]
    low, high = min(held), max(held) + width
    if threshold is not None:
        low, high = min(low, threshold - width), max(high, threshold + width)
    decades = math.ceil(math.log10(max(sum(real), sum(ours)))) or 1
    x, y = scale(low, high, 52, 392), scale(-decades - 0.3, 0, BOTTOM, TOP)
    marks = ""
    for decade in range(-decades, 1):
        marks += f'<path class="rule" d="M52 {y(decade):.1f}H392"/>'
        marks += text(46, y(decade) + 4, f"{10.0**decade:g}", "soft", "end")
    for t in ticks(low, high):
        marks += text(x(t), BOTTOM + 16, f"{t:g}", "soft", "middle")
    for colour, counts, fill in ((0, real, 0.3), (1, ours, 0.0)):
        line = _steps(
            [
                (
                    x(counted["ends"][0] + i * width),
                    x(counted["ends"][0] + (i + 1) * width),
                    y(math.log10(count / sum(counts))),
                )
                for i, count in enumerate(counts)
                if count
            ]
        )
        marks += f'<g class="c{colour}"><path stroke="currentColor" stroke-width="1.5" fill="currentColor" '
        marks += f'fill-opacity="{fill}" d="{line}"/></g>'
    marks += _key(52, 0, 0.3, "real, held out") + _key(170, 1, 0.0, "corpus")
    if threshold is not None:
        marks += f'<path class="floor" d="M{x(threshold):.1f} {TOP - 8}V{BOTTOM}"/>'
        marks += text(
            x(threshold), TOP - 12, f"threshold {threshold:.3f}", anchor="end" if x(threshold) > 220 else "start"
        )
    marks += text(222, BOTTOM + 34, axis, "soft", "middle")
    decides = "Nothing is decided by it, so it has no threshold."
    if threshold is not None:
        decides = "What lies beyond the dashed line is a copy; a bin that the line cuts may hold both."
    n = f"n = {sum(real):,} real images held out and {sum(ours):,} of the corpus"
    legend = f"Share of images in a bin, on a logarithmic axis; {n}. {decides}"
    drawing = svg(400, BOTTOM + 40, f"{title}: how near training images are", marks)
    return f"<figure><h3>{title}</h3>{drawing}<figcaption>{legend}</figcaption></figure>"


def _steps(bars: Sequence[tuple[float, float, float]]) -> str:
    """The outline of bars (left, right, top), those that touch as one."""
    path, at = "", None
    for left, right, top in bars:
        touches = at is not None and abs(left - at) < 0.01
        path += f"V{top:.1f}" if touches else f"{'' if at is None else f'V{BOTTOM:g}'}M{left:.1f} {BOTTOM:g}V{top:.1f}"
        path += f"H{right:.1f}"
        at = right
    return f"{path}V{BOTTOM:g}"


def _key(left: float, colour: int, fill: float, words: str) -> str:
    swatch = f'<rect x="{left}" y="3" width="14" height="10" fill="currentColor" fill-opacity="{fill}" '
    return f'<g class="c{colour}">{swatch}stroke="currentColor" stroke-width="1.5"/></g>' + text(left + 20, 12, words)


def audit_sentences(of: Evidence) -> list[str]:
    """The verdict with the search's sensitivity first, then how far it can be trusted."""
    n, copies, training = of.tally.images, of.tally.copies, of.training
    wrong, units = of.false_positives
    low, high = wilson(wrong, units)
    found = ", ".join(f"{name} {hits / len(of.planted[name]):.0%}" for name, hits in of.found.items())
    if copies:
        verdict = f"{copies} of {n:,} images copy one of {training} training images ({len(of.tally.copied)} copied)"
    elif of.sees:
        verdict = f"none of {n:,} images was found to copy one of {training} training images"
    else:
        verdict = (
            f"no verdict on {n:,} images, since the search misses training images planted among them as they are, "
            f"{of.found.get(IDENTICAL, 0)} of {len(of.planted.get(IDENTICAL, ()))} found"
        )
    said = [
        f"Copies: {verdict}; found of planted copies: {found or 'nothing was planted'}.",
        f"False alarms allowed among {n:,} images: {FALSE_ALARMS:g}, kept if the scores of images that are no copies "
        f"follow the law fitted to {len(of.held_out)} real images held out; of their {units} clusters {wrong} have one "
        f"above the thresholds (95 % interval of the rate {low:.2%} to {high:.2%}).",
    ]
    if of.inside[1]:
        said.append(
            f"Inside the corpus: of {of.inside[1]} images sampled from {n:,}, {of.inside[0]} have a near-duplicate "
            f"among those {of.inside[1]}."
        )
    return said


def closest_rows(closest: Sequence[Sighting], files: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of the closest pairs; files: of the training images."""
    columns = ["image", "training image", "what", "score", "over its threshold by"]
    rows = []
    for s in closest:
        what = ("mirrored " if s.mirrored else "") + s.kind
        rows.append([f"{s.class_name} {s.index}", files[s.original], what, f"{s.score:.3f}", f"{s.excess:+.3f}"])
    return columns, rows
