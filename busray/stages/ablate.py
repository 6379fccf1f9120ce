"""`busray ablate`: the sub-runs of an ablation are drawn by a run's stages and measured together.

A sub-run lies below the output and has settings of its own; all share data, seeds and the training
budget. What a sub-run has committed is not made again, so the same command resumes an ablation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from busray import config as settings
from busray.config_file import validate
from busray.corpus import ablation
from busray.corpus.arms import arm_sources, arms_to_draw, compared_images, most_compared
from busray.corpus.commit import committed_shards, read_commit, read_rows
from busray.corpus.encode import png_bytes
from busray.corpus.features import put_array
from busray.data.images import Images
from busray.evidence.distances import FLOOR_SPLIT, arm_figures
from busray.evidence.nearness import VAE, nearness_figures, reconstruction_figures
from busray.identity import fingerprint
from busray.layout import ABLATE_CSV, ABLATE_HTML, ABLATE_JSON, CONFIG, DATASET, features_key
from busray.model.base import load_pipeline
from busray.model.checkpoints import commit_adapters, read_adapter_files, read_adapters
from busray.records import INCEPTION, Arm, Figure, SourceImage, UserError, json_object, to_json
from busray.report.ablation import ablation_html, ablation_notes, ablation_sentences
from busray.report.contact_sheet import contact_sheet
from busray.report.tables import figures_csv
from busray.report.verdicts import distance_sentences
from busray.run.pieces import ImageBlock, by_chance, load_array, synthetic_blocks
from busray.run.record import Run, read_timings, timed
from busray.stages.features import features
from busray.stages.finetune import finetune
from busray.stages.generate import generate_together
from busray.stages.report import described_dataset, described_run
from busray.storage import Store
from busray.workers import Beat, Workers

# Settings are chosen on val, so the images that the arms are compared with stay unseen.
SWEEP_REFERENCE = "val"
SHEET_IMAGES = 6  # images an arm in the picture of the arms side by side


@dataclass(frozen=True)
class SubRun:
    """A sub-run of the ablation, and what the stages get to draw it."""

    plan: ablation.SubRunPlan
    run: Run
    workers: Workers


@dataclass(frozen=True)
class AblationFigures:
    arms: list[Figure]  # against evaluate.reference
    sweep: list[Figure]  # against SWEEP_REFERENCE

    def all(self) -> list[Figure]:
        # An arm of the table and of a sweep has its paper-mixture figures in both: here once.
        return list(dict.fromkeys([*self.arms, *self.sweep]))


def check_ablation(run: Run) -> list[ablation.SubRunPlan]:
    """The plans of the sub-runs; UserError where they or the adapters allow no fair comparison."""
    if INCEPTION not in run.extractors:
        raise UserError("evaluate.extractors: an ablation measures with inception: name it too")
    adapters = read_adapters(run.store)
    if run.config.adapters.path or (adapters and adapters.is_adopted):
        raise UserError(
            "adapters.path: an ablation trains every arm's adapters alike, so it takes none from "
            "elsewhere: leave it unset and give an output whose adapters were trained there (those of "
            "`busray run` under it are kept)"
        )
    # Images that no figure looks at are drawn in no sub-run either.
    n = max(compared_images(run.config, run.dataset).values())
    evaluate = run.config.evaluate.model_copy(update={"images": n})
    return ablation.plan_sub_runs(run.config.model_copy(update={"evaluate": evaluate}))


def ablate(run: Run, workers: Workers) -> dict[str, Any]:
    """Draw and measure every sub-run, write the tables and the page; returns ablate.json."""
    sub_runs = [open_sub_run(run, workers, plan) for plan in check_ablation(run)]
    for sub_run in sub_runs:
        draw_sub_run(sub_run, sub_runs)
    figures = _measure(run, workers, sub_runs)
    report = _report(run, sub_runs, figures)
    run.store.replace(ABLATE_CSV, figures_csv(figures.all()).encode())
    run.store.replace_checked(ABLATE_JSON, to_json(report))
    run.store.replace(ABLATE_HTML, ablation_html(report, _sheets(run, sub_runs)).encode())
    return report


# ---- drawing ----


def open_sub_run(run: Run, workers: Workers, plan: ablation.SubRunPlan) -> SubRun:
    """The plan's own settings and storage; the ablation's data set and base."""
    if not plan.prefix:
        return SubRun(plan, replace(run, config=plan.config), workers)
    store = run.store.sub(plan.prefix)
    # Settings and data set stand below it too, so that it can be reproduced without the ablation.
    store.put_checked(CONFIG, to_json(plan.config.model_dump(mode="json")))
    store.put_checked(DATASET, to_json(run.dataset))
    return SubRun(plan, replace(run, config=plan.config, store=store), workers.labelled(plan.prefix))


def draw_sub_run(sub_run: SubRun, sub_runs: Sequence[SubRun]) -> None:
    """Train or copy the adapters, then draw every corpus that the sub-run still misses."""
    plan, run, workers, source = sub_run.plan, sub_run.run, sub_run.workers, None
    if plan.shares_adapters:
        full = next(s.run for s in sub_runs if ablation.SWEPT_METHOD in s.plan.arms.values())
        _copy_adapters(full.store, run.store)
        # Another strength starts from the same txt2img images, which need not be drawn again.
        if plan.point and plan.point[0] == "strength" and full.config.corpus.keep_txt2img:
            source = full.store
    else:
        timed(run, "finetune", lambda: finetune(run, workers))
    # More images may be there, of `busray run` or of an ablation that compared more: they stay.
    generate_together(run, workers, [None, *arms_to_draw(run.config)], source, never_shrink=True)


def _copy_adapters(source: Store, target: Store) -> None:
    """Commit the source's adapters in the target too."""
    record = read_adapters(source)  # the sub-run that trains them comes first in the plans
    assert record is not None
    if read_adapters(target) is None:  # else an earlier command copied them
        commit_adapters(target, read_adapter_files(source, record), record.to_dict())


