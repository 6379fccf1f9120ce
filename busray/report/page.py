"""The evidence for people: one HTML page.

Pure: records in, text out. The page fetches nothing and runs nothing, as its own policy states.
Whatever comes from data is escaped.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from busray.corpus.record import flatten
from busray.records import Figure
from busray.report.distances import figures_section
from busray.report.html import (
    Point,
    Series,
    curve_plot,
    figure,
    folded,
    heading,
    image,
    paragraph,
    section,
    sentence_list,
    table,
)
from busray.report.tables import Json


@dataclass(frozen=True)
class GalleryRow:
    """PNG bytes of a real image beside a synthetic one, before and after refinement.

    The images share a class, not a patient.
    """

    real: bytes | None
    txt2img: bytes | None
    refined: bytes | None
    caption: str


STYLE = """
:root{color-scheme:light dark;--paper:#fcfcfa;--ink:#20262b;--soft:#626c75;--rule:#dfe2e2;--card:#f3f4f1;
--c0:#7d8790;--c1:#2c6e91;--c2:#b0622a;--c3:#4d7c4a}
@media(prefers-color-scheme:dark){:root{--paper:#15181b;--ink:#e3e6e8;--soft:#98a2aa;--rule:#31373c;--card:#1d2125;
--c0:#9aa4ad;--c1:#6fb3d6;--c2:#e0a06c;--c3:#93c48f}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,"Segoe UI","Noto Sans",sans-serif}
main{max-width:67.5rem;margin:auto;padding:2.5rem 1.25rem 4rem;overflow-wrap:anywhere}
h1{font-size:2rem;line-height:1.2;margin:.1rem 0 .6rem}
h2{font-size:1.2rem;margin:3rem 0 .8rem;padding-top:1rem;border-top:1px solid var(--rule)}
h3{font-size:1rem;margin:1.4rem 0 .4rem}
p{margin:.5rem 0;max-width:56rem}
.soft,figcaption{color:var(--soft);font-size:.875rem}
code{font:.9em ui-monospace,"DejaVu Sans Mono",monospace}
.facts{display:flex;flex-wrap:wrap;gap:.2rem 1.5rem}
.keys{display:flex;flex-wrap:wrap;gap:.4rem 1.1rem;margin:1.8rem 0 .8rem;color:var(--soft);font-size:.875rem}
.keys b{display:block;font-size:2rem;line-height:1.2;color:var(--ink);font-variant-numeric:tabular-nums}
.keys i{font:300 1.6rem/1.5 system-ui,sans-serif}
.sentences{list-style:none;margin:1.6rem 0;padding:.7rem 1.2rem;background:var(--card);border-left:3px solid var(--c1)}
.sentences li{margin:.35rem 0}
.columns{display:grid;gap:0 2.5rem}.columns>*{min-width:0}
figure{margin:0 0 1rem}
img{max-width:100%}
.row{display:grid;grid-auto-columns:1fr;grid-auto-flow:column;gap:4px}
.row span{color:var(--soft);font-size:.8rem}
.row img{display:block;width:100%;image-rendering:auto;border-radius:2px}
.gallery figcaption{font-size:.75rem;line-height:1.35;margin-top:.25rem}
.gallery figure:nth-child(n+2) .heads{display:none}
@media(min-width:56rem){.columns{grid-template-columns:1fr 1fr}.gallery figure:nth-child(2) .heads{display:grid}}
svg{display:block;width:100%;max-width:32rem;height:auto;margin:.3rem 0 .5rem}
svg text{font-size:12px;fill:var(--ink);font-variant-numeric:tabular-nums}
svg .soft{fill:var(--soft);font-size:12px}svg .head{font-weight:600}svg .rule{stroke:var(--rule)}
svg .floor{stroke:var(--ink);stroke-dasharray:3 3}
.c0{color:var(--c0)}.c1{color:var(--c1)}.c2{color:var(--c2)}.c3{color:var(--c3)}
.scroll{overflow-x:auto;margin:.6rem 0 1rem;overflow-wrap:normal}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums}
th,td{padding:.35rem 1rem .35rem 0;text-align:right;border-bottom:1px solid var(--rule);vertical-align:top}
th{font-weight:600;color:var(--soft);vertical-align:bottom}
td{white-space:nowrap}
.left{text-align:left}
.words td{white-space:normal;overflow-wrap:anywhere;min-width:8rem}
details{border-bottom:1px solid var(--rule);padding:.55rem 0}
summary{cursor:pointer;font-weight:600}
footer{margin-top:3rem}
"""


def report_html(
    report: Json, figures: Sequence[Figure], galleries: dict[str, list[GalleryRow]], sections: Sequence[str] = ()
) -> str:
    """The whole page: what report.json holds, its figures, and a few rows of images a class.

    sections: HTML of further parts, after the figures. Missing parts are left out.
    """
    run = report.get("run", {})
    body = [
        _header(run),
        _key_numbers(report.get("corpus") or {}),
        sentence_list([*(report.get("verdicts") or []), *_first_sentences(report)]),
        _gallery(galleries),
        figures_section(figures),
        *sections,
        _data_set(report.get("dataset") or {}, report.get("check") or {}),
        _training(report.get("finetune") or {}),
        _timings(report.get("timings") or []),
        _provenance(run),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{escape(run.get('name', 'run'))} – busray</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(part for part in body if part)
        + '\n<footer class="soft">All generated images are synthetic and not for clinical use.</footer>'
        "</main></body></html>\n"
    )


def _header(run: Json) -> str:
    fingerprint, created = str(run.get("fingerprint", "")), str(run.get("created", ""))
    facts = [
        fingerprint and f'fingerprint <code title="{escape(fingerprint)}">{escape(fingerprint[:12])}</code>',
        escape(created.replace("T", " ").replace("+00:00", " UTC")),
        run.get("busray") and f"busray {escape(run['busray'])}",
        run.get("command") and f"<code>{escape(run['command'])}</code>",
    ]
    return (
        '<header><div class="soft">Synthetic breast-ultrasound corpus and its evidence</div>'
        f"<h1>{escape(run.get('name', 'run'))}</h1>"
        f'<div class="facts soft">{"".join(f"<span>{fact}</span>" for fact in facts if fact)}</div></header>'
    )


def _key_numbers(corpus: Json) -> str:
    if not corpus:
        return ""
    planned, committed, quarantined = (corpus[key] for key in ("planned", "committed", "quarantined"))
    terms = [(committed, "committed"), (quarantined, "quarantined")]
    if missing := planned - committed - quarantined:
        terms.append((missing, "not generated"))
    sums = "<i>+</i>".join(f"<div><b>{n:,}</b>{name}</div>" for n, name in terms)
    classes = " · ".join(f"{name} {n:,}" for name, n in corpus["classes"].items())
    size = f"{corpus['bytes'] / 1e6:,.1f}\u00a0MB in {corpus['shards']:,} shards"
    return f'<section class="keys"><div><b>{planned:,}</b>planned</div><i>=</i>{sums}</section>' + paragraph(
        f"Images: {classes}; {size}", "soft"
    )


def _first_sentences(report: Json) -> list[str]:
    """The first sentence of audit and study, with a note where these are of an earlier corpus."""
    sentences = []
    for key in ("audit", "study"):
        if part := report.get(key):
            sentences.append(" ".join(filter(None, (part["sentences"][0], part.get("outdated")))))
    return sentences


def _gallery(galleries: dict[str, list[GalleryRow]]) -> str:
    rows = [row for of_class in galleries.values() for row in of_class]
    kinds = [kind for kind in ("real", "txt2img", "refined") if any(getattr(row, kind) for row in rows)]
    if not kinds:
        return ""
    note = (
        "The first synthetic images of each class, not a selection. The real images beside them are for comparison, "
        "not their sources; captions are the prompts."
    )
    parts = [paragraph(note, "soft")]
    for name, of_class in galleries.items():
        shown = "".join(_gallery_row(row, kinds, name) for row in of_class)
        parts.append(heading(name) + f'<div class="columns gallery">{shown}</div>' if shown else "")
    return section("Images", "".join(parts))


def _gallery_row(row: GalleryRow, kinds: list[str], name: str) -> str:
    names = "".join(f"<span>{kind}</span>" for kind in kinds)
    cells = "".join(_cell(getattr(row, kind), f"{kind}, {name}") for kind in kinds)
    return figure(f'<div class="row heads">{names}</div><div class="row">{cells}</div>', row.caption)


def _cell(png: bytes | None, alt: str) -> str:
    """A missing image leaves its cell blank."""
    return image(png, alt) if png else "<span></span>"


def _training(training: Json) -> str:
    """Training loss as a line, validation loss as dots."""
    loss = [Point(step, value) for step, value in training.get("loss") or []]
    validation = [Point(step, value) for step, value in training.get("validation") or []]
    if not loss:
        return ""
    series = [Series("training", loss, "c1", dots=False)]
    caption = f"Line: training, {loss[-1].y:.3g} at the end."
    if validation:
        series.append(Series("validation", validation, "c2", line=False))
        caption += f" Dots: validation, {validation[-1].y:.3g} at the end."
    title = "mean squared error (no unit)"
    drawing = curve_plot(series, "optimiser step", "Loss over optimiser steps", title)
    return section("Fine-tuning", figure(drawing, caption))


def _data_set(dataset: Json, check: Json) -> str:
    counts, left_out = dataset.get("counts") or {}, dataset.get("left_out") or []
    classes = list(dict.fromkeys(name for of_split in counts.values() for name in of_split))
    rows = [
        [split, *(of_split.get(c, 0) for c in classes), sum(of_split.values())] for split, of_split in counts.items()
    ]
    title = f"Images in each split ({dataset.get('size')} px, {dataset.get('frame')})"
    inside = folded(title, table(["split", *classes, "all"], rows))
    inside += folded(f"Left out ({len(left_out)})", table(["file", "reason"], left_out, "words"))
    for checked in check.get("tables") or []:
        kind = "words" if len(checked["columns"]) <= 2 else ""
        inside += folded(checked["title"], table(checked["columns"], checked["rows"], kind))
    return section("Data set", inside)


def _timings(timings: list[Json]) -> str:
    rows = []
    for timing in timings:
        rate = timing.get("images_per_actor_second")  # old reports have no rate of actors
        images = [f"{timing['images']:,}" if timing["images"] else "", f"{rate:,.2f}" if rate else ""]
        rows.append([timing["stage"], f"{timing['seconds']:,.1f}", *images])
    note = (
        "Images per second and actor: the images of all shards, divided by the seconds that actors took to generate "
        "them according to the shards' records. All sessions count; loading models and encoding do not."
    )
    shown = table(["stage", "wall time (s)", "images", "images per second and actor"], rows)
    return section("Timings", shown + (paragraph(note, "soft") if any(row[-1] for row in rows) else ""))


def _provenance(run: Json) -> str:
    parts = ("base", "adapters", "execution", "settings")
    return section("Provenance", "".join(folded(key.capitalize(), _settings(run.get(key))) for key in parts))


def _settings(tree: Any) -> str:
    """{"a": {"b": 1}} as a table with the row `a.b`, `1`; unset values are left out."""
    rows = []
    for name, value in flatten(tree or {}).items():
        if value not in (None, [], {}):
            rows.append([name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)])
    return table((), rows, "words")
