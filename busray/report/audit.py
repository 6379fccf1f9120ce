"""The copy audit's part of report.html: sentences, figures, histograms, the closest pairs."""

import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup

from busray.evidence.audit import AuditEvidence, NearestPair
from busray.evidence.copies import FALSE_ALARMS, IDENTICAL
from busray.evidence.stats.intervals import wilson
from busray.records import Figure
from busray.report import html, plots
from busray.report.metrics import METRICS, arms_text
from busray.report.tables import Json, Table, figures_of

TITLE = "Copies of training images"

SPACE_NAMES = {
    "image": ("The whole image", "score of the nearest training image (higher is nearer)"),
    "lesion": ("The lesion", "score of the nearest training lesion (higher is nearer)"),
    "features": ("Features", "distance to the nearest training image (smaller is nearer)"),
}
"""space -> title and axis of its plot"""


LEGEND = (
    ("c0", "held-out real images: share in each bin, on a logarithmic axis"),
    ("c1", "the corpus"),
    ("floor", "threshold: images beyond it are copies; a bin that the line cuts may hold both"),
)


def audit_rows(figures: Sequence[Figure]) -> Table:
    """A row for each of the audit's figures."""
    rows = []
    for f in figures:
        metric = METRICS[f.metric]
        interval = metric.interval(f.interval) if f.interval else ""
        row = [metric.title, arms_text(f), metric.number(f.value), interval]
        rows.append([*row, str(f.n), str(f.n_reference)])
    return Table(["figure", "of", "value", "95 % interval", "n", "training images"], rows)


def of_now(audit: Json, images: int) -> Json:
    """The audit with `outdated`: a sentence if the corpus has more images now, else None."""
    audited = next(f.n for f in figures_of(audit) if f.metric == "copies")
    # Images are only ever added to a corpus, so comparing their number is enough.
    note = (
        f"The audit is of an earlier state of this corpus ({audited:,} of {images:,} images): run `busray audit` again."
    )
    return {**audit, "outdated": note if audited < images else None}


def copies_section(audit: Json, panels: bytes | None) -> html.Section:
    """Nothing inside where there was no audit. panels: PNG of the closest pairs."""
    if not audit:
        return html.Section(TITLE, html.NOTHING)
    outdated = [audit["outdated"]] if audit.get("outdated") else []
    method = (
        "The search finds each image's nearest training images in two ways: by squares of their "
        "pixels at many scales and places (also mirrored, and lesions alone), and by features. It "
        "aligns these with the image and compares them in fine detail. The thresholds come from "
        "real images that are in no training set."
    )
    caption = (
        "The closest pairs: an image of the corpus, with the nearest training image at its side "
        "(mirrored where the mirrored one is nearer). Closest does not mean copied."
    )
    inside = html.sentence_list([*outdated, *audit["sentences"]]) + html.paragraph(method)
    inside += html.table(*audit_rows(figures_of(audit))) + html.heading("Nearest training images")
    drawings = html.NOTHING
    for space, counts in audit["spread"].items():
        drawings += _histogram(*SPACE_NAMES[space], counts)
    inside += html.legend(LEGEND if drawings else ()) + html.columns(drawings)
    if panels:
        inside += html.figure(html.image(panels, "closest pairs"), caption)
    closest = audit["closest"]
    pairs = html.table(closest["columns"], closest["rows"], "words")
    inside += html.folded("The closest pairs", pairs)
    return html.Section(TITLE, inside)


