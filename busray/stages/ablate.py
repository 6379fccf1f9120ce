"""`busray ablate`: every part of an ablation drawn by the stages of a run, measured together, written as one table.

A part is a run below the output with settings of its own; all share data, seeds and training budget. Whatever a part
has committed is not made again, so the same command goes on where it stopped.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from busray import __version__
from busray import config as settings
from busray.cluster.liveness import Pulse, stopped, supervised, watched
from busray.cluster.session import device_of, session, use_threads
from busray.config_file import validate
from busray.corpus.ablation import ARMS, FULL, Part, curves, pairs, parts, unet_evaluations
from busray.corpus.arms import arm_sources, arms_to_draw, compared_images
from busray.corpus.commit import committed_shards, read_commit, read_rows
from busray.corpus.encode import png_bytes
from busray.data.frame import content_box
from busray.data.images import load_images
from busray.evidence.distances import OTHER, arm_figures
from busray.evidence.nearness import VAE, nearness_figures, reconstruction_figures
from busray.identity import fingerprint
from busray.layout import CONFIG, DATASET, features_key
from busray.model.checkpoints import commit_adapters, read_adapters
from busray.records import INCEPTION, Box, Figure, SourceImage, UserError, to_json
from busray.report.ablation import ablation_html, notes, sentences
from busray.report.contact_sheet import contact_sheet
from busray.report.tables import figures_csv
from busray.report.verdicts import verdicts
from busray.run.pieces import Piece, by_chance, synthetic_pieces
from busray.run.record import TIMINGS, Run, timed
from busray.stages.features import features
from busray.stages.finetune import finetune
from busray.stages.generate import generate
from busray.storage import Store

SWEEP_REFERENCE = "val"
"""Settings are chosen on it; the arms are compared on evaluate.reference."""


TABLE, RECORD, PAGE = "ablate.csv", "ablate.json", "ablate.html"


SHEET_IMAGES = 6


@dataclass(frozen=True)
class Opened:
    """A part and the run that its stages are handed."""

    part: Part
    run: Run


def check_ablation(run: Run) -> list[Part]:
    """The ablation's parts; UserError where their settings or the adapters that are there make no fair comparison."""
    if INCEPTION not in run.extractors:
        raise UserError("evaluate.extractors: an ablation measures with inception: name it among them")
    adapters = read_adapters(run.store)
    if run.config.adapters.path or (adapters and adapters.get("adopted")):
        raise UserError(
            "adapters.path: an ablation trains every arm's adapters alike, so it takes none from elsewhere: leave it "
            "unset and give an output whose adapters were trained there (those of `busray run` under it are kept)"
        )
    return parts(run.config)


def ablate(run: Run) -> dict[str, Any]:
    """Draw and measure every part, write ablate.csv, ablate.json and ablate.html; returns what ablate.json holds."""
    found = [Opened(part, _open(run, part)) for part in check_ablation(run)]
    with session(run.config.cluster, run.log_file):
        for one in found:
            _draw(one, found)
        arms, sweep = _measure(run, found)
    report = _report(run, found, arms, sweep)
    run.store.replace(TABLE, figures_csv(report["figures"]).encode())
    run.store.replace(RECORD, to_json(report))
    run.store.replace(PAGE, ablation_html(report, _sheets(run, found)).encode())
    return report


def _open(run: Run, part: Part) -> Run:
    """The part's run: its own settings and storage, the ablation's data set and base."""
    if not part.prefix:
        return replace(run, config=part.config)
    store = run.store.sub(part.prefix)
    store.put_once(CONFIG, to_json(part.config.model_dump(mode="json")))
    store.put_once(DATASET, to_json(run.dataset))

    def tell(stage: str, done: int, total: int) -> None:
        run.tell(f"{part.prefix}: {stage}", done, total)

    return replace(run, config=part.config, store=store, tell=tell)


