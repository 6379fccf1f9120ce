"""Features of every arm and of the real images. They are extracted once per shard and stored.

Row i of every arm was drawn from the same seed, and arms are compared row by row. So a seed that is
easy or hard for all arms does not change their differences.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from busray.corpus.arms import compared_images
from busray.data.split import SPLITS
from busray.evidence.real import RealFeatures
from busray.evidence.stats.frechet import MOST_REPLICATES
from busray.records import INCEPTION, SourceImage
from busray.run.pieces import ImageBlock, block_pixels, by_chance, class_of, load_array, put_array, real_blocks, rows_of
from busray.run.record import Run
from busray.vision import texture
from busray.vision.classifier import Classifier
from busray.vision.extractors import Extractor, Features
from busray.vision.segmenter import Segmenter
from busray.workers import Beat, Kind, Workers

ClassFeatures = dict[str, np.ndarray]  # class -> features [n, d]
Arms = dict[str, ClassFeatures]  # by arm


def features(
    run: Run, workers: Workers, wanted: dict[str, list[ImageBlock]], extractor: str
) -> tuple[Arms, RealFeatures]:
    """(features of the arms, features of the real images); what is not stored is extracted first.

    wanted: arm -> its blocks, of this run or of others with the same seeds. Row i of each arm has
    the same seed, and the order is random. Memory: at most MOST_REPLICATES x (number of real
    images) rows per arm, however large the corpus is.
    """
    # Two arms may read one object, which is then extracted once.
    missing: dict[tuple[str, str], ImageBlock] = {}
    for blocks in wanted.values():
        for block in blocks:
            if not block.store.exists(block.key):
                missing[block.store.url, block.key] = block
    to_extract = [*missing.values(), *missing_real_blocks(run, workers, extractor)]
    if to_extract:
        extract(run, workers, to_extract, extractor)
    arms, real = _paired(run, wanted), _real_images(run, extractor)
    if extractor == texture.NAME:
        # Stored as measured, since the scale depends on this run's training images.
        arms, scaled = texture.standardised(arms, real.features)
        real = replace(real, features=scaled)
    return arms, real


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
        kind = "core"  # plain arithmetic on one thread, so there is a worker a core
    elif isinstance(extractor.weights, Segmenter | Classifier):
        kind = "cpu"  # a small network that was trained on CPUs
    device = workers.device if kind == "model" else "cpu"
    start = partial(_start_extracting, extractor, device, run.config.evaluate.batch_size)
    stage = "features" if name == INCEPTION else f"features {name}"
    workers.map(stage, sum(block.images for block in blocks), start, blocks, kind)


def _start_extracting(extractor: Extractor, device: str, batch_size: int) -> Callable[[ImageBlock, Beat], None]:
    return partial(_extract_block, extractor.load(device), batch_size)


def _extract_block(compute: Features, batch_size: int, block: ImageBlock, beat: Beat) -> None:
    """Read a block's images and put their features float32 [n, d] beside the corpus."""
    pixels, boxes = block_pixels(block)
    batches = []
    for at in range(0, len(pixels), batch_size):
        batch = slice(at, at + batch_size)
        batches.append(compute(pixels[batch], boxes[batch]))
        beat(len(batches[-1]))
    put_array(block.store, block.key, np.concatenate(batches).astype(np.float32))


def _paired(run: Run, wanted: dict[str, list[ImageBlock]]) -> Arms:
    """Features of the chosen images, so that row i of each arm has the same seed."""
    chosen = chosen_indices(run, wanted)
    return {arm: _arm_features(blocks, chosen) for arm, blocks in wanted.items()}


def chosen_indices(run: Run, wanted: dict[str, list[ImageBlock]]) -> dict[str, list[int]]:
    """class -> indices of the images that every arm has, in the random order of by_chance.

    An image that is quarantined in one arm is left out of all, so that the arms stay paired.
    """
    names: set[str] = set()
    for blocks in wanted.values():
        names.update(map(class_of, blocks))
    chosen: dict[str, list[int]] = {}
    for name in sorted(names):
        in_all = np.ones(compared_images(run.config), bool)
        for blocks in wanted.values():
            in_arm = np.zeros_like(in_all)
            for block in blocks:
                if class_of(block) == name:
                    indices = np.fromiter(rows_of(block), np.int64)
                    in_arm[indices[indices < len(in_arm)]] = True
            in_all &= in_arm
        # No figure uses more images than this, so no more are read into memory.
        real = sum(image.class_name == name for image in run.dataset.split("all"))
        chosen[name] = by_chance(name, np.flatnonzero(in_all).tolist(), MOST_REPLICATES * real)
    return chosen


def _arm_features(blocks: list[ImageBlock], chosen: dict[str, list[int]]) -> ClassFeatures:
    """class -> features of the chosen indices, in their order; one block in memory at a time."""
    features: ClassFeatures = {}
    for name, indices in chosen.items():
        position = {index: i for i, index in enumerate(indices)}
        for block in blocks:
            if class_of(block) != name:
                continue
            rows, positions = [], []
            for index, row in rows_of(block).items():
                if index in position:
                    rows.append(row)
                    positions.append(position[index])
            if not rows:
                continue  # so that no object is read for nothing
            stored = load_array(block.store, block.key)
            if name not in features:
                features[name] = np.empty((len(indices), stored.shape[1]), stored.dtype)
            features[name][positions] = stored[rows]
    return features


def _real_images(run: Run, extractor: str) -> RealFeatures:
    features = of_real_images(run, lambda key, _: load_array(run.store, key), extractor)
    return RealFeatures(features, real_units(run), extractor, run.dataset.frame, run.dataset.size)


def real_units(run: Run) -> dict[str, ClassFeatures]:
    """split -> class -> labels [n] of independent draws, in the order of _real_images."""
    return of_real_images(run, lambda _, images: [image.unit for image in images])


def of_real_images(
    run: Run, values: Callable[[str, Sequence[SourceImage]], np.ndarray | list[Any]], extractor: str = ""
) -> dict[str, ClassFeatures]:
    """split -> class -> values(key of the features, images) of all real images [n, ...].

    In the order of real_blocks, so what two calls return belongs together row by row.
    """
    parts: dict[str, dict[str, list[np.ndarray]]] = {split: {} for split in SPLITS}
    for key, split, name, images in real_blocks(run, extractor):
        parts[split].setdefault(name, []).append(np.asarray(values(key, images)))
    joined: dict[str, ClassFeatures] = {}
    for split, by_class in parts.items():
        joined[split] = {name: np.concatenate(arrays) for name, arrays in by_class.items()}
    return joined
