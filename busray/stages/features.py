"""Features of every arm and of the real images: extracted once a shard, stored, read in pairs."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from busray.corpus.arms import compared_images
from busray.data.split import SPLITS
from busray.evidence.real import RealFeatures
from busray.evidence.stats.frechet import MOST_REPLICATES
from busray.records import INCEPTION
from busray.run.pieces import ImageBlock, block_pixels, by_chance, class_of, load_features, real_blocks, rows_of
from busray.run.record import Run
from busray.vision import texture
from busray.vision.classifier import Classifier
from busray.vision.extractors import Extractor, Features
from busray.vision.segmenter import Segmenter
from busray.workers import Beat, Kind, Workers

ClassFeatures = dict[str, np.ndarray]
"""class -> features [n, d]"""
Arms = dict[str, ClassFeatures]
"""arm -> class -> features [n, d]"""


def features(run: Run, workers: Workers, wanted: dict[str, list[ImageBlock]], extractor: str) -> tuple[Arms, RealFeatures]:
    """(features of the arms, features of the real images); what is not stored is extracted first.

    wanted: arm -> its blocks, of this run or of others with the same seeds. Row i of each arm has
    the same seed, and the order is random. At most MOST x (number of real images) rows per arm are
    kept in memory, however large the corpus is: no figure uses more. Texture is scaled by the real
    training images (texture.standardised); it is stored as it was measured.
    """
    missing = [block for blocks in wanted.values() for block in blocks if not block.store.exists(block.key)]
    missing = [*_unique(missing), *missing_real_blocks(run, workers, extractor)]
    if missing:
        extract(run, workers, missing, extractor)
    arms, real = _paired(run, wanted), _real_images(run, extractor)
    if extractor == texture.NAME:
        arms, scaled = texture.standardised(arms, real.features)
        real = replace(real, features=scaled)
    return arms, real


def _unique(blocks: Sequence[ImageBlock]) -> list[ImageBlock]:
    return list({(block.store.url, block.key): block for block in blocks}.values())


def missing_real_blocks(run: Run, workers: Workers, extractor: str) -> list[ImageBlock]:
    """The blocks of real images whose features are not stored, with their pixels."""
    blocks = []
    for key, _, _, images in real_blocks(run, extractor):
        if not run.store.exists(key):
            loaded = run.images.load(images)
            pixels = workers.share(loaded.pixels)
            blocks.append(ImageBlock(run.store, key, pixels=pixels, boxes=loaded.boxes, images=len(images)))
    return blocks


def extract(run: Run, workers: Workers, blocks: list[ImageBlock], name: str) -> None:
    """Compute and store the blocks' features by the extractor of this name."""
    extractor = run.extractors[name]
    kind: Kind = "model"
    if extractor.weights is None:
        kind = "core"
    elif isinstance(extractor.weights, Segmenter | Classifier):
        kind = "cpu"
    device = workers.device if kind == "model" else "cpu"
    start = partial(FeatureWorker.load, extractor, device, run.config.evaluate.batch_size)
    stage = "features" if name == INCEPTION else f"features {name}"
    workers.map(stage, sum(block.images for block in blocks), start, blocks, kind)


@dataclass(frozen=True)
class FeatureWorker:
    """Reads a block's images and puts their features float32 [n, d] beside the corpus."""

    compute: Features
    batch_size: int

    @staticmethod
    def load(extractor: Extractor, device: str, batch_size: int) -> "FeatureWorker":
        return FeatureWorker(extractor.load(device), batch_size)

    def __call__(self, block: ImageBlock, beat: Beat) -> None:
        pixels, boxes = block_pixels(block)
        batches = []
        for at in range(0, len(pixels), self.batch_size):
            batch = slice(at, at + self.batch_size)
            batches.append(self.compute(pixels[batch], boxes[batch]))
            beat(len(batches[-1]))
        buffer = io.BytesIO()
        np.save(buffer, np.concatenate(batches).astype(np.float32), allow_pickle=False)
        block.store.put_once(block.key, buffer.getvalue())


def _paired(run: Run, wanted: dict[str, list[ImageBlock]]) -> Arms:
    """Features of the chosen images, so that row i of each arm has the same seed."""
    chosen = chosen_indices(run, wanted)
    return {arm: _arm_features(blocks, chosen) for arm, blocks in wanted.items()}


def chosen_indices(run: Run, wanted: dict[str, list[ImageBlock]]) -> dict[str, list[int]]:
    """class -> indices of the images that every arm has, in the random order of by_chance.

    An image that is quarantined in one arm is left out of all.
    """
    chosen: dict[str, list[int]] = {}
    for name in sorted({class_of(block) for blocks in wanted.values() for block in blocks}):
        in_all = np.ones(compared_images(run.config), bool)
        for blocks in wanted.values():
            in_arm = np.zeros_like(in_all)
            for block in blocks:
                if class_of(block) == name:
                    in_arm[[index for index in rows_of(block) if index < len(in_arm)]] = True
            in_all &= in_arm
        real = sum(image.class_name == name for image in run.dataset.split("all"))
        chosen[name] = by_chance(name, np.flatnonzero(in_all).tolist(), MOST_REPLICATES * real)
    return chosen


def _arm_features(blocks: list[ImageBlock], chosen: dict[str, list[int]]) -> ClassFeatures:
    """class -> features of the chosen indices, in their order. One block is in memory at a time."""
    features: ClassFeatures = {}
    for name, indices in chosen.items():
        position = {index: i for i, index in enumerate(indices)}
        for block in blocks:
            if class_of(block) != name:
                continue
            rows = {index: row for index, row in rows_of(block).items() if index in position}
            if not rows:
                continue
            stored = load_features(block.store, block.key)
            if name not in features:
                features[name] = np.empty((len(indices), stored.shape[1]), stored.dtype)
            features[name][[position[index] for index in rows]] = stored[list(rows.values())]
    return features


def _real_images(run: Run, extractor: str) -> RealFeatures:
    blocks: dict[str, dict[str, list[np.ndarray]]] = {split: {} for split in SPLITS}
    for key, split, name, _ in real_blocks(run, extractor):
        blocks[split].setdefault(name, []).append(load_features(run.store, key))
    features: dict[str, ClassFeatures] = {}
    for split, by_class in blocks.items():
        features[split] = {name: np.concatenate(parts) for name, parts in by_class.items()}
    return RealFeatures(features, real_units(run), extractor, run.dataset.frame, run.dataset.size)


def real_units(run: Run) -> dict[str, ClassFeatures]:
    """split -> class -> labels [n] of independent draws, in the order of _real_images."""
    units: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    for _, split, name, images in real_blocks(run, ""):
        units[split].setdefault(name, []).extend(image.unit for image in images)
    labels: dict[str, ClassFeatures] = {}
    for split, by_class in units.items():
        labels[split] = {name: np.array(of_class) for name, of_class in by_class.items()}
    return labels
