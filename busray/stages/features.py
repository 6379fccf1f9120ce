"""Features of every arm and of the real images. They are extracted once per shard and stored.

Row i of every arm was drawn from the same seed, and arms are compared row by row. So a seed that is
easy or hard for all arms does not change their differences.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from busray.corpus.arms import Source, compared_images
from busray.corpus.commit import in_threads
from busray.corpus.features import compute, put_array
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
    real_blocks,
    rows_of,
    synthetic_blocks,
    with_extractor,
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
SameImages = dict[str, ImageBlock]
"""Extractor -> block of the same images: each names where its features are stored."""


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


def extract_missing(run: Run, workers: Workers, sources: Sequence[dict[str, Source]]) -> None:
    """Extract what `features` will read of these arms and of the real images, by all extractors:
    images that several extractors have not measured are read and decoded once."""
    missing: dict[tuple[str, str, str], SameImages] = {}
    for arms in sources:
        blocks: list[ImageBlock] = []
        for parts in _chosen_rows(run, synthetic_blocks(run, arms, "")).values():
            blocks += [part.block for part in parts]
        for name in run.extractors:
            for block in not_stored([with_extractor(block, name) for block in blocks]):
                assert block.commit is not None
                images = (block.store.url, block.commit.digest, block.column)
                missing.setdefault(images, {})[name] = block
    _extract(run, workers, [*missing.values(), *_missing_real(run, workers, [*run.extractors])])


def missing_real_blocks(run: Run, workers: Workers, extractor: str) -> list[ImageBlock]:
    """The blocks of real images whose features are not stored, with their pixels."""
    return [blocks[extractor] for blocks in _missing_real(run, workers, [extractor])]


def _missing_real(run: Run, workers: Workers, extractors: Sequence[str]) -> list[SameImages]:
    """The real images that an extractor has not measured, with their pixels."""
    wanted = [real_blocks(run, extractor) for extractor in extractors]
    keys = [block.key for blocks in wanted for block in blocks]
    stored, missing = run.store.present(keys), []
    for same_images in zip(*wanted, strict=True):
        new = [
            (name, block.key) for name, block in zip(extractors, same_images, strict=True) if block.key not in stored
        ]
        if new:
            images = same_images[0].images
            loaded = run.images.load(images)
            pixels = workers.share(loaded.pixels)
            blocks: SameImages = {}
            for name, key in new:
                blocks[name] = ImageBlock(run.store, key, pixels=pixels, boxes=loaded.boxes, images=len(images))
            missing.append(blocks)
    return missing


def extract(run: Run, workers: Workers, blocks: list[ImageBlock], name: str) -> None:
    """Compute and store the blocks' features by the extractor of this name."""
    _extract(run, workers, [{name: block} for block in blocks])


def _extract(run: Run, workers: Workers, items: Sequence[SameImages]) -> None:
    """One pool of workers for the images that the same extractors have not measured."""
    by_extractors: dict[tuple[str, ...], list[SameImages]] = {}
    for item in items:
        by_extractors.setdefault(tuple(item), []).append(item)
    for names, same in by_extractors.items():
        extractors = [run.extractors[name] for name in names]
        kind = _kind(extractors)
        device = workers.device if kind == "model" else "cpu"
        start = partial(_start_extracting, extractors, device, run.config.evaluate.batch_size)
        images = sum(next(iter(item.values())).images for item in same)
        stage = "features" if INCEPTION in names else f"features {', '.join(names)}"
        workers.map(stage, images, start, same, kind)


def _kind(extractors: Sequence[Extractor]) -> Kind:
    """The workers that these extractors need together."""
    weights = [extractor.weights for extractor in extractors if extractor.weights is not None]
    if not weights:
        return "core"  # plain arithmetic on one thread, so there is a worker a core
    if all(isinstance(one, Segmenter | Classifier) for one in weights):
        return "cpu"  # a small network that was trained on CPUs
    return "model"


def _start_extracting(
    extractors: Sequence[Extractor], device: str, batch_size: int
) -> Callable[[SameImages, Beat], None]:
    loaded = {extractor.name: extractor.load(device) for extractor in extractors}
    return partial(_extract_block, loaded, batch_size)


def _extract_block(extractors: dict[str, Features], batch_size: int, blocks: SameImages, beat: Beat) -> None:
    """Read images once and put their features float32 [n, d], by each extractor, in the store."""
    pixels, boxes = block_pixels(next(iter(blocks.values())))
    *_, last = blocks
    for name, block in blocks.items():
        # An image counts when the last extractor has measured it
        counted: Beat = beat if name == last else lambda n=0: beat()
        put_array(block.store, block.key, compute(extractors[name], pixels, boxes, batch_size, counted))


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
