"""report.json and report.html, from what the stages committed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Any

from busray import __version__, layout
from busray.corpus.arms import compared_images, released_arm
from busray.corpus.commit import committed_shards, each_commit, read_commit, read_rows
from busray.corpus.encode import png_bytes
from busray.corpus.manifest import published_rows
from busray.corpus.plan import read_segments, shards
from busray.corpus.record import read_run
from busray.data.images import ImageFolder
from busray.data.split import SPLITS
from busray.model.checkpoints import read_adapters
from busray.records import DataSet, Figure, Shard, json_object, to_json
from busray.report.audit import copies_section, of_now
from busray.report.classes import consistency_section, consistency_sentences
from busray.report.coverage import coverage_sentences, measured_whole, whole_corpus_sentences
from busray.report.lesions import geometry_section, geometry_sentences
from busray.report.page import GalleryRow, report_html
from busray.report.simulated import words_for
from busray.report.study import study_section
from busray.report.tables import figures_of
from busray.report.verdicts import distance_sentences
from busray.report.warnings import SIMULATED, Warned, not_nearer, warnings
from busray.run.events import put_figures
from busray.run.record import Run, read_timings
from busray.stages.classifiers import classifier_record
from busray.stages.evaluate import class_gate_counts, no_clean_figures_sentences
from busray.stages.features import feature_bytes
from busray.stages.whole_corpus import whole_corpus_stage
from busray.storage import Store

GALLERY_ROWS = 4  # images a class that the page shows
# Most records that a rate is computed from, evenly spread over the corpus: to read all of them
# would take longer than the rest of the report, and the rate would be the same.
RATE_RECORDS = 1000
Published = Mapping[Shard, Mapping[str, Any]]  # the rows of the manifest


def report_sentences(run: Run, figures: list[Figure]) -> list[str]:
    """What the figures say."""
    sentences = [
        *distance_sentences(figures),
        *_coverage(run, figures),
        *no_clean_figures_sentences(run),
        *consistency_sentences(figures),
        *geometry_sentences(figures, (_geometry(run) or {}).get("reason")),
    ]
    return list(map(words_for(simulated=is_simulated(run)), sentences))


def report_warnings(run: Run, figures: list[Figure]) -> list[Warned]:
    """What to know before the corpus is used."""
    simulated = is_simulated(run)
    words = words_for(simulated=simulated)
    found = [replace(w, text=words(w.text), short=words(w.short)) for w in warnings(figures, released_arm(run.config))]
    adapters = read_adapters(run.store)
    if adapters is not None:
        found += not_nearer(adapters.about)
    return [SIMULATED, *found] if simulated else found


def is_simulated(run: Run) -> bool:
    """Whether phantoms stand in for real images."""
    return run.config.dataset.phantoms is not None


def _coverage(run: Run, figures: list[Figure]) -> list[str]:
    """How many images the figures look at, and what those of all images cost."""
    compared = compared_images(run.config, run.dataset)
    corpus = _images_by_class(published_rows(run.store), list(run.config.classes))
    whole = run.config.evaluate.whole_corpus
    measured = measured_whole(figures) if whole else list(run.extractors)
    if not whole and all(compared[name] >= n for name, n in corpus.items()):
        return []
    sizes = {name: feature_bytes(run, name) for name in measured}
    said = coverage_sentences(compared, corpus, {} if whole else sizes, asked=bool(run.config.evaluate.images))
    timings = read_timings(run.store)
    seconds = {name: timings[whole_corpus_stage(name)] for name in measured if whole_corpus_stage(name) in timings}
    return [*said, *whole_corpus_sentences(figures, sizes, seconds)]


def write_report(run: Run, figures: list[Figure]) -> None:
    """Write report.json and report.html anew."""
    published = published_rows(run.store)
    _publish(run, _report(run, figures, published), published)
    record = read_adapters(run.store)
    put_figures(run.store, figures, int(record.about.get("step", 0)) if record else 0)


def add_to_report(run: Run, name: str, part: dict[str, Any]) -> None:
    """Replace one part of report.json and make the page anew; nothing where there is no report."""
    report = run.store.read_record_or_none(layout.REPORT_JSON, json_object)
    if report is not None:
        _publish(run, {**report, name: part}, published_rows(run.store))


def _publish(run: Run, report: dict[str, Any], published: Published) -> None:
    if audit := report.get("audit"):
        # The corpus may have grown since the audit. The report then says so.
        report = {**report, "audit": of_now(audit, sum(row["rows"] for row in published.values()))}
    run.store.replace_checked(layout.REPORT_JSON, to_json(report))
    lesions, figures = report.get("geometry") or {}, figures_of(report)
    outlines = run.store.read_or_none(layout.GEOMETRY_PNG) if lesions.get("segmenter") else None
    sections = [
        consistency_section(figures, report.get("gate")),
        geometry_section(figures, lesions.get("reason"), outlines),
        copies_section(report.get("audit") or {}, run.store.read_or_none(layout.AUDIT_PANELS)),
        study_section(report.get("study") or {}),
    ]
    galleries = _galleries(run.store, run.images, published, refined=run.config.refine is not None)
    run.store.replace(layout.REPORT_HTML, report_html(report, figures, galleries, sections).encode())


def _report(run: Run, figures: list[Figure], published: Published) -> dict[str, Any]:
    store = run.store
    record = read_adapters(store)
    adapters = record.to_dict() if record else {}
    run_part = {
        **described_run(run),
        "fingerprint": (read_run(store) or {})["fingerprint"],
        # The curves are a part of their own.
        "adapters": {k: v for k, v in adapters.items() if k not in ("loss", "validation", "distance")},
        "execution": _execution(store, published),
    }
    return {
        "run": run_part,
        "dataset": described_dataset(run),
        "check": store.read_record(layout.CHECK, json_object),
        "corpus": _corpus(store, published, list(run.config.classes)),
        "figures": [figure.to_dict() for figure in figures],
        "verdicts": report_sentences(run, figures),
        "warnings": [asdict(warned) for warned in report_warnings(run, figures)],
        "geometry": _geometry(run),
        "gate": _gate(run),
        "finetune": _training(adapters),
        "timings": _timings(store),
        "study": store.read_record_or_none(layout.STUDY_JSON, json_object),
        "audit": store.read_record_or_none(layout.AUDIT_JSON, json_object),
    }


def described_run(run: Run) -> dict[str, Any]:
    """The part `run` of report.json and ablate.json, as far as they have it in common."""
    return {
        "name": run.config.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "busray": __version__,
        "output": run.config.output,
        "command": run.command,
        "base": run.base.to_dict(),
        "settings": run.config.model_dump(mode="json"),
    }


def described_dataset(run: Run) -> dict[str, Any]:
    """The part `dataset` of both."""
    described = {
        "hash": run.dataset.hash,
        "size": run.dataset.size,
        "frame": run.dataset.frame,
        "counts": run.dataset.counts(run.config.classes),
        "left_out": [list(pair) for pair in run.dataset.left_out],
        "simulated": is_simulated(run),
    }
    if not is_simulated(run):
        described["patients"] = _patients(run.dataset)
    return described


def _patients(dataset: DataSet) -> dict[str, int]:
    """How many patients the data set knows of, and how many of them are in several splits."""
    sides: dict[str, set[str]] = {}
    for side in SPLITS:
        for image in dataset.split(side):
            if image.group:
                sides.setdefault(image.group, set()).add(side)
    return {"patients": len(sides), "crossing": sum(len(of_patient) > 1 for of_patient in sides.values())}


def _execution(store: Store, published: Published) -> dict[str, Any]:
    """Of the first shard only: cards and libraries of a cluster may differ from shard to shard."""
    first = next(iter(published), None)
    return asdict(read_commit(store, first).execution) if first else {}


def _corpus(store: Store, published: Published, classes: Sequence[str]) -> dict[str, Any]:
    totals = dict.fromkeys(("rows", "rejects", "bytes"), 0)
    for row in published.values():
        for column in totals:
            totals[column] += row[column]
    return {
        "planned": sum(shard.count for shard in shards(read_segments(store))),
        "committed": totals["rows"],
        "quarantined": totals["rejects"],
        "shards": len(published),
        "bytes": totals["bytes"],
        "manifest": layout.MANIFEST,
        "classes": _images_by_class(published, classes),
    }


def _images_by_class(published: Published, classes: Sequence[str]) -> dict[str, int]:
    """class -> images of the released corpus that are not quarantined."""
    images = dict.fromkeys(classes, 0)
    for row in published.values():
        if row["class"] in images:
            images[row["class"]] += row["rows"]
    return images


def _training(adapters: Mapping[str, Any]) -> dict[str, Any] | None:
    """The curves of the fine-tuning; None for adapters that were not trained here."""
    if not adapters.get("loss"):
        return None
    validation = adapters.get("validation", [])
    return {
        "steps": adapters.get("step"),
        "loss": adapters["loss"],
        "validation": validation,
        "distance": adapters.get("distance", []),
        "distance_features": adapters.get("distance_features"),
    }


def _geometry(run: Run) -> dict[str, Any] | None:
    """The segmenter of the lesions' figures, or why there are none; None where none are wanted."""
    if not run.config.evaluate.geometry:
        return None
    return run.store.read_record(layout.GEOMETRY_JSON, json_object)


