"""The data-set card: a corpus and its figures, as Markdown with Hugging Face's header.

It follows the scorecard of Zamzmi et al. (2025, doi 10.1038/s44172-025-00450-1) and its seven Cs.
It states only what the run's records hold: what nobody declared reads "undeclared", what nobody
measured "not measured". It contains no path of a machine.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import yaml

from busray.config import Card, Config
from busray.corpus.arms import arm_after_gate, released_arm
from busray.data.split import SPLITS
from busray.evidence.classes import AFTER_GATE, FIRST_DRAW, SEEN_AS
from busray.layout import MANIFEST
from busray.records import REAL, SEPARABILITY_AUC, Figure
from busray.report.audit import of_now
from busray.report.metrics import NONE
from busray.report.tables import Json, figures_of, markdown_table

UNDECLARED = "undeclared"

NOT_MEASURED = "Not measured.\n"

PROTOCOLS = ("synthetic-only", "real-against-real")
"""Without the mixture of real and synthetic images, which describes the synthetic ones poorly."""

FLOORS = (REAL, *(f"{REAL} {split}" for split in SPLITS))
"""Arms of real images against real images."""

MODELS = (FIRST_DRAW, AFTER_GATE, "single-split")
"""Protocols of what classifiers and segmenter see in the corpus and reach on real test images."""

CONGRUENCE = ("fid", "fid_infinity", "kid", "kid_p_value", SEPARABILITY_AUC, "precision", "density")

COVERAGE = ("recall", "coverage")

OTHER_DISTANCES = ("fd-", "kd-")
"""How the names of distances from other extractors than Inception begin."""

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10**7, "1M<n<10M"))

LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.-]*")

SD15 = re.compile(r"stable-diffusion-v1-[45]")

RESTRICTIONS = (
    "break the law",
    "exploit or harm minors",
    "spread verifiably false information in order to harm",
    "spread personal information that can harm somebody",
    "defame, disparage or harass",
    "decide automatically on somebody's legal rights or obligations",
    "discriminate by social behaviour or by known or predicted personal characteristics",
    "exploit the vulnerabilities of a group (age, social, physical or mental characteristics) to its harm",
    "discriminate by legally protected characteristics",
    "give medical advice or interpret medical results",
    "serve the administration of justice, law enforcement, immigration or asylum",
)
"""Attachment A of CreativeML OpenRAIL-M (22 August 2022), in short."""


def data_card(report: Json, config: Config, shards: Sequence[Mapping[str, Any]], digest: str) -> str:
    """The card of the released corpus.

    report: the content of report.json. config: the run's settings, with the user's statements under
    `card`. shards: rows of the published manifest. digest: the manifest's.
    """
    counts = {name: sum(row["rows"] for row in shards if row["class"] == name) for name in config.classes}
    arm = arm_after_gate(config) or released_arm(config)
    measured = [f for f in figures_of(report) if f.against is None]
    figures = [f for f in measured if f.arm in (arm, *FLOORS) and f.protocol in PROTOCOLS]
    if not any(f.arm == arm for f in figures):
        figures = []  # the floor alone does not describe this corpus
    judged = (arm, released_arm(config), REAL)  # a gated corpus's first draws are of the arm before the gate
    models = [f for f in measured if f.arm in judged and f.protocol in MODELS]
    models = [f for f in models if not f.metric.startswith(SEEN_AS)]  # the report shows these as matrices
    parts = [
        _header(config, counts),
        f"# {config.name}: synthetic breast-ultrasound images\n",
        "**Synthetic. Not for clinical use.** No image is a scan; none may serve diagnosis or treatment.\n",
        _summary(report, config, counts, shards),
        *_seven_cs(report, config, counts, shards, figures, arm),
        "## Further evidence\n\n" + _further(report, figures, models),
        _uses(report),
        _hashes(report, digest),
        "## Reference\n\nThe headings from Congruence to Consistency are those of Zamzmi et al., Scorecard for "
        "synthetic medical data evaluation, Commun Eng 4, 130 (2025), doi 10.1038/s44172-025-00450-1.\n",
    ]
    return "\n".join(parts)


def _header(config: Config, counts: Mapping[str, int]) -> str:
    header: Json = {
        "pretty_name": f"{config.name}: synthetic breast-ultrasound images",
        **_license_fields(config.card),
        "task_categories": ["image-classification", "text-to-image"],
        "size_categories": [_size(sum(counts.values()))],
        "annotations_creators": ["machine-generated"],
        "tags": ["synthetic", "medical", "ultrasound", "breast", "diffusion", "not-for-clinical-use", "busray"],
    }
    if config.corpus.format == "parquet":
        files = [{"split": "train", "path": "data/*/*.parquet"}]
        header["configs"] = [{"config_name": "default", "data_files": files}]
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n"


def _license_fields(card: Card) -> Json:
    """Hugging Face takes identifiers only; anything else is `other` with a name."""
    if card.license and LICENSE_ID.fullmatch(card.license):
        return {"license": card.license}
    return {"license": "other", "license_name": card.license or UNDECLARED}


def _size(images: int) -> str:
    return next((name for limit, name in SIZES if images < limit), "n>10M")


def _summary(report: Json, config: Config, counts: Mapping[str, int], shards: Sequence[Mapping[str, Any]]) -> str:
    real = report["dataset"]["counts"]
    rows = [
        [name, str(counts[name]), *(str(real[split].get(name, 0)) for split in ("train", "val", "test"))]
        for name in config.classes
    ]
    table = markdown_table(["class", "synthetic images", "real: trained on", "real: val", "real: test"], rows)
    left_out = len(report["dataset"]["left_out"])
    return (
        f"{sum(counts.values())} grey images of {config.base.size} x {config.base.size} pixels in {len(shards)} "
        f"shards, generated by busray {report['run']['busray']}. {left_out} real images were left out, for "
        "label conflicts or, where so configured, annotations.\n\n"
        f"{table}\n"
        f"- Licence: {config.card.license or UNDECLARED}\n"
        f"- Real images, citation and licence: {config.card.source or UNDECLARED}\n"
        f"- Ethics: {config.card.ethics or UNDECLARED}\n"
        f"- Contact: {config.card.contact or UNDECLARED}\n"
    )


def _seven_cs(
    report: Json,
    config: Config,
    counts: Mapping[str, int],
    shards: Sequence[Mapping[str, Any]],
    figures: Sequence[Figure],
    arm: str,
) -> list[str]:
    rejects = sum(row["rejects"] for row in shards)
    planned = sum(row["count"] for row in shards)
    measured = report["corpus"]["committed"]
    grown = "" if measured == sum(counts.values()) else f" The corpus had {measured} images when this was measured."
    return [
        "## Congruence\n\n"
        f"Nearness to real images. The arm `{arm}` is this corpus; `real` is the floor, real images against "
        f"other real ones. Compare rows of equal protocol and n only; FID depends on n.{grown}\n\n"
        + _table(list(filter(_is_near, figures))),
        "## Coverage\n\nHow much of the variety of real images the corpus reaches (Kynkäänniemi et al. 2019, Naeem et "
        "al. 2020).\n\n" + _table(list(filter(_is_wide, figures))),
        "## Constraint\n\nNo rule of anatomy or physics constrains the generation. No image was checked for plausible "
        "anatomy, by a rule or by a sonographer, unless a figure under Further evidence says so.\n",
        "## Completeness\n\n"
        f"Each image has its class, prompt, seeds, index and id; {rejects} of {planned} planned images were "
        "quarantined and are recorded with the reason. There are no lesion masks, no patient attributes and no "
        "acquisition parameters. The class is the requested one, not a reader's finding.\n",
        "## Compliance\n\n"
        + _base_license(report)
        + _copies(report, sum(counts.values()))
        + "\nHow much of a patient a copy would show is not measured. Every image carries the text chunk "
        "`SYNTHETIC`.\n",
        "## Comprehension\n\n" + _made(report, config),
        "## Consistency\n\n"
        "Every image follows from the settings, the files below and its seed: `busray reproduce` generates it again, "
        "with the same pixels on the same device model, libraries, batch and thread count. `busray verify` reads the "
        "whole corpus against its plan. Agreement between sites, scanners or patient groups: not measured.\n",
    ]


def _copies(report: Json, images: int) -> str:
    """What the audit found; the corpus now has so many images."""
    audit = report.get("audit")
    if not audit:
        return "Not audited: whether images repeat training images is not known (run `busray audit`).\n"
    now = of_now(audit, images)  # the corpus may have grown since the report was written
    return "Whether images repeat training images, by `busray audit`:\n\n" + _list([now["outdated"], *now["sentences"]])


def _further(report: Json, figures: Sequence[Figure], models: Sequence[Figure]) -> str:
    study = report.get("study")
    downstream = "Not studied: what the images are worth to a classifier is not known (run `busray study`).\n"
    if study:
        downstream = _list([study.get("outdated"), *study["sentences"]])
    return (
        _table([f for f in figures if not _is_near(f) and not _is_wide(f)])
        + "\n### Classifiers and segmenter\n\nWhether a classifier of real images, the judge, sees the requested class "
        "(first-draw: before any rejection; after-gate: images selected to agree). The accuracy of the judge and of a "
        "class gate, and the Dice of the segmenter of lesions, on real test images; there n is the number of images "
        "they were trained on.\n\n" + _table(models) + "\n### Downstream study\n\n" + downstream
    )


def _list(sentences: Sequence[str | None]) -> str:
    return "".join(f"- {' '.join(sentence.split())}\n" for sentence in sentences if sentence)


def _is_near(figure: Figure) -> bool:
    return figure.metric in CONGRUENCE or figure.metric.startswith(OTHER_DISTANCES)


def _is_wide(figure: Figure) -> bool:
    return figure.metric in COVERAGE


def _table(figures: Sequence[Figure]) -> str:
    """Figures under their names in report.json, with five significant digits."""
    if not figures:
        return NOT_MEASURED
    columns = ["metric", "class", "arm", "value", "95 % interval", "n", "against", "protocol", "extractor"]
    rows = []
    for f in figures:
        stored, interval = f.to_dict(), NONE
        if f.interval:
            interval = f"{f.interval[0]:.5g} to {f.interval[1]:.5g}"
        if f.interval and f.replicates:
            interval += f" (spread over {f.replicates} parts of the synthetic images)"
        row = [stored["metric"], f.class_name, stored["arm"], f"{f.value:.5g}", interval]
        rows.append([*row, str(f.n), f"{f.n_reference} {f.reference}", f.protocol, f.extractor])
    return markdown_table(columns, rows)


def _made(report: Json, config: Config) -> str:
    adapters, libraries = report["run"]["adapters"], report["run"]["execution"]["libraries"]
    refine = config.refine
    prompts = "".join(f"- {name}: {'; '.join(c.prompts)}\n" for name, c in config.classes.items())
    refined = f"img2img at strength {refine.strength}, {refine.steps} steps" if refine else "no refinement"
    return (
        f"Base {_base_name(report)}; adapters {adapters.get('method', UNDECLARED)}, "
        f"{adapters.get('step', 'an unrecorded number of')} steps, trained on the train split alone; txt2img with "
        f"{config.sampling.scheduler}, {config.sampling.steps} steps, guidance {config.sampling.guidance_scale}; "
        f"{refined}; seed {config.seed}. Libraries: {', '.join(f'{k} {v}' for k, v in sorted(libraries.items()))}.\n\n"
        f"Prompts, where `{{token}}` is the learned token:\n\n{prompts}"
    )


def _base_name(report: Json) -> str:
    """A hub id with its commit; of a local folder the last name only."""
    base = report["run"]["base"]
    if base.get("revision"):
        return f"`{base['repository']}` at {base['revision']}"
    return f"`{PurePath(base['repository']).name}`"


def _is_sd15(report: Json) -> bool:
    return SD15.search(report["run"]["base"]["repository"].lower()) is not None


def _base_license(report: Json) -> str:
    if _is_sd15(report):
        return (
            "The base is under CreativeML OpenRAIL-M, whose use restrictions (below) hold for the generated images.\n\n"
        )
    if report["run"]["base"]["repository"] == "tiny":
        return "The base is busray's own `tiny`, under the Apache License 2.0.\n\n"
    return (
        f"The licence of the base {_base_name(report)} is {UNDECLARED}: read it before passing these images on. If it "
        "descends from Stable Diffusion v1.5, the use restrictions of CreativeML OpenRAIL-M hold for these images "
        "too.\n\n"
    )


def _uses(report: Json) -> str:
    text = (
        "## Uses\n\nMeant for research on methods: augmentation, pre-training, testing of software. Out of scope: "
        "clinical use of any kind, evidence for a device, statements about patients or about how common a finding is, "
        "and test sets in place of real images. The images inherit the biases of the real ones.\n"
    )
    if not _is_sd15(report):
        return text
    listed = "".join(f"- {item}\n" for item in RESTRICTIONS)
    return (
        f"{text}\nCarried on from CreativeML OpenRAIL-M, Attachment A, in short (the licence's own words bind). These "
        f"images are not to be used to\n\n{listed}\nWhoever passes them on passes these restrictions on.\n"
    )


def _hashes(report: Json, digest: str) -> str:
    run = report["run"]
    rows = [
        (f"manifest (`{MANIFEST}`)", digest),
        ("corpus fingerprint", run["fingerprint"]),
        ("real data set: files, classes, splits, framing", report["dataset"]["hash"]),
        ("adapters: all that decides pixels", run["adapters"].get("sha256", UNDECLARED)),
        *((f"adapters: `{name}`", value) for name, value in sorted(run["adapters"].get("files", {}).items())),
        *((f"base: `{name}`", value) for name, value in sorted(run["base"]["files"].items())),
    ]
    return (
        "## Hashes\n\nSHA-256. The manifest names each shard's digest, so its own covers every image. Delete what "
        "`busray gc` lists before copying `data/` elsewhere.\n\n" + markdown_table(["of", "SHA-256"], rows)
    )
