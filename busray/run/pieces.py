"""Blocks of a run's images. The features of a block are one stored object.

So a block is the unit of work and of retry: one that is stored is never computed again.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from busray.corpus.arms import Source, compared_images
from busray.corpus.commit import committed_shards, each_commit, read_rows, rejected_first_draws
from busray.corpus.damage import array_of
from busray.corpus.encode import png_pixels
from busray.data.split import SPLITS
from busray.identity import bottom_k, draw_id, fingerprint, index_of
from busray.layout import features_key
from busray.records import Commit, ContentBox, SourceImage
from busray.run.record import Run
from busray.storage import FEW_KEYS, Store, in_threads
from busray.workers import Shared

REAL_IMAGES_A_BLOCK = 128
BOX = ["left", "top", "width", "height"]  # a shard's columns of the content box


@dataclass(frozen=True)
class ImageBlock:
    """Images whose features are one stored object: a column of a shard, or real images."""

    store: Store
    key: str  # of the features
    commit: Commit | None = None  # of the shard; None for real images
    column: str = "image"
    pixels: Shared[np.ndarray] | None = None  # of real images, uint8 [n, h, w]
    # Of real images: where their content lies. A shard has it in its columns.
    boxes: tuple[ContentBox, ...] = ()
    images: int = 0
    class_name: str = ""  # of real images that make an arm; a shard names its own
    first_draws: bool = False  # take only the shard's rows that no class gate had drawn again


class RealBlock(NamedTuple):
    """Real images of one split and class whose features are stored under one key."""

    key: str
    split: str
    class_name: str
    images: tuple[SourceImage, ...]


def synthetic_blocks(run: Run, sources: dict[str, Source], extractor: str) -> dict[str, list[ImageBlock]]:
    """arm -> the shards that hold the first `compared_images` images of each class."""
    limits = compared_images(run.config, run.dataset)
    blocks: dict[str, list[ImageBlock]] = {}
    for arm, source in sources.items():
        store = run.store.sub(source.prefix) if source.prefix else run.store
        # Figures look at no later images, so records of later shards are not read.
        compared = [shard for shard in committed_shards(store) if shard.first < limits.get(shard.class_name, 0)]
        blocks[arm] = []
        for commit in each_commit(store, compared):
            blocks[arm] += _shard_blocks(store, commit, source, extractor)
    return blocks


def with_extractor(block: ImageBlock, extractor: str) -> ImageBlock:
    """The same images of a shard, for the features of another extractor."""
    assert block.commit is not None
    return replace(block, key=features_key(block.commit.digest, block.column, extractor))


def _shard_blocks(store: Store, commit: Commit, source: Source, extractor: str) -> list[ImageBlock]:
    """A shard's block; for first draws a second one, of those that the class gate rejected."""
    column, first_draws = source.column, source.first_draws
    rejected = rejected_first_draws(commit) if first_draws else None
    blocks = []
    for part in (commit, rejected):
        if part is not None and part.rows:
            key = features_key(part.digest, column, extractor)
            blocks.append(ImageBlock(store, key, part, column, images=part.rows, first_draws=first_draws))
    return blocks


def real_blocks(run: Run, extractor: str) -> list[RealBlock]:
    """The blocks of all real images, by split, class and the data set's order."""
    # The key follows from the framed pixels alone: the same for equal images of another run.
    size, framing = run.dataset.size, run.dataset.frame
    blocks = []
    for split in SPLITS:
        for name in run.config.classes:
            images = [image for image in run.dataset.split(split) if image.class_name == name]
            for at in range(0, len(images), REAL_IMAGES_A_BLOCK):
                block = tuple(images[at : at + REAL_IMAGES_A_BLOCK])
                content = fingerprint([size, framing, [image.sha256 for image in block]])
                key = features_key(content, f"real-{split}-{name}", extractor)
                blocks.append(RealBlock(key, split, name, block))
    return blocks


def block_pixels(block: ImageBlock, most: int | None = None) -> tuple[np.ndarray, Sequence[ContentBox]]:
    """A block's images uint8 [n, h, w], and where the content of each lies; the first `most`."""
    if block.commit is None:
        assert block.pixels is not None
        return block.pixels.get()[:most], block.boxes[:most]
    table = read_rows(block.store, block.commit, columns=[block.column, *BOX]).slice(0, most)
    pixels = np.stack([png_pixels(cell["bytes"]) for cell in table.column(block.column).to_pylist()])
    return pixels, [ContentBox(**row) for row in table.select(BOX).to_pylist()]


def not_stored(blocks: Iterable[ImageBlock]) -> list[ImageBlock]:
    """The blocks whose features are not stored. Two arms may read one object: it is named once."""
    by_store: dict[str, dict[str, ImageBlock]] = {}
    for block in blocks:
        by_store.setdefault(block.store.url, {})[block.key] = block
    missing: list[ImageBlock] = []
    for by_key in by_store.values():
        store = next(iter(by_key.values())).store
        stored = store.present(by_key)
        missing += [block for key, block in by_key.items() if key not in stored]
    return missing


def load_array(store: Store, key: str) -> np.ndarray:
    """Features are float32 [n, d]. Damaged where the object is not what put_array stored."""
    return store.parsed(key, store.read_checked(key), array_of)


def load_arrays(store: Store, keys: Sequence[str]) -> Iterator[np.ndarray]:
    """load_array of each key, in order: many requests at once, few arrays in memory at a time.

    Their digests are listed, and not asked for one by one, where there are many in a folder.
    """
    folders: dict[str, int] = {}
    for key in keys:
        folder = key.rpartition("/")[0]
        folders[folder] = folders.get(folder, 0) + 1
    known: dict[str, set[str]] | None = None
    for folder, wanted in folders.items():
        if wanted > FEW_KEYS:
            known = (known or {}) | store.digests_below(folder)
    yield from in_threads(lambda key: store.parsed(key, store.read_checked(key, known), array_of), keys)


def by_chance(class_name: str, indices: Iterable[int], k: int) -> list[int]:
    """k of a class's images in a random order, the same in each arm and for any size of shards."""
    return bottom_k(indices, k, lambda index: draw_id(class_name, index))


def class_of(block: ImageBlock) -> str:
    return block.commit.class_name if block.commit else block.class_name


def rows_of(block: ImageBlock) -> dict[int, int]:
    """index -> row of a block's images, from its record alone.

    A shard has rows for images that were not quarantined. Its first draws are the rows that were
    not drawn again, and the rejected ones, which are a block of their own.
    """
    commit = block.commit
    if commit is None:
        return {i: i for i in range(block.images)}
    if commit.first_draws and commit.object == commit.first_draws.object:
        return {index: row for row, index in enumerate(commit.first_draws.indices)}
    quarantined = {index_of(image_id) for image_id, _ in commit.rejects}
    redrawn = {index_of(image.image_id) for image in commit.redrawn} if block.first_draws else set()
    rows: dict[int, int] = {}
    row = 0
    for index in range(commit.first, commit.first + commit.count):
        if index in quarantined:
            continue
        if index not in redrawn:
            rows[index] = row
        row += 1  # a redrawn image has a row too, which is only not among the first draws
    return rows
