"""report.json and report.html from what the stages committed."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any

from busray import __version__
from busray.corpus.commit import committed_shards, in_threads, read_commit, read_rows
from busray.corpus.encode import png_bytes
from busray.corpus.manifest import published_rows
from busray.corpus.plan import read_segments, shards
from busray.data.images import load_images
from busray.layout import (
    AUDIT_JSON,
    AUDIT_PANELS,
    CHECK,
    GEOMETRY_JSON,
    GEOMETRY_PNG,
    MANIFEST,
    REPORT_HTML,
    REPORT_JSON,
    STUDY_JSON,
    TIMINGS,
    arm_prefix,
)
from busray.model.checkpoints import read_adapters
from busray.records import Figure, to_json
from busray.report.audit import copies_section, of_now
from busray.report.classes import consistency_section, consistency_sentences
from busray.report.lesions import geometry_section, geometry_sentences
from busray.report.page import GalleryRow, report_html
from busray.report.study import study_section
from busray.report.tables import figures_of
from busray.report.verdicts import distance_sentences
from busray.run.record import Run
from busray.stages.classifiers import classifier_record
from busray.stages.evaluate import clean_reason, gated_counts
from busray.stages.generate import draw_job
from busray.storage import Store

GALLERY_ROWS = 4


def said(run: Run, figures: list[Figure]) -> list[str]:
    """What the figures come to, as sentences."""
    lesions = geometry_sentences(figures, (_geometry(run) or {}).get("reason"))
    return [*distance_sentences(figures), *clean_reason(run), *consistency_sentences(figures), *lesions]


def write_report(run: Run, figures: list[Figure]) -> None:
    """report.json and report.html from what the run's stages committed."""
    _publish(run, _report(run, figures))


def add_to_report(run: Run, name: str, part: dict[str, Any]) -> None:
    """Put a part beside the others of report.json and make the page anew; nothing where the run has no report yet."""
    held = run.store.read_or_none(REPORT_JSON)
    if held is not None:
        _publish(run, {**json.loads(held), name: part})


def _publish(run: Run, report: dict[str, Any]) -> None:
    if audit := report.get("audit"):
        images = sum(row["rows"] for row in published_rows(run.store).values())
        report = {**report, "audit": of_now(audit, images)}
    run.store.replace(REPORT_JSON, to_json(report))
    lesions = report.get("geometry") or {}
    picture = run.store.read_or_none(GEOMETRY_PNG) if lesions.get("segmenter") else None
    figures = figures_of(report)
    sections = [
        consistency_section(figures, report.get("gate")),
        geometry_section(figures, lesions.get("reason"), picture),
        copies_section(report.get("audit") or {}, run.store.read_or_none(AUDIT_PANELS)),
        study_section(report.get("study") or {}),
    ]
    page = report_html(report, figures, _galleries(run), sections)
    run.store.replace(REPORT_HTML, page.encode())


def _report(run: Run, figures: list[Figure]) -> dict[str, Any]:
    config, dataset = run.config, run.dataset
    adapters = read_adapters(run.store) or {}
    job = draw_job(run)
    drawn = list(published_rows(run.store).values())
    plan = shards(read_segments(run.store))
    classes = {name: sum(row["rows"] for row in drawn if row["class"] == name) for name in config.classes}
    training = {key: adapters.get(key, []) for key in ("loss", "validation")}
    return {
        "run": {
            "name": config.name,
            "fingerprint": job.recipe.fingerprint,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "busray": __version__,
            "output": config.output,
            "command": run.command,
            "base": run.base.to_dict(),
            "adapters": {k: v for k, v in adapters.items() if k not in ("loss", "validation")},
            "execution": _execution(run.store),
            "settings": config.model_dump(mode="json"),
        },
        "dataset": {
            "hash": dataset.hash,
            "size": dataset.size,
            "frame": dataset.frame,
            "counts": dataset.counts(config.classes),
            "left_out": [list(pair) for pair in dataset.left_out],
        },
        "check": json.loads(run.store.read(CHECK)),
        "corpus": {
            "planned": sum(s.count for s in plan),
            "committed": sum(row["rows"] for row in drawn),
            "quarantined": sum(row["rejects"] for row in drawn),
            "shards": len(drawn),
            "bytes": sum(row["bytes"] for row in drawn),
            "manifest": MANIFEST,
            "classes": classes,
        },
        "figures": [figure.to_dict() for figure in figures],
        "verdicts": said(run, figures),
        "geometry": _geometry(run),
        "gate": _gate(run),
        "finetune": {"steps": adapters.get("step"), **training} if training["loss"] else None,
        "timings": _timings(run),
        "study": json.loads(run.store.read_or_none(STUDY_JSON) or b"null"),
        "audit": json.loads(run.store.read_or_none(AUDIT_JSON) or b"null"),
    }


