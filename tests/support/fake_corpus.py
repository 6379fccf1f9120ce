"""A corpus drawn by arithmetic in place of a model."""

from collections.abc import Mapping

import numpy as np

from busray.corpus.commit import commit_shard, committed_shards
from busray.corpus.encode import Row
from busray.corpus.manifest import publish_manifest
from busray.corpus.plan import extend_plan, pending, shards
from busray.corpus.record import claim_corpus
from busray.identity import image_id
from busray.records import Commit, ContentBox, Execution, ImageSpec, Shard
from busray.storage import Store

EXECUTION = Execution("cpu", "float32", 2, 1, {})
IMAGES = {"benign": 6, "malignant": 4}
FIRST = Shard("benign", 0, 4)


def rows(fingerprint: str, shard: Shard, shade: int = 0) -> list[Row]:
    return [
        Row(
            ImageSpec(
                image_id(fingerprint, shard.class_name, i), shard.class_name, i, 0, "", i, i, ContentBox(0, 0, 8, 8)
            ),
            np.full((8, 8), shade + i, np.uint8),
            np.full((8, 8), 100 + i, np.uint8),
        )
        for i in range(shard.first, shard.first + shard.count)
    ]


def commit(store: Store, shard: Shard, shade: int = 0, format: str = "parquet", rejected: int = 0) -> Commit:
    """A shard whose pixels follow from class, index and shade; its first `rejected` images are
    quarantined."""
    fingerprint = claim_corpus(store, {"seed": 7})
    made = rows(fingerprint, shard, shade)
    rejects = [(row.spec.image_id, "a poisoned prompt") for row in made[:rejected]]
    return commit_shard(
        store, shard, made[rejected:], rejects, {"fingerprint": fingerprint}, EXECUTION, format, seconds=float(shade)
    )


def draw(store: Store, images: Mapping[str, int] = IMAGES, shard_size: int = 4, **how: object) -> str:
    """What `generate` does; returns the manifest's digest."""
    segments = extend_plan(store, images, shard_size)
    todo = pending(shards(segments), committed_shards(store))
    for shard in todo:
        commit(store, shard, **how)  # type: ignore[arg-type]
    return publish_manifest(store, segments, drawn=todo)


def everything(store: Store) -> dict[str, bytes]:
    return {key: store.read(key) for key in store.list()}