def _draw(one: Opened, found: list[Opened]) -> None:
    run, start = one.run, None
    if one.part.shares_adapters:
        full = next(other.run for other in found if FULL in other.part.arms.values())
        _share_adapters(full.store, run.store)
        if one.part.point and one.part.point[0] == "strength" and full.config.corpus.keep_txt2img:
            start = full.store
    else:
        timed(run, "finetune", lambda: finetune(run))
    # More images may be there, of `busray run` or of an ablation that compared more.
    timed(run, "generate", lambda: generate(run, start=start, keep_more=True))
    for arm in arms_to_draw(run.config):
        timed(run, f"generate {arm}", lambda arm=arm: generate(run, arm))


def _share_adapters(source: Store, target: Store) -> None:
    """Commit the source's adapters in the target too, so that the part can be reproduced by itself."""
    record = read_adapters(source)
    assert record is not None
    if read_adapters(target) is None:
        files = {name: source.read(f"{record['folder']}/{name}") for name in record["files"]}
        commit_adapters(target, files, record)


def _measure(run: Run, found: list[Opened]) -> tuple[list[Figure], list[Figure]]:
    """(figures of the arms against evaluate.reference, figures of the sweeps against SWEEP_REFERENCE)."""
    arms: list[Figure] = []
    sweep: list[Figure] = []
    for done, extractor in enumerate(run.extractors):
        run.tell("figures", done, len(run.extractors))
        of_arms, of_sweep = _measure_by(run, found, extractor)
        arms += of_arms
        sweep += of_sweep
    run.tell("figures", len(run.extractors), len(run.extractors))
    return arms, sweep


def _measure_by(run: Run, found: list[Opened], extractor: str) -> tuple[list[Figure], list[Figure]]:
    """_measure by one extractor."""
    reference = run.config.evaluate.reference
    wanted: dict[str, list[Piece]] = {}
    for one in found:
        pieces = synthetic_pieces(one.run, arm_sources(one.run.config), extractor)
        wanted |= {name: pieces[arm] for arm, name in one.part.arms.items()}
    drawn, real = features(run, wanted, extractor)

    names = _arm_names(found)
    compared = {name: drawn[name] for name in names}
    arms = arm_figures(compared, real, reference, pairs(names, run.config.ablate.against))
    arms += nearness_figures(compared, real, _held_out(reference))
    for arm, pieces in _reconstructed(run, extractor).items():
        images, _ = features(run, {arm: pieces}, extractor)
        arms += reconstruction_figures(images, real, reference, {arm: _units(run, arm)})
    points = [(arm, name) for by in curves(run.config, _parts(found)).values() for arm in by for _, name in by[arm]]
    swept = {name: drawn[name] for _, name in points}
    against = [(arm, name) for arm, name in dict.fromkeys(points) if arm != name]
    sweep = arm_figures(swept, real, SWEEP_REFERENCE, against)
    sweep += nearness_figures(swept, real, SWEEP_REFERENCE)
    return arms, sweep


def _parts(found: list[Opened]) -> list[Part]:
    return [one.part for one in found]


def _arm_names(found: list[Opened]) -> list[str]:
    """The arms of the table: all but those that are a sweep's."""
    others = [name for one in found if not one.part.point for name in one.part.arms.values()]
    return [*ARMS, *(name for name in others if name not in ARMS)]


def _held_out(reference: str) -> str:
    """The split of real images whose nearness to the training images is the floor."""
    return reference if reference in ("val", "test") else "test"


@dataclass(frozen=True)
class Block:
    """Real images of a class to encode and decode; `key` is where the result goes, uint8 [n, s, s]."""

    arm: str
    class_name: str
    images: tuple[SourceImage, ...]
    key: str
    content: str