def _execution(store: Store) -> dict[str, Any]:
    """Of the corpus's first shard; each record has its own, since cards and libraries of a cluster may differ."""
    first = next(iter(published_rows(store)), None)
    return asdict(read_commit(store, first).execution) if first else {}


def _geometry(run: Run) -> dict[str, Any] | None:
    """The segmenter behind the lesions' figures, or why there are none; None where none are wanted."""
    return json.loads(run.store.read(GEOMETRY_JSON)) if run.config.evaluate.geometry else None


def _gate(run: Run) -> dict[str, Any] | None:
    """The class gate's classifier and what it did with each class of the released corpus."""
    gate = run.config.corpus.gate
    record = classifier_record(run, gate.architecture) if gate else None
    if gate is None or record is None:
        return None
    told = {key: asdict(record)[key] for key in ("architecture", "images", "test", "digest")}
    classes = {name: asdict(counts) for name, counts in gated_counts(run).items()}
    return {**told, "threshold": gate.threshold, "attempts": gate.attempts, "classes": classes}


def _timings(run: Run) -> list[dict[str, Any]]:
    timings = json.loads(run.store.read_or_none(TIMINGS) or b"{}")
    rows = []
    for stage, seconds in timings.items():
        images = rate = None
        if stage.startswith("generate"):
            arm = stage.removeprefix("generate").strip()
            images, rate = _drawing(run.store.sub(arm_prefix(arm)) if arm else run.store)
        rows.append({"stage": stage, "seconds": seconds, "images": images, "images_per_actor_second": rate})
    return rows


def _drawing(store: Store) -> tuple[int | None, float | None]:
    """(images of a corpus, images a second of its actors), from its records: a session's wall time says nothing of a
    corpus that several sessions drew."""
    images, seconds = 0, 0.0
    for commit in in_threads(partial(read_commit, store), committed_shards(store)):
        images += commit.rows
        seconds += commit.seconds
    return images or None, images / seconds if images and seconds else None


def _galleries(run: Run) -> dict[str, list[GalleryRow]]:
    """A few rows a class of real (test) | txt2img | refined."""
    galleries: dict[str, list[GalleryRow]] = {}
    published = published_rows(run.store)
    for name in run.config.classes:
        shard = next((shard for shard, row in published.items() if shard.class_name == name and row["rows"]), None)
        drawn = read_rows(run.store, read_commit(run.store, shard)).to_pylist()[:GALLERY_ROWS] if shard else []
        images = [image for image in run.dataset.test if image.class_name == name][:GALLERY_ROWS]
        real = load_images(run.folder, images, run.dataset.size, run.dataset.frame)
        rows = []
        for i in range(max(len(drawn), len(real))):
            cells = drawn[i] if i < len(drawn) else {}
            final = cells.get("image", {}).get("bytes")
            before = (cells.get("image_txt2img") or {}).get("bytes")
            rows.append(
                GalleryRow(
                    real=png_bytes(real[i], {}) if i < len(real) else None,
                    txt2img=before if run.config.refine else final,
                    refined=final if run.config.refine else None,
                    caption=cells.get("prompt", ""),
                )
            )
        galleries[name] = rows
    return galleries
