"""The Frechet distance of all images of the released corpus, by evaluate.whole_corpus.

Features stay where they are: a worker reads those of some shards and hands on their moments. Other
workers merge these in a tree. The driver gets the moments of each class and those of all together.
So no memory grows with the corpus, but for the names of its shards on the driver.

What is stored, and why. Moments of 2,048 features take 16.8 MB, the features of a shard of 256
images 2 MB: moments of each shard would cost eight times what they summarise. So the shards of a
class are cut into blocks of BLOCK_IMAGES, in their order, and a full block's moments are kept: an
eighth of the bytes of its features. Their key is a fingerprint of the shards' digests. A corpus
grows at its end, so its full blocks stay what they are, and only new shards are read. The last
block of a class is not full. Its moments are computed each time and not kept, since the next images
would change it, and no object would ever use it again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np

from busray.corpus.arms import arm_after_gate, released_arm
from busray.corpus.commit import in_threads, read_commit
from busray.corpus.damage import array_of
from busray.corpus.features import put_array
from busray.corpus.manifest import published_rows
from busray.evidence.distances import whole_corpus_figures
from busray.evidence.stats.frechet import Moments
from busray.identity import fingerprint
from busray.layout import features_key, moments_key
from busray.records import CLASS_ALL, Figure, Shard
from busray.run.pieces import ImageBlock, load_array
from busray.run.record import Run
from busray.stages.features import extract, missing_real_blocks, real_features
from busray.storage import Store
from busray.vision import texture
from busray.workers import Beat, Shared, Work, Workers

BLOCK_IMAGES = 16_384
"""Images of a full block: eight times as many as Inception has features."""
MERGED_AT_ONCE = 8
"""Moments that one worker merges, one after the other."""
READERS = 4  # objects of features that a worker reads at once
COLUMN = "image"


@dataclass(frozen=True)
class MomentsBlock:
    """Shards of a class whose moments are computed together."""

    store: Store
    key: str  # of the moments; empty where they are not kept
    features: tuple[str, ...]  # keys of the shards' features
    class_name: str
    images: int


Node = MomentsBlock | Shared[np.ndarray]
"""Moments on their way to the driver: yet to be read, or packed with a worker."""


def whole_corpus_stage(extractor: str) -> str:
    """The name under which its seconds are in timings.json."""
    return f"whole corpus {extractor}"


def evaluate_whole_corpus(run: Run, workers: Workers, extractor: str) -> list[Figure]:
    """The Frechet distance (FID by Inception) of all images of each class, and of all together.

    Of the images that are given out: after the class gate, where there is one.
    """
    if missing := missing_real_blocks(run, workers, extractor):
        extract(run, workers, missing, extractor)
    real = real_features(run, extractor)
    blocks = released_blocks(run.store, extractor)
    _extract_missing(run, workers, blocks, extractor)
    moments = moments_of_all(workers, blocks)
    if not moments:
        return []
    if extractor == texture.NAME:
        centre, scale = texture.scale_of(real.features)
        moments = {name: of_class.scaled(centre, scale) for name, of_class in moments.items()}
        real = replace(real, features=texture.standardised({}, real.features)[1])
    arm = arm_after_gate(run.config) or released_arm(run.config)
    return whole_corpus_figures(moments, real, run.config.evaluate.reference, arm)


def released_blocks(store: Store, extractor: str) -> list[MomentsBlock]:
    """All shards of the released corpus as the manifest has them, in blocks of one class."""
    digests: dict[str, list[tuple[str, int]]] = {}
    for shard, row in published_rows(store).items():
        if row["rows"]:
            digests.setdefault(shard.class_name, []).append((row["digest"], row["rows"]))
    blocks: list[MomentsBlock] = []
    for name, of_class in digests.items():
        blocks += moments_blocks(store, extractor, name, of_class)
    return blocks


def moments_blocks(
    store: Store, extractor: str, class_name: str, shards: Sequence[tuple[str, int]]
) -> list[MomentsBlock]:
    """The blocks of a class's shards (digest, images), which are in the order of their images.

    A block is full as soon as it has BLOCK_IMAGES. The last one may not be: it has no key.
    """
    blocks: list[MomentsBlock] = []
    waiting: list[str] = []
    images = 0
    for number, (digest, rows) in enumerate(shards, 1):
        waiting.append(digest)
        images += rows
        full = images >= BLOCK_IMAGES
        if full or number == len(shards):
            key = moments_key(fingerprint(waiting), COLUMN, extractor) if full else ""
            features = tuple(features_key(shard, COLUMN, extractor) for shard in waiting)
            blocks.append(MomentsBlock(store, key, features, class_name, images))
            waiting, images = [], 0
    return blocks


def _extract_missing(run: Run, workers: Workers, blocks: Sequence[MomentsBlock], extractor: str) -> None:
    """Features of the shards of those blocks that have no moments yet."""
    wanted: list[str] = []
    for block in _not_computed(run.store, blocks):
        wanted += block.features
    missing = set(wanted) - run.store.present(wanted)
    shards: list[Shard] = []
    for shard, row in published_rows(run.store).items() if missing else ():
        if features_key(row["digest"], COLUMN, extractor) in missing:
            shards.append(shard)
    to_extract = []
    for commit in in_threads(partial(read_commit, run.store), shards):
        key = features_key(commit.digest, COLUMN, extractor)
        to_extract.append(ImageBlock(run.store, key, commit, COLUMN, images=commit.rows))
    if to_extract:
        extract(run, workers, to_extract, extractor)


def _not_computed(store: Store, blocks: Sequence[MomentsBlock]) -> list[MomentsBlock]:
    """The blocks whose moments are not stored: also those whose moments are never kept."""
    stored = store.present(block.key for block in blocks if block.key)
    return [block for block in blocks if block.key not in stored]


def moments_of_all(workers: Workers, blocks: Sequence[MomentsBlock]) -> dict[str, Moments]:
    """class -> moments of all its images, and of all classes together under CLASS_ALL.

    Moments that are to be kept are computed and put first, so that a stopped command loses little.
    Nothing for no blocks.
    """
    if not blocks:
        return {}
    to_keep = [block for block in _not_computed(blocks[0].store, blocks) if block.key]
    workers.map("moments", sum(block.images for block in to_keep), _start_keeping, to_keep, "core")
    nodes: dict[str, list[Node]] = {}
    for block in blocks:
        nodes.setdefault(block.class_name, []).append(block)
    merged = _merged(workers, nodes)
    everything: list[Node] = [*merged.values()]
    whole = _merged(workers, {CLASS_ALL: everything})
    return {name: Moments.unpacked(packed.get()) for name, packed in {**merged, **whole}.items()}


def _start_keeping() -> Work:
    return _keep_moments


def _keep_moments(block: MomentsBlock, beat: Beat) -> None:
    moments = Moments.of_parts(_features(block, beat, counted=True))
    put_array(block.store, block.key, moments.packed())


def _features(block: MomentsBlock, beat: Beat, *, counted: bool) -> Iterator[np.ndarray]:
    """The stored features of a block's shards, READERS of them in memory."""
    for at in range(0, len(block.features), READERS):
        keys = block.features[at : at + READERS]
        for rows in in_threads(partial(load_array, block.store), keys, READERS):
            yield rows
            beat(len(rows) if counted else 0)