# ---- figures ----


def _measure(run: Run, workers: Workers, sub_runs: Sequence[SubRun]) -> AblationFigures:
    figures = AblationFigures([], [])
    for done, extractor in enumerate(run.extractors):
        workers.report("figures", done, len(run.extractors))
        arms, sweep = _measure_by(run, workers, sub_runs, extractor)
        figures.arms.extend(arms)
        figures.sweep.extend(sweep)
    workers.report("figures", len(run.extractors), len(run.extractors))
    return figures


def _measure_by(
    run: Run, workers: Workers, sub_runs: Sequence[SubRun], extractor: str
) -> tuple[list[Figure], list[Figure]]:
    """(figures of the table's arms, figures of the sweeps) by one extractor."""
    wanted: dict[str, list[ImageBlock]] = {}
    for sub_run in sub_runs:
        blocks = synthetic_blocks(sub_run.run, arm_sources(sub_run.run.config), extractor)
        wanted |= {name: blocks[arm] for arm, name in sub_run.plan.arms.items()}
    # One call for all sub-runs, so that row i is the same seed in each of them.
    drawn, real = features(run, workers, wanted, extractor)

    reference, names = run.config.evaluate.reference, _table_arms(sub_runs)
    compared = {name: drawn[name] for name in names}
    pairs = ablation.compared_pairs(names, run.config.ablate.against)
    arms = arm_figures(compared, real, reference, pairs)
    arms += nearness_figures(compared, real, _held_out(reference))
    for arm, blocks in _reconstructed(run, workers, extractor).items():
        images, _ = features(run, workers, {arm: blocks}, extractor)
        arms += reconstruction_figures(images, real, reference, {arm: _units(run, arm)})

    points = _sweep_points(run.config, sub_runs)
    swept = {name: drawn[name] for _, name in points}
    against = [(arm, name) for arm, name in dict.fromkeys(points) if arm != name]
    sweep = arm_figures(swept, real, SWEEP_REFERENCE, against)
    sweep += nearness_figures(swept, real, SWEEP_REFERENCE)
    return arms, sweep


def _sweep_points(config: settings.Config, sub_runs: Sequence[SubRun]) -> list[tuple[str, str]]:
    """(arm as it is configured, arm at a point of a sweep), sweep by sweep."""
    points = []
    for by_arm in ablation.sweep_curves(config, _plans(sub_runs)).values():
        for arm, values in by_arm.items():
            for _, name in values:
                points.append((arm, name))
    return points


def _plans(sub_runs: Sequence[SubRun]) -> list[ablation.SubRunPlan]:
    return [sub_run.plan for sub_run in sub_runs]


def _table_arms(sub_runs: Sequence[SubRun]) -> list[str]:
    """The arms of the table: all but those that only a sweep has."""
    names = list(ablation.ARMS)
    for plan in _plans(sub_runs):
        if not plan.point:
            names += plan.arms.values()
    return list(dict.fromkeys(names))


def _held_out(reference: str) -> str:
    """The split of real images whose nearness to the training images is the floor."""
    return reference if reference in ("val", "test") else "test"


# ---- the autoencoder alone ----


