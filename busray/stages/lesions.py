"""Lesion geometry of a run: a segmenter is trained once, then measures real and drawn images alike.

The segmenter's record holds its scores on the test images. Its key is a hash of everything that
decides the segmenter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np

from busray.corpus.arms import arm_sources
from busray.corpus.commit import read_named
from busray.corpus.encode import png_bytes
from busray.data.images import ImageFolder
from busray.data.split import SPLITS
from busray.evidence.lesions import DiceScores, dice_figures, geometry_figures, unmeasurable
from busray.evidence.real import RealFeatures
from busray.identity import fingerprint, seed_for, sha256_bytes
from busray.layout import GEOMETRY_JSON, GEOMETRY_PNG, segmenter_key
from busray.records import ContentBox, Figure, SegmenterPins, SegmenterRecord, SourceImage, to_json
from busray.report.contact_sheet import contact_sheet
from busray.run.pieces import ImageBlock, block_pixels, class_of, synthetic_blocks
from busray.run.record import Run
from busray.stages.classifiers import put_weights
from busray.stages.features import features
from busray.storage import Store
from busray.vision import lesion_shape
from busray.vision import segmenter as unet
from busray.vision.extractors import Extractor
from busray.vision.fitting import VALIDATIONS
from busray.vision.segmenter import MaskedImages, Segmenter, Validation
from busray.workers import Beat, Workers

IMAGES_SHOWN = 2  # images a class and arm that are shown with their outlines


@dataclass(frozen=True)
class TrueLesions:
    """The images of a split whose masks are known."""

    images: tuple[SourceImage, ...]
    masks: np.ndarray  # bool [n, s, s]
    boxes: tuple[ContentBox, ...]

    @property
    def classes(self) -> np.ndarray:
        return np.array([image.class_name for image in self.images])

    @property
    def units(self) -> np.ndarray:
        return np.array([image.unit for image in self.images])


def geometry(run: Run, workers: Workers) -> list[Figure]:
    """Dice of the segmenter, and the geometry of every arm's lesions beside real ones.

    Needs evaluate.geometry. Without masks to learn from there are no figures, and geometry.json
    says why. geometry.png shows outlines.
    """
    assert run.config.evaluate.geometry is not None
    truth = {split: _true_lesions(run.images, split) for split in SPLITS}
    reason = unmeasurable({split: lesions.masks for split, lesions in truth.items()})
    if reason:
        run.store.replace_checked(GEOMETRY_JSON, to_json({"reason": reason}))
        return []
    seed = seed_for(run.config.seed, "all", 0, 0, "segmenter") % 2**31
    pins = _pins(run.dataset.hash, truth, run.config.evaluate.geometry.steps, seed)
    record = _trained_segmenter(run.store, run.images, workers, truth, pins)
    validations = tuple(Validation(**fields) for fields in record.looks)
    weights = read_named(run.store, record.object, record.digest, "its record")
    segmenter = Segmenter.from_bytes(weights, validations)

    # The extractor's name has the weights' digest, so that features of another have other keys.
    extractor = Extractor(f"{lesion_shape.NAME}-{record.digest[:16]}", segmenter)
    run = replace(run, extractors={extractor.name: extractor})
    blocks = synthetic_blocks(run, arm_sources(run.config), extractor.name)
    arms, real = features(run, workers, blocks, extractor.name)
    real = replace(real, extractor=lesion_shape.NAME)
    reference = "val" if run.config.evaluate.reference == "val" else "test"
    # Dice first: it says how far the geometry of pseudo-masks can be trusted.
    figures = dice_figures(_scored(record, truth["test"]), run.dataset.frame, run.dataset.size)
    figures += geometry_figures(arms, real, _by_true_masks(truth, run.images), reference)
    run.store.replace(GEOMETRY_PNG, _outlined(run.images, segmenter, blocks))
    run.store.replace_checked(GEOMETRY_JSON, to_json({"reason": None, "segmenter": asdict(record)}))
    return figures


def _true_lesions(folder: ImageFolder, split: str) -> TrueLesions:
    images = folder.dataset.split(split)
    masks = folder.masks(images)
    known = tuple(image for image, is_known in zip(images, masks.known, strict=True) if is_known)
    return TrueLesions(known, masks.lesions[masks.known], folder.boxes(known))


def _by_true_masks(truth: Mapping[str, TrueLesions], folder: ImageFolder) -> RealFeatures:
    """The real images as their own masks show them."""
    features: dict[str, dict[str, np.ndarray]] = {}
    units: dict[str, dict[str, np.ndarray]] = {}
    for split, lesions in truth.items():
        measures = lesion_shape.measures(lesions.masks, lesions.boxes)
        features[split], units[split] = {}, {}
        for name in np.unique(lesions.classes).tolist():
            of_class = lesions.classes == name
            features[split][name] = measures[of_class]
            units[split][name] = lesions.units[of_class]
    return RealFeatures(features, units, lesion_shape.TRUE, folder.dataset.frame, folder.dataset.size)


def _scored(record: SegmenterRecord, test: TrueLesions) -> DiceScores:
    """Dice of the test images that have a lesion."""
    dice = np.array(record.dice, np.float64)  # None becomes NaN
    has_lesion = test.masks.any((1, 2))
    return DiceScores(dice[has_lesion], test.classes[has_lesion], test.units[has_lesion], record.images["train"])


def _pins(dataset_hash: str, truth: Mapping[str, TrueLesions], steps: int, seed: int) -> SegmenterPins:
    # The masks' own bytes: they are not in the data set's hash.
    masks = {}
    for split, lesions in truth.items():
        files = repr([image.file for image in lesions.images]).encode()
        masks[split] = sha256_bytes(files + np.packbits(lesions.masks).tobytes())
    return SegmenterPins(lesion_shape.NAME, dataset_hash, masks, steps, seed)


def _trained_segmenter(
    store: Store, folder: ImageFolder, workers: Workers, truth: Mapping[str, TrueLesions], pins: SegmenterPins
) -> SegmenterRecord:
    """The record of the run's segmenter, which is trained first if there is none."""
    key = segmenter_key(fingerprint(asdict(pins)))
    if not store.exists(key):
        splits: dict[str, MaskedImages] = {}
        for split, lesions in truth.items():
            pixels = folder.load(lesions.images).pixels
            splits[split] = MaskedImages(pixels, lesions.masks, lesions.boxes)
        workers.call("segmenter", VALIDATIONS, _train_segmenter, store, key, pins, splits)
    return store.read_record(key, SegmenterRecord.from_json)


