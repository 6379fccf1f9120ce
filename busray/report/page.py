"""The evidence for people: one HTML page.

Pure: records in, text out. The page fetches nothing and runs nothing, as its own policy states.
Whatever comes from data is escaped.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain, starmap
from operator import attrgetter
from pathlib import Path
from typing import Any

from busray.corpus.record import flatten
from busray.records import Figure
from busray.report import html
from busray.report.distances import figures_section
from busray.report.simulated import words_for
from busray.report.tables import Json


@dataclass(frozen=True)
class GalleryRow:
    """PNG bytes of a real image beside a synthetic one, before and after refinement.

    The images share a class, not a patient. None leaves the cell blank.
    """

    real: bytes | None
    txt2img: bytes | None
    refined: bytes | None
    caption: str


GALLERY_COLUMNS = ("real", "txt2img", "refined")
"""Fields of a GalleryRow, from left to right."""

STYLE = "\n" + Path(__file__).with_name("page.css").read_text("utf-8")


def report_html(
    report: Json,
    figures: Sequence[Figure],
    galleries: dict[str, list[GalleryRow]],
    sections: Sequence[str] = (),
) -> str:
    """The whole page as HTML: what report.json holds, its figures, and rows of images per class.

    sections: HTML of further parts, after the figures. Missing parts are left out.
    """
    run = report.get("run", {})
    words = words_for(simulated=bool((report.get("dataset") or {}).get("simulated")))
    evidence = [figures_section(figures), *sections, _data_set(report.get("dataset") or {}, report.get("check") or {})]
    body = [
        _header(run),
        _warnings(report.get("warnings") or []),
        _key_numbers(report.get("corpus") or {}),
        words(html.sentence_list([*(report.get("verdicts") or []), *_first_sentences(report)])),
        _gallery(galleries, words),
        *map(words, evidence),
        _training(report.get("finetune") or {}),
        _timings(report.get("timings") or []),
        _provenance(run),
    ]
    # The policy forbids every script and address, should an escape ever be missing.
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{escape(run.get('name', 'run'))} – busray</title>"
        f"<style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(part for part in body if part)
        + '\n<footer class="soft">All generated images are synthetic and not for clinical use.'
        "</footer></main></body></html>\n"
    )


def _header(run: Json) -> str:
    fingerprint, created = str(run.get("fingerprint", "")), str(run.get("created", ""))
    # 12 digits tell runs apart; all 64 are shown when the pointer rests on them
    short = f'<code title="{escape(fingerprint)}">{escape(fingerprint[:12])}</code>'
    facts = [
        fingerprint and f"fingerprint {short}",
        escape(created.replace("T", " ").replace("+00:00", " UTC")),
        run.get("busray") and f"busray {escape(run['busray'])}",
        run.get("command") and f"<code>{escape(run['command'])}</code>",
    ]
    shown = "".join(f"<span>{fact}</span>" for fact in facts if fact)
    return (
        '<header><div class="soft">Synthetic breast-ultrasound corpus and its evidence</div>'
        f"<h1>{escape(run.get('name', 'run'))}</h1>"
        f'<div class="facts soft">{shown}</div></header>'
    )


def _warnings(warned: Sequence[Mapping[str, str]]) -> str:
    """warned: of report.json, `text` and `advice` of each."""
    items = ""
    for warning in warned:
        items += f"<li>{escape(warning['text'])} <span>{escape(warning['advice'])}</span></li>"
    return f'<section class="warnings"><b>Read this first</b><ul>{items}</ul></section>' if items else ""


def _key_numbers(corpus: Json) -> str:
    if not corpus:
        return ""
    planned, committed = corpus["planned"], corpus["committed"]
    quarantined = corpus["quarantined"]
    # shown as a sum, planned = committed + quarantined, so that nothing can be lost unseen
    terms = [(committed, "committed"), (quarantined, "quarantined")]
    if missing := planned - committed - quarantined:
        terms.append((missing, "not generated"))
    sums = "<i>+</i>".join(f"<div><b>{n:,}</b>{name}</div>" for n, name in terms)
    classes = " · ".join(f"{name} {n:,}" for name, n in corpus["classes"].items())
    size = f"{corpus['bytes'] / 1e6:,.1f}\u00a0MB in {corpus['shards']:,} shards"
    total = f"<div><b>{planned:,}</b>planned</div><i>=</i>"
    images = html.paragraph(f"Images: {classes}; {size}", "soft")
    return f'<section class="keys">{total}{sums}</section>{images}'


def _first_sentences(report: Json) -> list[str]:
    """The first sentence of audit and study, with a note where these are of an earlier corpus."""
    sentences = []
    for key in ("audit", "study"):
        if part := report.get(key):
            note = part.get("outdated")
            sentences.append(part["sentences"][0] + (f" {note}" if note else ""))
    return sentences


def _gallery(galleries: dict[str, list[GalleryRow]], words: Callable[[str], str]) -> str:
    """words: what real images are called here; prompts stay as they are."""
    rows = list(chain.from_iterable(galleries.values()))
    # a run without refinement has no such column
    kinds = [kind for kind in GALLERY_COLUMNS if any(map(attrgetter(kind), rows))]
    if not kinds:
        return ""
    note = (
        "The first synthetic images of each class, not a selection. The real images beside them "
        "are for comparison, not their sources; captions are the prompts."
    )
    inside = html.paragraph(words(note), "soft")
    for name, of_class in galleries.items():
        shown = "".join(_gallery_row(row, kinds, name, words) for row in of_class)
        if shown:
            inside += html.heading(name) + f'<div class="columns gallery">{shown}</div>'
    return html.section("Images", inside)


def _gallery_row(row: GalleryRow, kinds: list[str], name: str, words: Callable[[str], str]) -> str:
    heads = cells = ""
    for kind in kinds:
        png = getattr(row, kind)
        heads += f"<span>{words(kind)}</span>"
        cells += html.image(png, f"{words(kind)}, {name}") if png else "<span></span>"
    drawing = f'<div class="row heads">{heads}</div><div class="row">{cells}</div>'
    return html.figure(drawing, row.caption)


def _training(training: Json) -> str:
    """Training loss as a line, validation loss as dots: it is measured at few steps only."""
    loss = list(starmap(html.Point, training.get("loss") or []))
    validation = list(starmap(html.Point, training.get("validation") or []))
    if not loss:
        return ""
    series = [html.Series("training", loss, "c1", dots=False)]
    caption = f"Line: training, {loss[-1].y:.3g} at the end."
    if validation:
        series.append(html.Series("validation", validation, "c2", line=False))
        caption += f" Dots: validation, {validation[-1].y:.3g} at the end."
    title = "mean squared error (no unit)"
    drawing = html.curve_plot(series, "optimiser step", "Loss over optimiser steps", title)
    return html.section("Fine-tuning", html.figure(drawing, caption))


def _data_set(dataset: Json, check: Json) -> str:
    counts, left_out = dataset.get("counts") or {}, dataset.get("left_out") or []
    classes = list(dict.fromkeys(chain.from_iterable(counts.values())))
    rows = []
    for split, of_split in counts.items():
        rows.append([split, *(of_split.get(c, 0) for c in classes), sum(of_split.values())])
    title = f"Images in each split ({dataset.get('size')} px, {dataset.get('frame')})"
    inside = html.folded(title, html.table(["split", *classes, "all"], rows))
    if said := patients_sentence(dataset):
        inside += html.paragraph(said)
    reasons = html.table(["file", "reason"], left_out, "words")
    inside += html.folded(f"Left out ({len(left_out)})", reasons)
    inside += _copies(check)
    for checked in check.get("tables") or []:
        # two columns are a file and words about it, which may be long; more are numbers
        kind = "words" if len(checked["columns"]) <= 2 else ""
        inside += html.folded(checked["title"], html.table(checked["columns"], checked["rows"], kind))
    return html.section("Data set", inside)


def _copies(check: Json) -> str:
    """Which copies of one image were looked for, and which were not."""
    copies = check.get("copies_looked_for") or []
    if not copies:
        return ""
    sought = [entry["copy"] for entry in copies if entry["looked_for"].startswith("yes")]
    others = [entry["copy"] for entry in copies if not entry["looked_for"].startswith("yes")]
    words = f"Copies of one image stay on one side of the split. Looked for: {'; '.join(sought)}."
    return html.paragraph(f"{words} Not looked for: {'; '.join(others)}.")


def patients_sentence(dataset: Json) -> str:
    """Whether a patient is on two sides of the split; empty for a report of an older busray.

    dataset: of report.json."""
    patients = dataset.get("patients") or {}
    if not patients:
        return ""
    n, crossing = patients["patients"], patients["crossing"]
    if not n:
        return (
            "Nobody said which images show one patient. So a patient may be in several splits, unless the images "
            "are near-duplicates."
        )
    if crossing:
        return f"{crossing} of {n} patients are in several splits."
    return f"The images show {n} known patients. None of them is in more than one split."


def _timings(timings: list[Json]) -> str:
    rows, note = [], ""
    for timing in timings:
        images, rate = timing["images"], timing["images_per_actor_second"]
        row = [timing["stage"], f"{timing['seconds']:,.1f}", f"{images:,}" if images else ""]
        rows.append([*row, f"{rate:,.2f}" if rate else ""])
        if rate:
            note = html.paragraph(
                "Images per second and actor: the images of all shards, divided by the seconds "
                "that actors took to generate them according to the shards' records. All sessions "
                "count; loading models and encoding do not.",
                "soft",
            )
    heads = ["stage", "wall time (s)", "images", "images per second and actor"]
    return html.section("Timings", html.table(heads, rows) + note)


def _provenance(run: Json) -> str:
    inside = ""
    for part in ("base", "adapters", "execution", "settings"):
        inside += html.folded(part.capitalize(), _settings(run.get(part)))
    return html.section("Provenance", inside)


def _settings(tree: Any) -> str:
    """{"a": {"b": 1}} as a table with the row `a.b`, `1`; unset values are left out."""
    rows = []
    for name, value in flatten(tree or {}).items():
        if value not in (None, [], {}):
            # a string without quotes; other values as JSON writes them
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            rows.append([name, text])
    return html.table((), rows, "words")
