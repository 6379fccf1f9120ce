"""The evidence for people: one HTML page.

Pure: records in, text out. The page fetches nothing and runs nothing, and says so in its own policy; whatever
comes from data passes `_e` (HTML escaping) on its way in.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape as _e
from typing import Any

from busray.corpus.record import flatten
from busray.report.distances import figures_section
from busray.report.html import folded as _folded
from busray.report.html import scale as _scale
from busray.report.html import svg as _svg
from busray.report.html import table as _table
from busray.report.html import text as _text
from busray.report.html import ticks as _ticks
from busray.report.tables import (
    Json,
)


@dataclass(frozen=True)
class GalleryRow:
    """PNG bytes of a real image beside a drawn one, before and after refinement. They share a class, not a patient."""

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
.verdicts{list-style:none;margin:1.6rem 0;padding:.7rem 1.2rem;background:var(--card);border-left:3px solid var(--c1)}
.verdicts li{margin:.35rem 0}
.columns{display:grid;gap:0 2.5rem}.columns>*{min-width:0}
figure{margin:0 0 1rem}
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


def report_html(report: Json, galleries: dict[str, list[GalleryRow]], sections: Sequence[str] = ()) -> str:
    """The whole page, from what report.json holds and a few rows of images a class. Missing parts are left out.

    sections: HTML of further ones, after the figures.
    """
    figures = report.get("figures") or []
    name = report.get("run", {}).get("name", "run")
    body = [
        _header(report.get("run", {})),
        _key_numbers(report.get("corpus") or {}),
        _verdicts([*(report.get("verdicts") or []), *_headlines(report)]),
        _gallery(galleries),
        figures_section(figures),
        *sections,
        _data_set(report.get("dataset") or {}, report.get("check") or {}),
        _training(report.get("finetune") or {}),
        _timings(report.get("timings") or []),
        _provenance(report.get("run", {})),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{_e(name)} – busray</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(part for part in body if part)
        + '\n<footer class="soft">Every drawn image is synthetic and not for clinical use.</footer>'
        "</main></body></html>\n"
    )


def _header(run: Json) -> str:
    fingerprint, created = str(run.get("fingerprint", "")), str(run.get("created", ""))
    facts = [
        fingerprint and f'fingerprint <code title="{_e(fingerprint)}">{_e(fingerprint[:12])}</code>',
        _e(created.replace("T", " ").replace("+00:00", " UTC")),
        run.get("busray") and f"busray {_e(run['busray'])}",
        run.get("command") and f"<code>{_e(run['command'])}</code>",
    ]
    return (
        '<header><div class="soft">Synthetic breast-ultrasound corpus and its evidence</div>'
        f"<h1>{_e(run.get('name', 'run'))}</h1>"
        f'<div class="facts soft">{"".join(f"<span>{fact}</span>" for fact in facts if fact)}</div></header>'
    )


def _key_numbers(corpus: Json) -> str:
    if not corpus:
        return ""
    planned, committed, quarantined = (corpus[key] for key in ("planned", "committed", "quarantined"))
    terms = [(committed, "committed"), (quarantined, "quarantined")]
    if missing := planned - committed - quarantined:
        terms.append((missing, "not drawn"))
    sums = "<i>+</i>".join(f"<div><b>{n:,}</b>{name}</div>" for n, name in terms)
    classes = " · ".join(f"{_e(name)} {n:,}" for name, n in corpus["classes"].items())
    return (
        f'<section class="keys"><div><b>{planned:,}</b>planned</div><i>=</i>{sums}</section>'
        f'<p class="soft">Images: {classes}; {corpus["bytes"] / 1e6:,.1f}\u00a0MB in {corpus["shards"]:,} shards</p>'
    )


def _headlines(report: Json) -> list[str]:
    """The first sentence of the parts further down: whether images are copies, what they are worth to a classifier;
    and whether that was found of an earlier state of the corpus."""
    found = [part for key in ("audit", "study") if (part := report.get(key))]
    return [" ".join(filter(None, (part["sentences"][0], part.get("outdated")))) for part in found]


def _verdicts(sentences: list[str]) -> str:
    items = "".join(f"<li>{_e(sentence)}</li>" for sentence in sentences)
    return f'<ul class="verdicts">{items}</ul>' if items else ""


def _gallery(galleries: dict[str, list[GalleryRow]]) -> str:
    rows = [row for by_class in galleries.values() for row in by_class]
    kinds = [kind for kind in ("real", "txt2img", "refined") if any(getattr(row, kind) for row in rows)]
    if not kinds:
        return ""
    parts = []
    for name, by_class in galleries.items():
        drawn = "".join(_gallery_row(row, kinds, name) for row in by_class)
        parts.append(f'<h3>{_e(name)}</h3><div class="columns gallery">{drawn}</div>' if drawn else "")
    return (
        '<section><h2>Images</h2><p class="soft">The first drawn images of each class, not a selection. The real '
        "images beside them are for comparison, not their sources; captions are the prompts.</p>"
        f"{''.join(parts)}</section>"
    )


def _gallery_row(row: GalleryRow, kinds: list[str], name: str) -> str:
    heads = "".join(f"<span>{kind}</span>" for kind in kinds)
    cells = "".join(_image(getattr(row, kind), f"{kind}, {name}") for kind in kinds)
    return (
        f'<figure><div class="row heads">{heads}</div><div class="row">{cells}</div>'
        f"<figcaption>{_e(row.caption)}</figcaption></figure>"
    )


def _image(png: bytes | None, alt: str) -> str:
    """Enlarged smoothly by the browser: speckle has no hard edges to keep. A missing image leaves its cell blank."""
    if not png:
        return "<span></span>"
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{_e(alt)}">'


def _training(training: Json) -> str:
    """Training loss as a line, validation loss as dots."""
    loss, validation = training.get("loss") or [], training.get("validation") or []
    if not loss:
        return ""
    last, values = max(step for step, _ in [*loss, *validation]), [value for _, value in [*loss, *validation]]
    low, high = min(values), max(values)
    x, y = _scale(0, last, 46, 386), _scale(low, high, 184, 32)
    drawn = _text(0, 12, "mean squared error (no unit)", "soft") + _text(216, 228, "optimiser step", "soft", "middle")
    for t in _ticks(low, high):
        drawn += f'<path class="rule" d="M46 {y(t):.1f}H386"/>{_text(40, y(t) + 4, f"{t:g}", "soft", "end")}'
    drawn += "".join(_text(x(t), 208, f"{t:g}", "soft", "middle") for t in _ticks(0, last))
    line = "M" + "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in loss)
    drawn += f'<path class="c1" fill="none" stroke="currentColor" stroke-width="1.5" d="{line}"/><g class="c2">'
    drawn += "".join(f'<circle fill="currentColor" cx="{x(s):.1f}" cy="{y(v):.1f}" r="4"/>' for s, v in validation)
    legend = f"Line: training, {loss[-1][1]:.3g} at the end."
    legend += f" Dots: validation, {validation[-1][1]:.3g} at the end." if validation else ""
    svg = _svg(400, 234, "Loss over optimiser steps", drawn + "</g>")
    return f"<section><h2>Fine-tuning</h2><figure>{svg}<figcaption>{legend}</figcaption></figure></section>"


def _data_set(dataset: Json, check: Json) -> str:
    counts, left_out = dataset.get("counts") or {}, dataset.get("left_out") or []
    classes = list(dict.fromkeys(name for split in counts.values() for name in split))
    rows = [[split, *(by.get(c, 0) for c in classes), sum(by.values())] for split, by in counts.items()]
    title = f"Images a split ({dataset.get('size')} px, {dataset.get('frame')})"
    inside = _folded(title, _table(["split", *classes, "all"], rows))
    inside += _folded(f"Left out ({len(left_out)})", _table(["file", "reason"], left_out, "words"))
    for table in check.get("tables") or []:
        kind = "words" if len(table["columns"]) <= 2 else ""
        inside += _folded(table["title"], _table(table["columns"], table["rows"], kind))
    return f"<section><h2>Data set</h2>{inside}</section>" if inside else ""


def _timings(timings: list[Json]) -> str:
    rows = []
    for t in timings:
        rate = t.get("images_per_actor_second")  # reports of old have none: theirs was of a session's wall time
        drawn = [f"{t['images']:,}" if t["images"] else "", f"{rate:,.2f}" if rate else ""]
        rows.append([t["stage"], f"{t['seconds']:,.1f}", *drawn])
    table = _table(["stage", "wall time (s)", "images", "images a second and actor"], rows)
    said = (
        '<p class="soft">Images a second and actor: the images of all shards over the seconds that their records say '
        "an actor drew them for, in whichever session, without loading models and encoding.</p>"
    )
    return f"<section><h2>Timings</h2>{table}{said if any(row[-1] for row in rows) else ''}</section>" if table else ""


def _provenance(run: Json) -> str:
    parts = ("base", "adapters", "execution", "settings")
    inside = "".join(_folded(key.capitalize(), _table((), _settings(run.get(key)), "words")) for key in parts)
    return f"<section><h2>Provenance</h2>{inside}</section>" if inside else ""


def _settings(tree: Any) -> list[list[str]]:
    """{"a": {"b": 1}} -> [["a.b", "1"]]; unset values are left out."""
    return [
        [name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
        for name, value in flatten(tree or {}).items()
        if value not in (None, [], {})
    ]