def _merged(workers: Workers, nodes: Mapping[str, Sequence[Node]]) -> dict[str, Shared[np.ndarray]]:
    """class -> its moments, packed: MERGED_AT_ONCE nodes by one worker, then what these left."""
    done: dict[str, Shared[np.ndarray]] = {}
    left = dict(nodes)
    while left:
        groups: list[tuple[Node, ...]] = []
        owners: list[str] = []
        for name, of_class in left.items():
            for at in range(0, len(of_class), MERGED_AT_ONCE):
                groups.append(tuple(of_class[at : at + MERGED_AT_ONCE]))
                owners.append(name)
        results = workers.call_all("moments merged", sum(map(len, groups)), _merge, groups)
        above: dict[str, list[Node]] = {}
        for name, result in zip(owners, results, strict=True):
            above.setdefault(name, []).append(result)
        left = {}
        for name, of_class in above.items():
            if len(of_class) == 1:
                done[name] = cast(Shared[np.ndarray], of_class[0])
            else:
                left[name] = of_class
    return {name: done[name] for name in nodes}


def _merge(beat: Beat, nodes: Sequence[Node]) -> np.ndarray:
    return Moments.merged(_each(nodes, beat)).packed()


def _each(nodes: Sequence[Node], beat: Beat) -> Iterator[Moments]:
    """The moments of the nodes, one after the other."""
    for node in nodes:
        if not isinstance(node, MomentsBlock):
            yield Moments.unpacked(node.get())
        elif node.key:
            yield load_moments(node.store, node.key)
        else:
            yield Moments.of_parts(_features(node, beat, counted=False))
        beat(1)


def load_moments(store: Store, key: str) -> Moments:
    """Moments that were kept. Damaged where the object is not what was put."""
    return store.parsed(key, store.read_checked(key), lambda data: Moments.unpacked(array_of(data)))
