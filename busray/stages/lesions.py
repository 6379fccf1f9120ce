"""Lesion geometry of a run: the segmenter is trained once, as a task on Ray, its measures are stored once a shard.

What the segmenter is and how it does on test stands in its record, which is kept under all that decides it.
"""

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from busray.cluster.liveness import Pulse, stopped, supervised, watched
from busray.cluster.session import session, use_threads
from busray.corpus.arms import arm_sources
from busray.corpus.commit import read_rows
from busray.corpus.encode import png_bytes, png_pixels
from busray.data.frame import content_box
from busray.data.images import load_images, load_masks
from busray.data.split import SPLITS
from busray.evidence.lesions import Scored, dice_figures, geometry_figures
from busray.evidence.stats.samples import Real
from busray.identity import fingerprint, seed_for, sha256_bytes
from busray.layout import GEOMETRY_JSON, GEOMETRY_PNG, segmenter_key
from busray.records import Box, Figure, SourceImage, to_json
from busray.report.contact_sheet import contact_sheet
from busray.run.pieces import BOX, Piece, synthetic_pieces
from busray.run.record import Run
from busray.stages.features import features
from busray.storage import Store
from busray.vision import lesion_shape as lesions
from busray.vision import segmenter as unet
from busray.vision.extractors import Extractor
from busray.vision.segmenter import Look, Masked, Segmenter

SHOWN = 2
"""Images a class and arm that are shown with their outlines."""


TRIES = 3
"""Times that Ray starts a training again whose worker died."""


@dataclass(frozen=True)
class Truth:
    """What the data set's masks say of a split: lesions bool [n, s, s] of the images with known masks."""

    images: tuple[SourceImage, ...]
    masks: np.ndarray
    boxes: tuple[Box, ...]


def geometry(run: Run) -> list[Figure]:
    """Dice of the segmenter and geometry of every arm's lesions beside real ones; none where there are no masks to
    learn from, and geometry.json says so. geometry.png shows outlines. evaluate.geometry is set."""
    truth = {split: _truth(run, split) for split in SPLITS}
    reason = lesions.unmeasurable({split: found.masks for split, found in truth.items()})
    if reason:
        run.store.replace(GEOMETRY_JSON, to_json({"reason": reason}))
        return []
    record = _trained(run, truth)
    looks = tuple(Look(**look) for look in record["looks"])
    segmenter = Segmenter.from_bytes(run.store.read(record["object"]), looks)
    name = f"{lesions.NAME}-{record['digest'][:16]}"
    run = replace(run, extractors={name: Extractor(name, segmenter)})
    pieces = synthetic_pieces(run, arm_sources(run.config), name)
    arms, real = features(run, pieces, name)
    real = replace(real, extractor=lesions.NAME)
    reference = run.config.evaluate.reference
    figures = dice_figures(_scored(record, truth["test"]), run.dataset.frame, run.dataset.size)
    figures += geometry_figures(arms, real, _true(run, truth), reference if reference == "val" else "test")
    run.store.replace(GEOMETRY_PNG, _outlined(run, segmenter, pieces))
    run.store.replace(GEOMETRY_JSON, to_json({"reason": None, "segmenter": record}))
    return figures


def _truth(run: Run, split: str) -> Truth:
    images, size, frame = run.dataset.split(split), run.dataset.size, run.dataset.frame
    masks, known = load_masks(run.folder, images, size, frame)
    kept = tuple(image for image, ok in zip(images, known, strict=True) if ok)
    return Truth(kept, masks[known], tuple(content_box(i.width, i.height, size, frame) for i in kept))


def _true(run: Run, truth: dict[str, Truth]) -> Real:
    """The real images as their own masks show them."""
    features: dict[str, dict[str, np.ndarray]] = {}
    units: dict[str, dict[str, np.ndarray]] = {}
    for split, found in truth.items():
        measured = lesions.measures(found.masks, found.boxes)
        classes = np.array([image.class_name for image in found.images])
        labels = np.array([image.unit for image in found.images])
        features[split] = {name: measured[classes == name] for name in np.unique(classes).tolist()}
        units[split] = {name: labels[classes == name] for name in features[split]}
    return Real(features, units, lesions.TRUE, run.dataset.frame, run.dataset.size)


def _scored(record: dict[str, Any], test: Truth) -> Scored:
    dice = np.array(record["dice"], np.float64)  # null, where neither mask has anything, becomes NaN
    there = test.masks.any((1, 2))
    classes = np.array([image.class_name for image in test.images])
    units = np.array([image.unit for image in test.images])
    return Scored(dice[there], classes[there], units[there], record["images"]["train"])


