"""The copy audit's part of report.html: what it found in words, its figures, the closest pairs side by side."""

import base64
from html import escape as _e
from typing import Any

from busray.quality.page import folded, table

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
        + drawing
        + folded("The closest pairs", table(audit["closest"]["columns"], audit["closest"]["rows"], "words"))
        + "</section>"
    )
