"""The data-set card: a corpus and its figures, as Markdown with Hugging Face's header.

It follows the scorecard of Zamzmi et al. (2025, doi 10.1038/s44172-025-00450-1) and its seven Cs.
It states only what the run's records hold: what nobody declared reads "undeclared", what nobody
measured "not measured". It contains no path of a machine. Its text is in card.md.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml

from busray.config import Card, Config
from busray.corpus.arms import arm_after_gate, released_arm
from busray.data.split import SPLITS
from busray.evidence.classes import AFTER_GATE, FIRST_DRAW, SEEN_AS
from busray.evidence.distances import WHOLE_CORPUS
from busray.layout import MANIFEST
from busray.records import REAL, SEPARABILITY_AUC, Figure
from busray.report.audit import of_now
from busray.report.metrics import NONE
from busray.report.page import patients_sentence
from busray.report.tables import Json, figures_of, markdown_table, select

TEMPLATE = Path(__file__).with_name("card.md").read_text("utf-8")

UNDECLARED = "undeclared"

PROTOCOLS = ("synthetic-only", WHOLE_CORPUS, "real-against-real")
"""Without the mixture of real and synthetic images, which describes the synthetic ones poorly."""

FLOORS = (REAL, *(f"{REAL} {split}" for split in SPLITS))
"""Arms of real images against real images."""

MODELS = (FIRST_DRAW, AFTER_GATE, "single-split")
"""Protocols of what classifiers and segmenter see in the corpus and reach on real test images."""

# Which of the seven Cs a metric is evidence for; all others stand under Further evidence.
CONGRUENCE = ("fid", "fid_infinity", "kid", "kid_p_value", SEPARABILITY_AUC, "precision", "density")

COVERAGE = ("recall", "coverage")

OTHER_DISTANCES = ("fd-", "kd-")
"""How the names of distances from other extractors than Inception begin."""

SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)
"""Hugging Face's size categories: (images, name of the category below that many)."""

MARK = "**Synthetic. Not for clinical use.**"
"""In every card, also an older busray's: a file without it is the user's own."""

TAGS = ["synthetic", "medical", "ultrasound", "breast", "diffusion", "not-for-clinical-use", "busray"]

LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.-]*")

SD15 = re.compile(r"stable-diffusion-v1-[45]")

RESTRICTIONS = Path(__file__).with_name("openrail.md").read_text("utf-8")
"""Attachment A of CreativeML OpenRAIL-M (22 August 2022), in short."""


def data_card(report: Json, config: Config, shards: Sequence[Mapping[str, Any]], digest: str, files: Json) -> str:
    """The card of the released corpus, as Markdown.

    report: the content of report.json. config: the run's settings, with the user's statements under
    `card`. shards: rows of the published manifest. digest: the manifest's. files: what a reader
    finds beside the card (hub.py).
    """
    counts = dict.fromkeys(config.classes, 0)
    for row in shards:
        if row["class"] in counts:
            counts[row["class"]] += row["rows"]
    images, refine = sum(counts.values()), config.refine
    run, measured, study = report["run"], report["corpus"]["committed"], report.get("study")
    arm = arm_after_gate(config) or released_arm(config)
    figures, models = _figures_of_corpus(report, config, arm)
    near = [f for f in figures if _is_near(f)]
    wide = select(figures, metric=COVERAGE)
    further = [f for f in figures if f not in near and f not in wide]
    grown = f" The corpus had {measured} images when this was measured."
    refinement = "no refinement"
    if refine:
        refinement = f"img2img at strength {refine.strength}, {refine.steps} steps"
    prompts = ""
    for name, settings in config.classes.items():
        prompts += f"- {name}: {'; '.join(settings.prompts)}\n"
    libraries = sorted(run["execution"]["libraries"].items())
    found = "Not studied: what the images are worth to a classifier is not known (run `busray study`).\n"
    if study:
        found = _list([study.get("outdated"), *study["sentences"]])
    return TEMPLATE.format(
        header=header(config, images, files),
        config=config,
        run=run,
        images=images,
        shards=len(shards),
        left_out=len(report["dataset"]["left_out"]),
        warnings=_list([f"{warning['text']} {warning['advice']}" for warning in report.get("warnings") or []]),
        patients=patients_sentence(report["dataset"]) or "How many patients they show is not recorded.",
        counts=_counts(report["dataset"]["counts"], counts),
        license=config.card.license or UNDECLARED,
        source=config.card.source or UNDECLARED,
        ethics=config.card.ethics or UNDECLARED,
        contact=config.card.contact or UNDECLARED,
        arm=arm,
        grown="" if measured == images else grown,
        near=_table(near),
        wide=_table(wide),
        rejects=sum(row["rejects"] for row in shards),
        planned=sum(row["count"] for row in shards),
        base_license=_base_license(run),
        copies=_copies(report.get("audit"), images),
        base=_base_name(run),
        method=run["adapters"].get("method", UNDECLARED),
        step=run["adapters"].get("step", "an unrecorded number of"),
        refinement=refinement,
        libraries=", ".join(f"{name} {version}" for name, version in libraries),
        prompts=prompts,
        further=_table(further),
        models=_table(models),
        study=found,
        # the licence asks everybody who passes the images on to pass these on too
        restrictions=RESTRICTIONS + "\n" if _is_sd15(run) else "",
        hashes=_hashes(report, digest),
    )


