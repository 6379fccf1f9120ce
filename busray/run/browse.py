"""A run's images one by one, for people who look at them: from records and shards, no models.

Nothing is written. Few requests: one listing of a corpus, the records of the shards that are shown,
and the shards themselves, of which the last ones are kept.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from busray.corpus.arms import corpora
from busray.corpus.commit import committed_shards, read_commit, read_named, read_rows, rejected_first_draws
from busray.corpus.damage import array_of
from busray.corpus.encode import png_bytes
from busray.data.images import ImageFolder
from busray.identity import index_of
from busray.layout import copies_key
from busray.records import Commit, Shard, UserError, json_object
from busray.storage import Store

RELEASED, QUARANTINED, REJECTED = "released", "quarantined", "rejected"
"""Verdicts: given out; planned but not usable; a first draw that the class gate rejected."""
VERDICTS = (RELEASED, QUARANTINED, REJECTED)
FINAL, TXT2IMG = "image", "image_txt2img"
"""Stages of an image, by the column that has it: as it is given out, before refinement."""
SHARDS_KEPT = 4  # shards in memory: pictures of one page are of the same few shards
RECORDS_A_PAGE = 200  # most records that are read for a page: few images may have the verdict


@dataclass(frozen=True)
class Item:
    """An image of the gallery."""

    class_name: str
    index: int
    verdict: str
    image_id: str = ""  # known of quarantined images; the others have it in their shard
    reason: str = ""  # of quarantine


@dataclass(frozen=True)
class ItemsPage:
    """Some images, and where the next ones begin: (number of the shard, item in it) or None."""

    items: tuple[Item, ...]
    following: tuple[int, int] | None


@dataclass(frozen=True)
class Nearest:
    """What the stored copy audit found for an image. Higher scores are nearer; of `features` it is
    a distance."""

    kind: str  # `image`, `lesion` or `features`
    score: float
    number: int  # of the training image in the data set's order


class Browser:
    """The images of a run. corpus: a key of `corpora`: `` for the released one, `arms/base`."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.corpora = corpora(store)
        self._rows = lru_cache(maxsize=SHARDS_KEPT)(self._read_rows)

    def items(self, corpus: str, class_name: str, verdict: str, start: tuple[int, int], most: int) -> ItemsPage:
        """At most `most` images with this verdict, of one class or of all where it is empty."""
        store = self.corpora[corpus]
        done = [shard for shard in committed_shards(store) if class_name in ("", shard.class_name)]
        items: list[Item] = []
        for number in range(start[0], len(done)):
            of_shard = list(_items_of(read_commit(store, done[number]), verdict))
            skipped = start[1] if number == start[0] else 0
            room = most - len(items)
            items += of_shard[skipped : skipped + room]
            if skipped + room < len(of_shard):
                return ItemsPage(tuple(items), (number, skipped + room))
            if (len(items) == most or number - start[0] + 1 >= RECORDS_A_PAGE) and number + 1 < len(done):
                return ItemsPage(tuple(items), (number + 1, 0))
        return ItemsPage(tuple(items), None)

    def commit_of(self, corpus: str, class_name: str, index: int) -> Commit | None:
        """The record of the shard that this image belongs to; None where it is not committed."""
        store = self.corpora[corpus]
        for shard in committed_shards(store):
            if shard.class_name == class_name and shard.first <= index < shard.first + shard.count:
                return read_commit(store, shard)
        return None

    def row(self, corpus: str, class_name: str, index: int, verdict: str) -> dict[str, Any] | None:
        """An image's columns and PNG bytes; None where there is none, as of a quarantined one."""
        commit = self.commit_of(corpus, class_name, index)
        if commit is None:
            return None
        return self._rows(corpus, commit.shard, verdict).get(index)

    def _read_rows(self, corpus: str, shard: Shard, verdict: str) -> dict[int, dict[str, Any]]:
        """index -> row, of a shard or of its rejected first draws."""
        store = self.corpora[corpus]
        commit: Commit | None = read_commit(store, shard)
        if verdict == REJECTED:
            commit = rejected_first_draws(commit)
        return {row["index"]: row for row in read_rows(store, commit).to_pylist()} if commit else {}

    def provenance(self, corpus: str, commit: Commit) -> dict[str, Any]:
        """What a shard says of how it was made."""
        data = read_named(self.corpora[corpus], commit.object, commit.digest, "its commit")
        if commit.object.endswith(".parquet"):
            return json_object((pq.read_schema(io.BytesIO(data)).metadata or {}).get(b"busray", b"{}"))
        return json_object(data.split(b"\n", 1)[0]).get("busray", {})

    def nearest(self, corpus: str, commit: Commit, index: int) -> list[Nearest]:
        """From the stored copy audit of this shard, the newest one; empty where there is none."""
        if corpus:
            return []  # the audit looks at what is given out
        keys = {copies_key(identity, commit.digest) for identity in self.store.folders("copies")}
        times = self.store.modified("copies") if keys else {}
        stored = sorted((key for key in keys if key in times), key=lambda key: times[key] or 0.0)
        if not stored:
            return []
        rows = array_of(self.store.read_checked(stored[-1]))
        for row in rows[rows["index"] == index]:
            return _nearest_of(row)
        return []


def _items_of(commit: Commit, verdict: str) -> Iterator[Item]:
    rejects = {index_of(image_id): (image_id, reason) for image_id, reason in commit.rejects}
    if verdict == QUARANTINED:
        for index, (image_id, reason) in sorted(rejects.items()):
            yield Item(commit.class_name, index, verdict, image_id, reason)
    elif verdict == REJECTED:
        for index in commit.first_draws.indices if commit.first_draws else ():
            yield Item(commit.class_name, index, verdict)
    else:
        for index in range(commit.first, commit.first + commit.count):
            if index not in rejects:
                yield Item(commit.class_name, index, verdict)


def _nearest_of(row: np.void) -> list[Nearest]:
    found = [Nearest(kind, float(row[f"{kind}_score"]), int(row[f"{kind}_of"])) for kind in ("image", "lesion")]
    found = [nearest for nearest in found if nearest.score > 0 and nearest.number >= 0]
    if row["nearest"] >= 0:
        found.append(Nearest("features", float(row["distance"]), int(row["nearest"])))
    return found


def training_png(folder: ImageFolder, number: int) -> bytes | None:
    """A training image as the model saw it; None where its file is not here or has changed."""
    try:
        (pixels,) = folder.load([folder.dataset.train[number]]).pixels
    except (OSError, UserError):
        return None
    return png_bytes(pixels, {})