def _train_segmenter(
    beat: Beat, store: Store, key: str, pins: SegmenterPins, splits: Mapping[str, MaskedImages]
) -> None:
    """Train, score test, put the weights and then their record."""
    segmenter = unet.fit(splits["train"], splits["val"], pins.steps, pins.seed, beat, validated=partial(beat, 1))
    test = splits["test"]
    dice = unet.dice(unet.segment(segmenter, test.pixels, test.boxes, beat), test.masks)
    weights_key, digest = put_weights(store, key, segmenter.to_bytes())
    record = SegmenterRecord(
        **asdict(pins),
        images={split: len(masked.masks) for split, masked in splits.items()},
        looks=tuple(map(asdict, segmenter.validations)),
        dice=tuple(None if np.isnan(value) else float(value) for value in dice),
        object=weights_key,
        digest=digest,
    )
    store.put_checked(key, to_json(record))


def _outlined(folder: ImageFolder, segmenter: Segmenter, arms: Mapping[str, list[ImageBlock]]) -> bytes:
    """A row per class: the first real test images, then each arm's, with pseudo-masks outlined."""
    rows = []
    for class_name in folder.classes:
        test = [image for image in folder.dataset.test if image.class_name == class_name]
        real = folder.load(test[:IMAGES_SHOWN])
        row = _cells(segmenter, real.pixels, real.boxes)
        for blocks in arms.values():
            row += _arm_cells(segmenter, blocks, class_name)
        rows.append(row)
    labels: list[str] = []
    for arm in ("real", *arms):
        labels += [arm] + [""] * (IMAGES_SHOWN - 1)
    return contact_sheet(rows, labels, row_labels=list(folder.classes))


def _arm_cells(segmenter: Segmenter, blocks: list[ImageBlock], class_name: str) -> list[bytes | None]:
    for block in blocks:
        if class_of(block) == class_name:
            return _cells(segmenter, *block_pixels(block, IMAGES_SHOWN))
    return [None] * IMAGES_SHOWN


def _cells(segmenter: Segmenter, pixels: np.ndarray, boxes: Sequence[ContentBox]) -> list[bytes | None]:
    """IMAGES_SHOWN PNGs; None in place of missing ones."""
    masks = unet.segment(segmenter, pixels, boxes)
    cells: list[bytes | None] = []
    for image, mask in zip(pixels, masks, strict=True):
        cells.append(png_bytes(lesion_shape.outlined(image, mask), {}))
    return cells + [None] * (IMAGES_SHOWN - len(cells))