def _figures_of_corpus(report: Json, config: Config, arm: str) -> tuple[list[Figure], list[Figure]]:
    """(the distances of the corpus and their floors, what classifiers and segmenter see in it)."""
    measured = select(figures_of(report), against=None)
    figures = select(measured, arm=(arm, *FLOORS), protocol=PROTOCOLS)
    if not select(figures, arm=arm):
        figures = []  # the floor alone does not describe this corpus
    # A gated corpus's first draws are of the arm before the gate.
    models = select(measured, arm=(arm, released_arm(config), REAL), protocol=MODELS)
    # The report shows the classes that the judge sees as matrices: too many rows for a card.
    return figures, [f for f in models if not f.metric.startswith(SEEN_AS)]


def header(config: Config, images: int, files: Json) -> str:
    """YAML between two lines of dashes, from which Hugging Face reads tags and files."""
    category = next((name for limit, name in SIZES if images < limit), "n>10M")
    fields: Json = {
        "pretty_name": f"{config.name}: synthetic breast-ultrasound images",
        **_license_fields(config.card),
        "task_categories": ["image-classification", "text-to-image"],
        "size_categories": [category],
        "annotations_creators": ["machine-generated"],
        "tags": TAGS,
        **files,
    }
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n"


def _license_fields(card: Card) -> Json:
    # Hugging Face takes identifiers only; anything else is `other` with a name.
    if card.license and LICENSE_ID.fullmatch(card.license):
        return {"license": card.license}
    return {"license": "other", "license_name": card.license or UNDECLARED}


def _counts(real: Mapping[str, Mapping[str, int]], synthetic: Mapping[str, int]) -> str:
    """real: split -> class -> images. synthetic: class -> images."""
    rows = []
    for name, images in synthetic.items():
        rows.append([name, str(images), *(str(real[split].get(name, 0)) for split in SPLITS)])
    heads = ["class", "synthetic images", "real: trained on", "real: val", "real: test"]
    return markdown_table(heads, rows)


def _copies(audit: Json | None, images: int) -> str:
    """What the audit found; the corpus now has so many images."""
    if not audit:
        return "Not audited: whether images repeat training images is not known (run `busray audit`).\n"
    now = of_now(audit, images)  # the corpus may have grown since the report was written
    found = _list([now["outdated"], *now["sentences"]])
    return f"Whether images repeat training images, by `busray audit`:\n\n{found}"


def _list(sentences: Sequence[str | None]) -> str:
    # A line break inside a sentence would end the item of the list.
    return "".join(f"- {' '.join(sentence.split())}\n" for sentence in sentences if sentence)


def _is_near(figure: Figure) -> bool:
    return figure.metric in CONGRUENCE or figure.metric.startswith(OTHER_DISTANCES)


def _table(figures: Sequence[Figure]) -> str:
    """Figures under their names in report.json, with five significant digits."""
    if not figures:
        return "Not measured.\n"
    heads = ["metric", "class", "arm", "value", "95 % interval", "n", "against", "protocol"]
    rows = []
    for f in figures:
        stored, interval = f.to_dict(), NONE
        if f.interval:
            interval = f"{f.interval.low:.5g} to {f.interval.high:.5g}"
            # FID's interval is a spread and no interval of confidence: the column's name misleads
            if f.replicates:
                interval += f" (spread over {f.replicates} parts of the synthetic images)"
        row = [stored["metric"], f.class_name, stored["arm"], f"{f.value:.5g}", interval]
        rows.append([*row, str(f.n), f"{f.n_reference} {f.reference}", f.protocol, f.extractor])
    return markdown_table([*heads, "extractor"], rows)


def _base_name(run: Json) -> str:
    """A hub id with its commit; of a local folder the last name only."""
    base = run["base"]
    if base.get("revision"):
        return f"`{base['repository']}` at {base['revision']}"
    # the rest of the path would name a user or a machine
    return f"`{PurePath(base['repository']).name}`"


def _is_sd15(run: Json) -> bool:
    return SD15.search(run["base"]["repository"].lower()) is not None


def _base_license(run: Json) -> str:
    if _is_sd15(run):
        return "The base is under CreativeML OpenRAIL-M, whose use restrictions (below) hold for the generated images."
    if run["base"]["repository"] == "tiny":
        return "The base is busray's own `tiny`, under the Apache License 2.0."
    # A local folder may hold a descendant of Stable Diffusion: its restrictions are passed on.
    return (
        f"The licence of the base {_base_name(run)} is {UNDECLARED}: read it before passing these "
        "images on. If it descends from Stable Diffusion v1.5, the use restrictions of CreativeML "
        "OpenRAIL-M hold for these images too."
    )


def _hashes(report: Json, digest: str) -> str:
    run = report["run"]
    rows = [
        (f"manifest (`{MANIFEST}`)", digest),
        ("corpus fingerprint", run["fingerprint"]),
        ("real data set: files, classes, splits, framing", report["dataset"]["hash"]),
        ("adapters: all that decides pixels", run["adapters"].get("sha256", UNDECLARED)),
    ]
    for part in ("adapters", "base"):
        for name, value in sorted(run[part].get("files", {}).items()):
            rows.append((f"{part}: `{name}`", value))
    return markdown_table(["of", "SHA-256"], rows)
