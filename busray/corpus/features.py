"""Features of images: computed in batches and stored once, also where the images are drawn.

A shard's features are found by the digest of its object (layout.features_key). With evaluate.inline
the actor that drew a shard computes them from the pixels that it has just written, so that nobody
reads and decodes the shard again.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from busray.config import Config
from busray.corpus.arms import arm_after_gate, arm_sources, compared_images
from busray.corpus.commit import rejected_first_draws
from busray.corpus.encode import Row
from busray.layout import arm_prefix, features_key
from busray.records import Commit, ContentBox, DataSet
from busray.storage import Store
from busray.vision.extractors import Extractor, Features
from busray.workers import Beat


def compute(
    extract: Features, images: np.ndarray, boxes: Sequence[ContentBox], batch_size: int, beat: Beat
) -> np.ndarray:
    """Features float32 [n, d] of images uint8 [n, h, w]; beat(images) after each batch."""
    batches: list[np.ndarray] = []
    for at in range(0, len(images), batch_size):
        batch = slice(at, at + batch_size)
        batches.append(extract(images[batch], boxes[batch]))
        beat(len(batches[-1]))
    return np.concatenate(batches).astype(np.float32)


def put_array(store: Store, key: str, array: np.ndarray) -> None:
    """Store an array under a key, with its digest; where one is there already, that one stays."""
    buffer = io.BytesIO()
    # Without pickle: reading an object of a shared store must not be able to run code.
    np.save(buffer, array, allow_pickle=False)
    store.put_checked(key, buffer.getvalue())


@dataclass(frozen=True)
class InlineFeatures:
    """What the actors of one corpus measure of the shards that they draw."""

    extractors: tuple[Extractor, ...]
    batch_size: int
    # Column of images -> class -> so many images of the lowest indices are measured
    columns: Mapping[str, Mapping[str, int]]

    def load(self, device: str) -> None:
        """Load the extractors into this process, so that what cannot be loaded ends its start."""
        for extractor in self.extractors:
            _loaded(extractor, device)

    def put(
        self, store: Store, commit: Commit, rows: Sequence[Row], first_draws: Sequence[Row], device: str, beat: Beat
    ) -> None:
        """Compute and store what the separate stage would of a shard: the same bytes.

        rows, first_draws: what was handed to commit_shard. Rows that did not encode are not among
        what was written; the separate stage measures such a shard.
        """
        for part, written in ((commit, rows), (rejected_first_draws(commit), first_draws)):
            if part is None or not part.rows or len(written) != part.rows:
                continue
            boxes = [row.spec.box for row in written]
            for column in self._columns_of(commit):
                images = np.stack([_pixels(row, column) for row in written])
                for extractor in self.extractors:
                    key = features_key(part.digest, column, extractor.name)
                    if not store.exists(key):
                        features = compute(_loaded(extractor, device), images, boxes, self.batch_size, beat)
                        put_array(store, key, features)

    def _columns_of(self, commit: Commit) -> list[str]:
        """The columns that are measured of this shard."""
        return [column for column, images in self.columns.items() if commit.first < images.get(commit.class_name, 0)]


def inline_features(
    config: Config, dataset: DataSet, extractors: Mapping[str, Extractor], arm: str | None
) -> InlineFeatures | None:
    """What is measured where an arm's corpus (None: the released one) is drawn: the images that the
    figures look at, or all with evaluate.whole_corpus. None without evaluate.inline, and for a
    command that draws no shard (`extractors` is then empty)."""
    if not config.evaluate.inline or not extractors:
        return None
    prefix = arm_prefix(arm) if arm else ""
    compared = compared_images(config, dataset)
    columns: dict[str, Mapping[str, int]] = {}
    for source in arm_sources(config).values():
        if source.prefix == prefix:
            columns[source.column] = compared
    if not arm and arm_after_gate(config):
        columns["image"] = compared
    if not arm and config.evaluate.whole_corpus:
        columns["image"] = {name: settings.images for name, settings in config.classes.items()}
    if not columns:
        return None
    return InlineFeatures(tuple(extractors.values()), config.evaluate.batch_size, columns)


def _pixels(row: Row, column: str) -> np.ndarray:
    """uint8 [h, w] of a column of images."""
    pixels = row.image if column == "image" else row.txt2img
    assert pixels is not None
    return pixels


@cache
def _loaded(extractor: Extractor, device: str) -> Features:
    """Once a process, though it may draw several corpora one after the other."""
    return extractor.load(device)