def _trained(run: Run, truth: dict[str, Truth]) -> dict[str, Any]:
    """The record of the run's segmenter, which is trained first where there is none."""
    assert run.config.evaluate.geometry is not None
    pins = {
        "segmenter": lesions.NAME,
        "dataset": run.dataset.hash,
        "masks": {
            split: sha256_bytes(repr([i.file for i in found.images]).encode() + np.packbits(found.masks).tobytes())
            for split, found in truth.items()
        },
        "steps": run.config.evaluate.geometry.steps,
        "seed": seed_for(run.config.seed, "all", 0, 0, "segmenter") % 2**31,
    }
    key = segmenter_key(fingerprint(pins))
    if not run.store.exists(key):
        with session(run.config.cluster, run.log_file):
            _train(run, truth, pins, key)
    return json.loads(run.store.read(key))


def _train(run: Run, truth: dict[str, Truth], pins: dict[str, Any], key: str) -> None:
    cluster = run.config.cluster
    with watched(run.tell, "segmenter", unet.CHECKS) as board:

        def work() -> None:
            splits = {}
            for split, found in truth.items():
                pixels = load_images(run.folder, found.images, run.dataset.size, run.dataset.frame)
                splits[split] = Masked(pixels, found.masks, found.boxes)
            task = _fit.options(num_cpus=cluster.cpus_per_actor, max_retries=TRIES)
            ray.get(task.remote(run.store, pins, key, ray.put(splits), cluster.threads, board))

        try:
            supervised(board, "segmenter", cluster.hang_seconds, work)
        except RayError as error:
            raise stopped("segmenter", error) from error


@ray.remote
def _fit(store: Store, pins: dict[str, Any], key: str, splits: dict[str, Masked], threads: int, board: Any) -> None:
    """Train, score test, put the weights and then their record; those of the first that comes so far stay."""
    use_threads(threads)
    beat = Pulse(board)
    beat()
    fitted = unet.fit(splits["train"], splits["val"], pins["steps"], pins["seed"], beat, looked=partial(beat, 1))
    test = splits["test"]
    dice = unet.dice(unet.segment(fitted, test.pixels, test.boxes, beat), test.masks)
    data = fitted.to_bytes()
    digest = sha256_bytes(data)
    weights = f"{key.removesuffix('.json')}-{digest[:16]}.safetensors"
    store.put_once(weights, data)
    record = {
        **pins,
        "images": {split: len(found.masks) for split, found in splits.items()},
        "looks": [asdict(look) for look in fitted.looks],
        "dice": [None if np.isnan(one) else float(one) for one in dice],
        "object": weights,
        "digest": digest,
    }
    store.put_once(key, to_json(record))
    beat.rest()


def _outlined(run: Run, segmenter: Segmenter, arms: dict[str, list[Piece]]) -> bytes:
    """A row a class: the first real test images, then each arm's, with the outlines of their pseudo-masks."""
    rows, size, frame = [], run.dataset.size, run.dataset.frame
    for name in run.config.classes:
        images = [image for image in run.dataset.test if image.class_name == name][:SHOWN]
        boxes = [content_box(image.width, image.height, size, frame) for image in images]
        row = _cells(segmenter, load_images(run.folder, images, size, frame), boxes)
        for found in arms.values():
            piece = next((p for p in found if p.commit is not None and p.commit.class_name == name), None)
            if piece is None or piece.commit is None:
                row += [None] * SHOWN
                continue
            table = read_rows(piece.store, piece.commit, columns=[piece.column, *BOX]).slice(0, SHOWN)
            pixels = np.stack([png_pixels(cell["bytes"]) for cell in table.column(piece.column).to_pylist()])
            row += _cells(segmenter, pixels, [Box(**one) for one in table.select(BOX).to_pylist()])
        rows.append(row)
    labels = [arm if i == 0 else "" for arm in ("real", *arms) for i in range(SHOWN)]
    return contact_sheet(rows, labels, row_labels=list(run.config.classes))


def _cells(segmenter: Segmenter, pixels: np.ndarray, boxes: list[Box]) -> list[bytes | None]:
    """SHOWN PNGs, None where there are fewer images."""
    masks = unet.segment(segmenter, pixels, boxes)
    cells = [png_bytes(lesions.outlined(image, mask), {}) for image, mask in zip(pixels, masks, strict=True)]
    return [*cells, *[None] * (SHOWN - len(cells))]