def _blocks(run: Run) -> list[Block]:
    """`vae`: the reference's images, as many a class as the arms have. Its images and the reference are the same, so
    beside it stand those that the real-against-real floor holds against the reference, `vae-<split>`."""
    reference, n = run.config.evaluate.reference, compared_images(run.config)
    splits = {VAE: reference} | ({f"{VAE}-{OTHER[reference]}": OTHER[reference]} if reference in OTHER else {})
    blocks = []
    for arm, split in splits.items():
        for name in run.config.classes:
            images = tuple([image for image in run.dataset.split(split) if image.class_name == name][:n])
            made_of = [image.sha256 for image in images]
            base = [run.base.files, run.config.base.dtype, run.dataset.size, run.dataset.frame]
            content = fingerprint([*base, made_of])
            blocks.append(Block(arm, name, images, f"vae/{content[:32]}.npy", content))
    return blocks


def _reconstructed(run: Run, extractor: str) -> dict[str, list[Piece]]:
    """arm -> real images that the base's autoencoder encoded and decoded, within a session."""
    blocks = _blocks(run)
    missing = [block for block in blocks if not run.store.exists(block.key)]
    if missing:
        cluster = run.config.cluster
        task = ray.remote(num_cpus=cluster.cpus_per_actor, num_gpus=cluster.gpus_per_actor)(_reconstruct)
        with watched(run.tell, "autoencoder", sum(len(block.images) for block in missing)) as board:

            def work() -> None:
                for block in missing:
                    pixels = load_images(run.folder, block.images, run.dataset.size, run.dataset.frame)
                    ray.get(task.remote(run.config, run.store, block.key, pixels, _boxes(run, block), board))

            try:
                supervised(board, "autoencoder", cluster.hang_seconds, work)
            except RayError as error:
                raise stopped("autoencoder", error) from error
    wanted: dict[str, list[Piece]] = {}
    for block in blocks:
        pixels, key = ray.put(_pixels(run.store, block)), features_key(block.content, "vae", extractor)
        about = {"boxes": _boxes(run, block), "images": len(block.images), "class_name": block.class_name}
        wanted.setdefault(block.arm, []).append(Piece(run.store, key, pixels=pixels, **about))
    return wanted


def _boxes(run: Run, block: Block) -> tuple[Box, ...]:
    """Where the content of the block's images lies."""
    size, frame = run.dataset.size, run.dataset.frame
    return tuple(content_box(image.width, image.height, size, frame) for image in block.images)


def _units(run: Run, arm: str) -> dict[str, np.ndarray]:
    """class -> labels of independent draws among the real images that an arm is made from, in its features' order."""
    return {
        block.class_name: np.array(
            [block.images[i].unit for i in by_chance(block.class_name, range(len(block.images)), len(block.images))]
        )
        for block in _blocks(run)
        if block.arm == arm
    }


def _pixels(store: Store, block: Block) -> np.ndarray:
    """uint8 [n, s, s]"""
    return np.load(io.BytesIO(store.read(block.key)), allow_pickle=False)


def _reconstruct(
    config: settings.Config, store: Store, key: str, pixels: np.ndarray, boxes: tuple[Box, ...], board: Any
) -> None:
    from busray.model.base import load_pipeline
    from busray.model.latents import reconstruct

    use_threads(config.cluster.threads)
    beat = Pulse(board)
    beat()
    pipe = load_pipeline(config.base, device_of(config.cluster.gpus_per_actor))
    made = reconstruct(pipe, pixels, boxes, config.sampling.batch_size, beat)
    buffer = io.BytesIO()
    np.save(buffer, made, allow_pickle=False)
    store.put_once(key, buffer.getvalue())
    beat.rest()