@dataclass(frozen=True)
class AutoencoderBlock:
    """Real images of a class to encode and decode."""

    arm: str
    class_name: str
    images: tuple[SourceImage, ...]
    content: str  # fingerprint of the images and the autoencoder

    @property
    def key(self) -> str:
        """Of the result, uint8 [n, s, s]."""
        return f"vae/{self.content[:32]}.npy"


def _autoencoder_blocks(run: Run) -> list[AutoencoderBlock]:
    """Blocks of the arm `vae`: the reference's images, as many a class as the arms have.

    The images that the floor compares with the reference are decoded too, as `vae-<split>`.
    """
    # The arm `vae` is the reference itself, decoded. Only decoded images of the other split can be
    # compared with the floor.
    reference, n = run.config.evaluate.reference, most_compared(run.config)
    split_of = {VAE: reference}
    if reference in FLOOR_SPLIT:
        split_of[f"{VAE}-{FLOOR_SPLIT[reference]}"] = FLOOR_SPLIT[reference]
    autoencoder = [run.base.files, run.config.base.dtype, run.dataset.size, run.dataset.frame]
    blocks = []
    for arm, split in split_of.items():
        for name in run.config.classes:
            images = [image for image in run.dataset.split(split) if image.class_name == name][:n]
            content = fingerprint([*autoencoder, [image.sha256 for image in images]])
            blocks.append(AutoencoderBlock(arm, name, tuple(images), content))
    return blocks


def _reconstructed(run: Run, workers: Workers, extractor: str) -> dict[str, list[ImageBlock]]:
    """arm -> real images that the base's autoencoder encoded and decoded."""
    blocks = _autoencoder_blocks(run)
    missing: dict[str, Images] = {}
    for block in blocks:
        if not run.store.exists(block.key):
            missing[block.key] = run.images.load(block.images)
    if missing:
        total = sum(map(len, missing.values()))
        arguments = (run.config, workers.device, run.store, missing)
        workers.call("autoencoder", total, _reconstruct, *arguments, kind="model")
    wanted: dict[str, list[ImageBlock]] = {}
    for block in blocks:
        key = features_key(block.content, "vae", extractor)
        # Pixels are read only where their features are missing.
        pixels = None if run.store.exists(key) else workers.share(load_array(run.store, block.key))
        decoded = ImageBlock(run.store, key, pixels=pixels, boxes=run.images.boxes(block.images))
        decoded = replace(decoded, images=len(block.images), class_name=block.class_name)
        wanted.setdefault(block.arm, []).append(decoded)
    return wanted


def _reconstruct(
    beat: Beat, config: settings.Config, device: str, store: Store, images_of: Mapping[str, Images]
) -> None:
    """Encode and decode images in a worker; images_of: key of the result -> images."""
    from busray.model.latents import reconstruct  # imports torch: in the worker only

    pipe = load_pipeline(config.base, device)
    for key, images in images_of.items():
        decoded = reconstruct(pipe, images.pixels, images.boxes, config.sampling.batch_size, beat)
        put_array(store, key, decoded)


def _units(run: Run, arm: str) -> dict[str, np.ndarray]:
    """class -> labels of independent draws among an arm's real images, in its features' order."""
    units = {}
    for block in _autoencoder_blocks(run):
        if block.arm == arm:
            n = len(block.images)
            order = by_chance(block.class_name, range(n), n)
            units[block.class_name] = np.array([block.images[i].unit for i in order])
    return units


# ---- the report ----


def _report(run: Run, sub_runs: Sequence[SubRun], figures: AblationFigures) -> dict[str, Any]:
    reference, refined = run.config.evaluate.reference, ablation.SWEPT_REFINED
    sweep_only: list[str] = []
    for plan in _plans(sub_runs):
        sweep_only += plan.arms.values() if plan.point else ()
    sentences = ablation_sentences(figures.arms, figures.sweep, refined, SWEEP_REFERENCE)
    return {
        "run": described_run(run),
        "dataset": described_dataset(run),
        "figures": [figure.to_dict() for figure in figures.all()],
        "verdicts": [*sentences, *distance_sentences(figures.arms)],
        "timings": _timings(sub_runs),
        "ablation": {
            "against": run.config.ablate.against,
            "full": ablation.SWEPT_METHOD,
            "arms": _table_arms(sub_runs),
            "sweep_only": sweep_only,
            "reference": reference,
            "sweep_reference": SWEEP_REFERENCE,
            "held_out": _held_out(reference),
            "notes": ablation_notes(figures.arms, refined),
            "curves": ablation.sweep_curves(run.config, _plans(sub_runs)),
            "configurations": _configurations(run.store, sub_runs),
        },
    }


