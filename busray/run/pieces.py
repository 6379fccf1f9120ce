"""Images of a run in portions whose features are one stored object."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.data

from busray.corpus.arms import Source, compared_images
from busray.corpus.commit import (
    committed_shards,
    in_threads,
    read_commit,
    read_rows,
    rejected_first_draws,
)
from busray.corpus.encode import png_pixels
from busray.data.split import SPLITS
from busray.identity import bottom_k, draw_id, fingerprint, index_of
from busray.layout import features_key
from busray.records import Box, Commit
from busray.run.record import Run
from busray.storage import Store

BLOCK = 128
"""Real images a block of features."""


BOX = ["left", "top", "width", "height"]
"""A shard's columns of the content box."""


@dataclass(frozen=True)
class Piece:
    """Images whose features are one stored object: a shard's column, or a block of real images."""

    store: Store
    key: str
    commit: Commit | None = None
    column: str = "image"
    pixels: Any = None
    """Object reference to uint8 [n, h, w] of real images."""
    boxes: tuple[Box, ...] = ()
    """Where the content of real images lies; a shard has it in its columns."""
    images: int = 0
    class_name: str = ""
    """Of real images that make an arm; a shard names its own."""
    first_draws: bool = False
    """Only the shard's rows that no class gate had drawn again."""


def synthetic_pieces(run: Run, sources: dict[str, Source], extractor: str) -> dict[str, list[Piece]]:
    """arm -> the shards that hold its first `compared_images` images a class."""
    limit = compared_images(run.config)
    pieces: dict[str, list[Piece]] = {}
    for arm, source in sources.items():
        store = run.store.sub(source.prefix) if source.prefix else run.store
        compared = sorted(
            (shard for shard in committed_shards(store) if shard.first < limit), key=lambda s: (s.class_name, s.first)
        )
        pieces[arm] = []
        for commit in in_threads(partial(read_commit, store), compared):
            rejected = rejected_first_draws(commit) if source.first_draws else None
            for c in (commit, rejected):
                if c is not None and c.rows:
                    key = features_key(c.digest, source.column, extractor)
                    piece = Piece(store, key, c, source.column, images=c.rows, first_draws=source.first_draws)
                    pieces[arm].append(piece)
    return pieces


def real_blocks(run: Run, extractor: str) -> list[tuple[str, str, str, tuple[Any, ...]]]:
    """(key, split, class, images) of each block of real images."""
    blocks = []
    for split in SPLITS:
        for name in run.config.classes:
            images = [image for image in run.dataset.split(split) if image.class_name == name]
            for at in range(0, len(images), BLOCK):
                block = tuple(images[at : at + BLOCK])
                content = fingerprint([run.dataset.size, run.dataset.frame, [image.sha256 for image in block]])
                blocks.append((features_key(content, f"real-{split}-{name}", extractor), split, name, block))
    return blocks


def piece_pixels(piece: Piece) -> tuple[np.ndarray, Sequence[Box]]:
    """A piece's images uint8 [n, h, w] and where the content of each lies."""
    if piece.commit is None:
        return ray.get(piece.pixels), piece.boxes
    table = read_rows(piece.store, piece.commit, columns=[piece.column, *BOX])
    pixels = np.stack([png_pixels(cell["bytes"]) for cell in table.column(piece.column).to_pylist()])
    return pixels, [Box(**row) for row in table.select(BOX).to_pylist()]


def load_features(store: Store, key: str) -> np.ndarray:
    """float32 [n, d]"""
    return np.load(io.BytesIO(store.read(key)), allow_pickle=False)


def by_chance(class_name: str, indices: Iterable[int], k: int) -> list[int]:
    """k of a class's images, in an order by chance that is the same in each arm and however the shards are cut."""
    return bottom_k(indices, k, lambda index: draw_id(class_name, index))


def class_of(piece: Piece) -> str:
    return piece.commit.class_name if piece.commit else piece.class_name


def rows_of(piece: Piece) -> dict[int, int]:
    """index -> row of a piece's images, from its record alone: a shard holds those of its images that were not
    quarantined. Of first draws those count that were not drawn again, and the rejected ones, which are a piece too."""
    commit = piece.commit
    if commit is None:
        return {i: i for i in range(piece.images)}
    if commit.first_draws and commit.object == commit.first_draws.object:
        return {index: row for row, index in enumerate(commit.first_draws.indices)}
    rejects = {index_of(image_id) for image_id, _ in commit.rejects}
    again = {index_of(one.image_id) for one in commit.redrawn} if piece.first_draws else set()
    kept = [index for index in range(commit.first, commit.first + commit.count) if index not in rejects]
    return {index: row for row, index in enumerate(kept) if index not in again}