def _gate(run: Run) -> dict[str, Any] | None:
    """The class gate's classifier, and what it did with each class of the released corpus."""
    gate = run.config.corpus.gate
    record = classifier_record(run, gate.architecture) if gate else None
    if gate is None or record is None:
        return None
    return {
        "architecture": record.architecture,
        "images": record.images,
        "test": asdict(record)["test"],
        "digest": record.digest,
        "threshold": gate.threshold,
        "attempts": gate.attempts,
        "classes": {name: asdict(counts) for name, counts in class_gate_counts(run).items()},
    }


def _timings(store: Store) -> list[dict[str, Any]]:
    rows = []
    for stage, seconds in read_timings(store).items():
        images = rate = None
        if stage.startswith("generate"):
            arm = stage.removeprefix("generate").strip()
            images, rate = _drawing_rate(store.sub(layout.arm_prefix(arm)) if arm else store)
        rows.append({"stage": stage, "seconds": seconds, "images": images, "images_per_actor_second": rate})
    return rows


def _drawing_rate(store: Store) -> tuple[int | None, float | None]:
    """(images of a corpus, images a second of its actors, by RATE_RECORDS of its records)."""
    # From the corpus's records, since the stage's wall time is of one session only.
    done = committed_shards(store)
    images = sum(row["rows"] for row in published_rows(store).values())
    sampled, seconds = 0, 0.0
    for commit in each_commit(store, done[:: -(-len(done) // RATE_RECORDS) or 1]):
        sampled += commit.rows
        seconds += commit.seconds
    return images or None, sampled / seconds if sampled and seconds else None


def _galleries(
    store: Store, folder: ImageFolder, published: Published, *, refined: bool
) -> dict[str, list[GalleryRow]]:
    """class -> a few rows of a real test image | txt2img | refined."""
    galleries: dict[str, list[GalleryRow]] = {}
    for name in folder.classes:
        drawn: list[dict[str, Any]] = []
        for shard, row in published.items():
            if shard.class_name == name and row["rows"]:  # the first shard with an image
                table = read_rows(store, read_commit(store, shard))
                drawn = table.slice(0, GALLERY_ROWS).to_pylist()
                break
        test = [image for image in folder.dataset.test if image.class_name == name][:GALLERY_ROWS]
        real = [png_bytes(image, {}) for image in folder.load(test).pixels]
        galleries[name] = []
        for png, cells in zip_longest(real, drawn):  # a class may have fewer of either
            galleries[name].append(_gallery_row(png, cells or {}, refined))
    return galleries


def _gallery_row(real: bytes | None, row: Mapping[str, Any], refined: bool) -> GalleryRow:
    """row: of a shard; empty where there is no drawn image."""
    final = row.get("image", {}).get("bytes")
    before = (row.get("image_txt2img") or {}).get("bytes")
    return GalleryRow(
        real=real,
        txt2img=before if refined else final,
        refined=final if refined else None,
        caption=row.get("prompt", ""),
    )