def _configurations(store: Store, sub_runs: Sequence[SubRun]) -> list[dict[str, Any]]:
    """Every arm's settings, and those of sweeps of an earlier command with other values."""
    rows, plans = [], _plans(sub_runs)
    earlier = _earlier_points(store, {plan.prefix for plan in plans})
    for measured, measured_plans in (("now", plans), ("earlier", earlier)):
        for plan in measured_plans:
            rows += [_configuration(name, arm, plan, measured) for arm, name in plan.arms.items()]
    order = {name: i for i, name in enumerate(_table_arms(sub_runs))}
    return sorted(rows, key=lambda row: order.get(row["arm"], len(order)))


def _earlier_points(store: Store, prefixes_now: set[str]) -> list[ablation.SubRunPlan]:
    earlier = []
    for point in store.folders("points"):
        prefix = f"points/{point}"
        stored = None if prefix in prefixes_now else store.read_record_or_none(f"{prefix}/{CONFIG}", json_object)
        if stored is not None:
            config = validate(stored)
            arms = {arm: f"{arm} {point}" for arm in config.evaluate.arms}
            earlier.append(ablation.SubRunPlan(prefix, config, arms))
    return earlier


def _configuration(name: str, arm: str, plan: ablation.SubRunPlan, measured: str) -> dict[str, Any]:
    config = plan.config
    parsed = Arm.parse(arm)
    refine = config.refine if parsed.refined else None
    return {
        "arm": name,
        "training steps": config.adapters.steps if parsed.uses_adapters else None,
        "steps": config.sampling.steps,
        "guidance": config.sampling.guidance_scale,
        "strength": refine.strength if refine else None,
        "refine steps": refine.steps if refine else None,
        "refine guidance": refine.guidance_scale if refine else None,
        "UNet evaluations an image": ablation.unet_evaluations(config.sampling, refine),
        "images a class": most_compared(config),
        "under": plan.prefix or ".",
        "measured": measured,
    }


def _timings(sub_runs: Sequence[SubRun]) -> list[dict[str, Any]]:
    rows = []
    for sub_run in sub_runs:
        timings = read_timings(sub_run.run.store)
        label = f"{sub_run.plan.prefix}: " if sub_run.plan.prefix else ""
        for stage, seconds in timings.items():
            row = {"stage": f"{label}{stage}", "seconds": seconds}
            rows.append({**row, "images": None, "images_per_actor_second": None})
    return rows


def _sheets(run: Run, sub_runs: Sequence[SubRun]) -> dict[str, bytes]:
    """class -> the first images of each arm, decoded ones too; a row per arm, a column per seed."""
    images_of = {}
    for sub_run in sub_runs:
        for arm, name in sub_run.plan.arms.items():
            images_of[name] = _first_images(sub_run.run, arm)
    arms = list(dict.fromkeys([*_table_arms(sub_runs), *images_of]))
    sheets = {}
    for class_name in run.config.classes:
        rows = [images_of[arm].get(class_name, []) for arm in arms]
        if any(rows):
            sheets[class_name] = contact_sheet(rows, [], row_labels=arms)
    sheets["The autoencoder alone"] = _autoencoder_sheet(run)
    return sheets


def _first_images(run: Run, arm: str) -> dict[str, list[bytes | None]]:
    """class -> PNGs of the arm's images 0 .. SHEET_IMAGES - 1; None where one was quarantined."""
    source = arm_sources(run.config)[arm]
    store = run.store.sub(source.prefix) if source.prefix else run.store
    shown: dict[str, list[bytes | None]] = {}
    for shard in committed_shards(store):
        if shard.first < SHEET_IMAGES:
            table = read_rows(store, read_commit(store, shard), columns=["index", source.column])
            for row in table.to_pylist():
                if row["index"] < SHEET_IMAGES:
                    cells = shown.setdefault(shard.class_name, [None] * SHEET_IMAGES)
                    cells[row["index"]] = row[source.column]["bytes"]
    return shown


def _autoencoder_sheet(run: Run) -> bytes:
    rows, labels = [], []
    for block in _autoencoder_blocks(run):
        if block.arm == VAE:
            real = run.images.load(block.images[:SHEET_IMAGES]).pixels
            decoded = load_array(run.store, block.key)[:SHEET_IMAGES]
            for images in (real, decoded):
                rows.append([png_bytes(image, {}) for image in images])
            labels += [f"{block.class_name}, real", "through the autoencoder"]
    return contact_sheet(rows, [], row_labels=labels)
