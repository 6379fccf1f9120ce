"""Corpora of black images in runs of tests. fake_corpus.py commits to stores without a run, and its
pixels follow from index and shade."""

from dataclasses import replace
from typing import Any

import numpy as np

from busray.config_file import validate
from busray.corpus.commit import commit_shard
from busray.corpus.encode import Row
from busray.corpus.manifest import publish_manifest
from busray.corpus.plan import extend_plan, shards
from busray.records import ContentBox, ImageSpec, Shard
from busray.run.record import Run
from busray.storage import Store
from tests.support.fake_corpus import EXECUTION


def with_settings(run: Run, **changes: dict[str, Any]) -> Run:
    """The run as it is opened with other settings of some sections."""
    tree = run.config.model_dump(mode="json")
    for section, settings in changes.items():
        tree[section] = {**tree[section], **settings}
    return replace(run, config=validate(tree))


def commit_black(store: Store, shard: Shard, seconds: float = 1.0) -> None:
    """Commit black images."""
    rows = []
    for i in range(shard.first, shard.first + shard.count):
        image_id = f"f-{shard.class_name}-{i:08d}"
        spec = ImageSpec(image_id, shard.class_name, i, 0, "", i, i, ContentBox(0, 0, 8, 8))
        rows.append(Row(spec, np.zeros((8, 8), np.uint8)))
    commit_shard(store, shard, rows, (), {"fingerprint": "f" * 64}, EXECUTION, "parquet", seconds)


def fill(store: Store, images: dict[str, int], seconds: float = 1.0) -> None:
    """Plan, commit and publish black images; images: class -> number."""
    segments = extend_plan(store, images, 4)
    for shard in shards(segments):
        commit_black(store, shard, seconds)
    publish_manifest(store, segments)
