"""The evidence for people: one HTML page. templates/page.html has its frame.

Pure: records in, text out. The page fetches nothing and runs nothing, as its own policy states.
Whatever comes from data is escaped.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, starmap
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from markupsafe import Markup

from busray.corpus.record import flatten
from busray.layout import CARD, MANIFEST, REPORT_JSON
from busray.records import Figure
from busray.report import html, plots
from busray.report.classes import TITLE as CLASSES
from busray.report.contact_sheet import thumbnail
from busray.report.distances import distance_sections
from busray.report.simulated import words_for
from busray.report.summary import TABLE_NOTE, drawn_arm, not_measured, short_sentences, short_table
from busray.report.tables import Json
from busray.report.warnings import collapsed_classes

Words = Callable[[str], str]
"""What images are called: of phantoms, no image is called real."""


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
STRIP_IMAGES = 3  # of each kind and class that the first screen shows
THUMBNAIL = 160  # pixels of a side there

STAGES = ("finetune", "generate", "evaluate", "audit", "study")
"""First words of timed stages, in the order of the work."""

STYLE = (Path(__file__).with_name("templates") / "page.css").read_text("utf-8")


class Picture(NamedTuple):
    """A picture of the page that enlarges."""

    anchor: str
    address: str
    alt: str


def report_html(
    report: Json,
    figures: Sequence[Figure],
    galleries: dict[str, list[GalleryRow]],
    sections: Sequence[html.Section] = (),
) -> str:
    """The whole page as HTML: what report.json holds, its figures, and rows of images per class.

    sections: further parts, after the distances. Missing parts are left out.
    """
    run, dataset = report.get("run", {}), report.get("dataset") or {}
    words = words_for(simulated=bool(dataset.get("simulated")))
    findings = html.sentence_list([*(report.get("verdicts") or []), *_first_sentences(report)])
    measured = [*distance_sections(figures), *sections]
    early: list[html.Section] = []
    if collapsed_classes(figures, drawn_arm(report)):
        # what the corpus must not be used for is seen before all other figures
        early = [section for section in measured if section.title == CLASSES]
        measured = [section for section in measured if section.title != CLASSES]
    before = [
        *early,
        html.Section("Findings", findings),
        _data_set(dataset, report.get("check") or {}),
        _training(report.get("finetune") or {}),
    ]
    # not in other words as a whole: its captions are the user's prompts
    images = html.Section("Images", _gallery(galleries, words))
    after = [*measured, _timings(report.get("timings") or []), _provenance(run)]
    shown = [*_in_words(before, words), images, *_in_words(after, words)]
    table = html.table(*short_table(report, figures))
    return html.ENVIRONMENT.get_template("page.html").render(
        style=Markup(STYLE),
        run=run,
        facts=_facts(run),
        sentences=list(map(words, short_sentences(report, figures))),
        not_measured=not_measured(report) if report.get("corpus") else "",
        warnings=report.get("warnings") or [],
        strip=_strip(galleries, words),
        strip_kinds=(words("real"), "synthetic"),
        table=words(table),
        table_note=words(TABLE_NOTE) if table else "",
        corpus=_corpus(report.get("corpus") or {}),
        links=_links(report),
        sections=[section for section in shown if section.inside],
    )


def _in_words(sections: Sequence[html.Section], words: Callable[[Any], Any]) -> list[html.Section]:
    return [html.Section(words(section.title), words(section.inside)) for section in sections]


def _facts(run: Json) -> list[tuple[str, str, str]]:
    """(what stands before it, the fact, all of it where it is shortened)"""
    fingerprint, created = str(run.get("fingerprint", "")), str(run.get("created", ""))
    facts = [
        # 12 digits distinguish runs; all 64 are shown when the pointer rests on them
        ("fingerprint", fingerprint[:12], fingerprint),
        ("", created.replace("T", " ").replace("+00:00", " UTC"), ""),
        ("busray", str(run.get("busray", "")), ""),
        ("command", str(run.get("command", "")), ""),
    ]
    return [fact for fact in facts if fact[1]]


def _corpus(corpus: Json) -> Json:
    """The images as a sum, planned = committed + quarantined, so that nothing is lost unseen."""
    if not corpus:
        return {}
    planned, committed = corpus["planned"], corpus["committed"]
    quarantined = corpus["quarantined"]
    terms = [(committed, "committed"), (quarantined, "quarantined")]
    if missing := planned - committed - quarantined:
        terms.append((missing, "not generated"))
    classes = " · ".join(f"{name} {n:,}" for name, n in corpus["classes"].items())
    size = f"{corpus['bytes'] / 1e6:,.1f}\u00a0MB in {corpus['shards']:,} shards"
    return {"planned": planned, "terms": terms, "images": f"Images: {classes}; {size}"}


def _links(report: Json) -> list[tuple[str, str]]:
    """(address beside the page, what is there) of what a reader looks for next."""
    if not report.get("corpus"):
        return []
    adapters = (report["run"].get("adapters") or {}).get("folder")
    links = [
        ("data/", "images"),
        (MANIFEST, "manifest"),
        (CARD, "card (after `busray card`)"),
        (f"{adapters}/" if adapters else "", "adapters"),
        (REPORT_JSON, "figures as JSON"),
    ]
    # relative, so that no name is read as another protocol
    return [(f"./{quote(address)}", text) for address, text in links if address]


def _first_sentences(report: Json) -> list[str]:
    """The first sentence of audit and study, with a note where these are of an earlier corpus."""
    sentences = []
    for key in ("audit", "study"):
        if part := report.get(key):
            note = part.get("outdated")
            sentences.append(part["sentences"][0] + (f" {note}" if note else ""))
    return sentences


def _strip(galleries: Mapping[str, Sequence[GalleryRow]], words: Words) -> list[tuple[str, list[list[Picture]]]]:
    """(class, [its first real images, its first synthetic ones]), small; each links to it large."""
    strip = []
    for name, rows in galleries.items():
        sides: list[list[Picture]] = [[], []]
        for number, row in enumerate(rows[:STRIP_IMAGES]):
            released = "refined" if row.refined else "txt2img"
            for side, kind in zip(sides, ("real", released)):
                if png := getattr(row, kind):
                    small = html.data_address(thumbnail(png, THUMBNAIL))
                    side.append(Picture(_anchor(name, number, kind), small, f"{words(kind)}, {name}"))
        if any(sides):
            strip.append((name, sides))
    return strip


def _gallery(galleries: Mapping[str, Sequence[GalleryRow]], words: Words) -> Markup:
    rows = list(chain.from_iterable(galleries.values()))
    # a run without refinement has no such column
    kinds = [kind for kind in GALLERY_COLUMNS if any(map(attrgetter(kind), rows))]
    if not kinds:
        return html.NOTHING
    classes = []
    for name, of_class in galleries.items():
        shown = []
        for number, row in enumerate(of_class):
            pictures = [_picture(row, kind, name, number, words) for kind in kinds]
            shown.append((pictures, row.caption))
        if shown:
            classes.append((name, shown))
    note = (
        "The first synthetic images of each class, not a selection. The real images beside them "
        "are for comparison, not their sources; captions are the prompts. A click enlarges an image."
    )
    template = html.ENVIRONMENT.get_template("gallery.html")
    return Markup(template.render(note=words(note), kinds=list(map(words, kinds)), classes=classes))


def _picture(row: GalleryRow, kind: str, name: str, number: int, words: Words) -> Picture | None:
    png = getattr(row, kind)
    return Picture(_anchor(name, number, kind), html.data_address(png), f"{words(kind)}, {name}") if png else None


def _anchor(class_name: str, number: int, kind: str) -> str:
    """What a link to an image of the gallery names."""
    # Browsers decode a link before they look for the name in it: so it has no `%`.
    name = quote(class_name, safe="").replace("%", "_")
    return f"image-{name}-{number}-{GALLERY_COLUMNS.index(kind)}"


def _training(training: Json) -> html.Section:
    """Training loss as a line, validation loss as dots: it is measured at few steps only."""
    loss = list(starmap(plots.Point, training.get("loss") or []))
    validation = list(starmap(plots.Point, training.get("validation") or []))
    if not loss:
        return html.Section("Fine-tuning", html.NOTHING)
    series = [plots.Series("training", loss, "c1", dots=False)]
    caption = f"Line: training, {loss[-1].y:.3g} at the end."
    if validation:
        series.append(plots.Series("validation", validation, "c2", line=False))
        caption += f" Dots: validation, {validation[-1].y:.3g} at the end."
    distances = training.get("distance") or []
    if distances:
        values = ", ".join(f"{1000 * value:.3g} at step {step}" for step, value in distances)
        caption += (
            f" Quick KID x 1000 of drawn images to val images ({training.get('distance_features')}): {values}."
            " The weights of the smallest after step 0 are the adapters."
        )
    title = "mean squared error (no unit)"
    drawing = plots.curve_plot(series, "optimiser step", "Loss over optimiser steps", title)
    return html.Section("Fine-tuning", html.figure(drawing, caption))


def _data_set(dataset: Json, check: Json) -> html.Section:
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
    return html.Section("Data set", inside)


def _copies(check: Json) -> Markup:
    """Which copies of one image were looked for, and which were not."""
    copies = check.get("copies_looked_for") or []
    if not copies:
        return html.NOTHING
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


def _timings(timings: list[Json]) -> html.Section:
    rows, note = [], html.NOTHING
    for timing in sorted(timings, key=_place_in_work):
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
    return html.Section("Timings", html.table(heads, rows) + note)


def _place_in_work(timing: Json) -> int:
    word = timing["stage"].split()[0]
    return STAGES.index(word) if word in STAGES else len(STAGES)


def _provenance(run: Json) -> html.Section:
    inside = html.NOTHING
    for part in ("base", "adapters", "execution", "settings"):
        inside += html.folded(part.capitalize(), _settings(run.get(part)))
    return html.Section("Provenance", inside)


def _settings(tree: Any) -> Markup:
    """{"a": {"b": 1}} as a table with the row `a.b`, `1`; unset values are left out."""
    rows = []
    for name, value in flatten(tree or {}).items():
        if value not in (None, [], {}):
            # a string without quotes; other values as JSON writes them
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            rows.append([name, text])
    return html.table((), rows, "words")