def _report(run: Run, found: list[Opened], arms: list[Figure], sweep: list[Figure]) -> dict[str, Any]:
    """Pure records; an arm that is in the table and in a sweep has its paper-mixture figures once."""
    figures = list(dict.fromkeys([*arms, *sweep]))
    names, refined = _arm_names(found), f"{FULL}+refine"
    reference = run.config.evaluate.reference
    return {
        "run": {
            "name": run.config.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "busray": __version__,
            "output": run.config.output,
            "command": run.command,
            "base": run.base.to_dict(),
            "settings": run.config.model_dump(mode="json"),
        },
        "dataset": {
            "hash": run.dataset.hash,
            "size": run.dataset.size,
            "frame": run.dataset.frame,
            "counts": run.dataset.counts(run.config.classes),
            "left_out": [list(pair) for pair in run.dataset.left_out],
        },
        "figures": [figure.to_dict() for figure in figures],
        "verdicts": [*sentences(arms, sweep, refined, SWEEP_REFERENCE), *verdicts(arms)],
        "timings": _timings(found),
        "ablation": {
            "against": run.config.ablate.against,
            "full": FULL,
            "arms": names,
            "sweep_only": [name for one in found if one.part.point for name in one.part.arms.values()],
            "reference": reference,
            "sweep_reference": SWEEP_REFERENCE,
            "held_out": _held_out(reference),
            "notes": notes(arms, refined),
            "curves": curves(run.config, _parts(found)),
            "configurations": _configurations(run, found),
        },
    }


def _configurations(run: Run, found: list[Opened]) -> list[dict[str, Any]]:
    """Every arm's settings, and those of sweeps that an earlier command with other values of them left here."""
    rows = [_configuration(name, arm, one.part) for one in found for arm, name in one.part.arms.items()]
    mine = {one.part.prefix for one in found}
    for key in run.store.list("points"):
        prefix, _, file = key.rpartition("/")
        if file == CONFIG and prefix.count("/") == 1 and prefix not in mine:
            config = validate(json.loads(run.store.read(key)))
            earlier = Part(prefix, config, {arm: f"{arm} {prefix.partition('/')[2]}" for arm in config.evaluate.arms})
            rows += [_configuration(name, arm, earlier, "earlier") for arm, name in earlier.arms.items()]
    order = {name: i for i, name in enumerate(_arm_names(found))}
    return sorted(rows, key=lambda row: order.get(row["arm"], len(order)))


def _configuration(name: str, arm: str, part: Part, measured: str = "now") -> dict[str, Any]:
    config = part.config
    method, refined = settings.split_arm(arm)
    refine = config.refine if refined else None
    return {
        "arm": name,
        "training steps": None if method == "base" else config.adapters.steps,
        "steps": config.sampling.steps,
        "guidance": config.sampling.guidance_scale,
        "strength": refine.strength if refine else None,
        "refine steps": refine.steps if refine else None,
        "refine guidance": refine.guidance_scale if refine else None,
        "UNet evaluations an image": unet_evaluations(config.sampling, refine),
        "images a class": compared_images(config),
        "under": part.prefix or ".",
        "measured": measured,
    }


def _timings(found: list[Opened]) -> list[dict[str, Any]]:
    rows = []
    for one in found:
        timings: Mapping[str, float] = json.loads(one.run.store.read_or_none(TIMINGS) or b"{}")
        where = f"{one.part.prefix}: " if one.part.prefix else ""
        rows += [
            {"stage": f"{where}{stage}", "seconds": seconds, "images": None, "images_per_actor_second": None}
            for stage, seconds in timings.items()
        ]
    return rows


def _sheets(run: Run, found: list[Opened]) -> dict[str, bytes]:
    """class -> the first images of each arm, a row an arm, a column a seed; and real images through the autoencoder."""
    sheets = {}
    cells = {name: _first_images(one.run, arm) for one in found for arm, name in one.part.arms.items()}
    names = _arm_names(found)
    order = [*names, *(name for name in cells if name not in names)]
    for class_name in run.config.classes:
        rows = [cells[name].get(class_name, []) for name in order]
        if any(rows):
            sheets[class_name] = contact_sheet(rows, [], row_labels=order)
    rows, labels = [], []
    for block in _blocks(run):
        if block.arm == VAE:
            shown = block.images[:SHEET_IMAGES]
            real = load_images(run.folder, shown, run.dataset.size, run.dataset.frame)
            made = _pixels(run.store, block)[:SHEET_IMAGES]
            rows += [[png_bytes(image, {}) for image in images] for images in (real, made)]
            labels += [f"{block.class_name}, real", "through the autoencoder"]
    sheets["The autoencoder alone"] = contact_sheet(rows, [], row_labels=labels)
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
