"""Features of every arm and of the real images. They are extracted once per shard and stored.

Row i of every arm was drawn from the same seed, and arms are compared row by row. So a seed that is
easy or hard for all arms does not change their differences.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from busray.corpus.arms import compared_images
from busray.corpus.commit import in_threads
from busray.data.split import SPLITS
from busray.evidence.real import RealFeatures
from busray.records import INCEPTION, MOST_REPLICATES, SourceImage
from busray.run.pieces import (
    ImageBlock,
    block_pixels,
    by_chance,
    class_of,
    load_array,
    not_stored,
    put_array,
    real_blocks,
    rows_of,
)
from busray.run.record import Run
from busray.vision import texture
from busray.vision.classifier import Classifier
from busray.vision.extractors import Extractor, Features
from busray.vision.segmenter import Segmenter
from busray.workers import Beat, Kind, Workers

READERS = 8  # objects of features that are read at once
ClassFeatures = dict[str, np.ndarray]  # class -> features [n, d]
Arms = dict[str, ClassFeatures]  # by arm


@dataclass(frozen=True)
class _Chosen:
    """Images of a block that figures look at."""

    block: ImageBlock
    rows: list[int]  # of the block's features
    positions: list[int]  # of the same images among all that are chosen of their class


def features(
    run: Run, workers: Workers, wanted: dict[str, list[ImageBlock]], extractor: str
) -> tuple[Arms, RealFeatures]:
    """(features of the arms, features of the real images); what is not stored is extracted first.

    wanted: arm -> its blocks, of this run or of others with the same seeds. Row i of each arm has
    the same seed, and the order is random. The images are chosen before anything is read, and a
    block with none of them is neither extracted nor read. Memory: at most MOST_REPLICATES x (number
    of real images) rows per arm, however large the corpus is.
    """
    chosen = _chosen_rows(run, wanted)
    blocks: list[ImageBlock] = []
    for parts in chosen.values():
        blocks += [part.block for part in parts]
    to_extract = [*not_stored(blocks), *missing_real_blocks(run, workers, extractor)]
    if to_extract:
        extract(run, workers, to_extract, extractor)
    arms = _read_arms(chosen)
    real = real_features(run, extractor)
    if extractor == texture.NAME:
        # Stored as measured, since the scale depends on this run's training images.
        arms, scaled = texture.standardised(arms, real.features)
        real = replace(real, features=scaled)
    return arms, real


def missing_real_blocks(run: Run, workers: Workers, extractor: str) -> list[ImageBlock]:
    """The blocks of real images whose features are not stored, with their pixels."""
    wanted, blocks = real_blocks(run, extractor), []
    stored = run.store.present(block.key for block in wanted)
    for key, _, _, images in wanted:
        if key not in stored:
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


def _chosen_rows(run: Run, wanted: dict[str, list[ImageBlock]]) -> dict[str, list[_Chosen]]:
    """arm -> the blocks that hold chosen images, with the rows of these: from records alone."""
    position: dict[str, dict[int, int]] = {}
    for name, indices in chosen_indices(run, wanted).items():
        position[name] = {index: i for i, index in enumerate(indices)}
    chosen: dict[str, list[_Chosen]] = {}
    for arm, blocks in wanted.items():
        chosen[arm] = []
        for block in blocks:
            rows, positions = [], []
            for index, row in rows_of(block).items():
                if index in position[class_of(block)]:
                    rows.append(row)
                    positions.append(position[class_of(block)][index])
            if rows:
                chosen[arm].append(_Chosen(block, rows, positions))
    return chosen


def chosen_indices(run: Run, wanted: dict[str, list[ImageBlock]]) -> dict[str, list[int]]:
    """class -> indices of the images that every arm has, in the random order of by_chance.

    An image that is quarantined in one arm is left out of all, so that the arms stay paired.
    """
    names: set[str] = set()
    for blocks in wanted.values():
        names.update(map(class_of, blocks))
    limits = compared_images(run.config, run.dataset)
    chosen: dict[str, list[int]] = {}
    for name in sorted(names):
        in_all = np.ones(limits[name], bool)
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


def _read_arms(chosen: dict[str, list[_Chosen]]) -> Arms:
    """Features of the chosen images. Row i of each arm has the same seed."""
    return {arm: _arm_features(parts) for arm, parts in chosen.items()}


def _arm_features(parts: list[_Chosen]) -> ClassFeatures:
    """class -> features of the chosen images, in their order; READERS blocks in memory at once."""
    images: dict[str, int] = {}
    for part in parts:
        name = class_of(part.block)
        images[name] = images.get(name, 0) + len(part.rows)
    features: ClassFeatures = {}
    for part, rows in zip(parts, in_threads(_read_rows, parts, READERS), strict=True):
        name = class_of(part.block)
        if name not in features:
            features[name] = np.empty((images[name], rows.shape[1]), rows.dtype)
        features[name][part.positions] = rows
    return {name: features[name] for name in sorted(features)}


def _read_rows(part: _Chosen) -> np.ndarray:
    return load_array(part.block.store, part.block.key)[part.rows]


def real_features(run: Run, extractor: str) -> RealFeatures:
    """The stored features of all real images, as they were measured."""
    keys = [block.key for block in real_blocks(run, extractor)]
    stored = dict(zip(keys, in_threads(partial(load_array, run.store), keys, READERS), strict=True))
    features = of_real_images(run, lambda key, _: stored[key], extractor)
    return RealFeatures(features, real_units(run), extractor, run.dataset.frame, run.dataset.size)


def feature_bytes(run: Run, extractor: str) -> int:
    """Bytes of an image's features, as those of the real images have them."""
    array = load_array(run.store, real_blocks(run, extractor)[0].key)
    return array.itemsize * array.shape[1]


def real_units(run: Run) -> dict[str, ClassFeatures]:
    """split -> class -> labels [n] of independent draws, in the order of real_features."""
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