def _histogram(title: str, axis: str, counts: Json) -> Markup:
    """Shares of held-out real images (filled) and of the corpus (line) a bin."""
    real, corpus, threshold = counts["held_out"], counts["corpus"], counts["threshold"]
    start, end = counts["ends"]
    width = (end - start) / len(real)
    # empty bins at both ends are cut off, but never the threshold
    filled = [i for i, pair in enumerate(zip(real, corpus, strict=True)) if any(pair)]
    low, high = start + filled[0] * width, start + (filled[-1] + 1) * width
    if threshold is not None:
        low, high = min(low, threshold - width), max(high, threshold + width)
    # The axis of the shares is logarithmic, so that one copy in a million images can be seen.
    decades = math.ceil(math.log10(max(sum(real), sum(corpus)))) or 1
    plot = plots.Plot((low, high), (-decades - 0.3, 0), (52, 392, 40, 184))
    plot.y_axis(range(-decades, 1), lambda decade: f"{10.0**decade:g}")
    plot.x_axis(plots.ticks(low, high), axis)
    for colour, of_side, opacity in (("c0", real, 0.3), ("c1", corpus, None)):
        plot.shape(_outline(plot, start, width, of_side), colour, opacity)
    decides = " This space has no threshold and decides nothing."
    if threshold is not None:
        x = plot.x(threshold)
        plot.rule("floor", (x, plot.top - 8), (x, plot.bottom))
        anchor = "end" if x > 220 else "start"
        plot.text(x, plot.top - 12, f"threshold {threshold:.3f}", anchor=anchor)
        decides = ""
    caption = f"n = {sum(real):,} held-out real images and {sum(corpus):,} of the corpus.{decides}"
    return html.figure(plot.drawing(f"{title}: how near training images are"), caption, title)


def _outline(plot: plots.Plot, start: float, width: float, counts: Sequence[int]) -> str:
    """The outline of a histogram's bars as an SVG path; bars that touch are one shape."""
    path, last_right = "", None
    for i, count in enumerate(counts):
        if not count:
            continue
        left, right = plot.x(start + i * width), plot.x(start + (i + 1) * width)
        top = plot.y(math.log10(count / sum(counts)))
        if last_right is None or abs(left - last_right) >= 0.01:
            close = "" if last_right is None else f"V{plot.bottom:g}"
            path += f"{close}M{left:.1f} {plot.bottom:g}"
        path += f"V{top:.1f}H{right:.1f}"
        last_right = right
    return f"{path}V{plot.bottom:g}"


def audit_sentences(of: AuditEvidence) -> list[str]:
    """The verdict with the search's sensitivity first, then how far it can be trusted."""
    n = of.tally.images
    false_alarms, units = of.false_positives
    low, high = wilson(false_alarms, units)
    planted = ", ".join(f"{name} {hits / len(of.planted[name]):.0%}" for name, hits in of.planted_found.items())
    sentences = [
        f"Copies: {_verdict(of)}; planted copies found: {planted or 'nothing was planted'}.",
        f"False alarms allowed among {n:,} images: {FALSE_ALARMS:g}. This holds if the scores of "
        "images that copy nothing follow the distribution fitted to "
        f"{len(of.held_out)} held-out real images. Of their {units} independent units, "
        f"{false_alarms} have an image above the thresholds (95 % interval of the rate {low:.2%} "
        f"to {high:.2%}).",
    ]
    duplicates, sampled = of.near_duplicates
    if sampled:
        sentences.append(
            f"Inside the corpus: of {sampled} images sampled from {n:,}, {duplicates} have a "
            f"near-duplicate among those {sampled}."
        )
    return sentences


def _verdict(of: AuditEvidence) -> str:
    n, copies = of.tally.images, of.tally.copies
    if copies:
        copied = f"one of {of.training} training images ({len(of.tally.copied)} copied)"
        return f"{copies} of {n:,} images copy {copied}"
    if of.detects:
        return f"none of {n:,} images was found to copy one of {of.training} training images"
    # A search that misses exact copies cannot say that there are none.
    detected, planted = of.planted_found.get(IDENTICAL, 0), len(of.planted.get(IDENTICAL, ()))
    return (
        f"no verdict on {n:,} images, because the search misses exact copies of training images "
        f"planted among them ({detected} of {planted} found)"
    )


def closest_rows(closest: Iterable[NearestPair], files: Sequence[str]) -> Table:
    """The closest pairs; files: of the training images."""
    rows = []
    for pair in closest:
        what = ("mirrored " if pair.mirrored else "") + pair.kind
        scores = [f"{pair.score:.3f}", f"{pair.excess:+.3f}"]
        rows.append([f"{pair.class_name} {pair.index}", files[pair.original], what, *scores])
    return Table(["image", "training image", "what", "score", "over its threshold by"], rows)
