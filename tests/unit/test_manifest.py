"""The manifest: one row a shard, in an order of its own, with a digest that names the corpus's content."""

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from busray.corpus.manifest import orphans, publish_manifest
from busray.records import MANIFEST, Commit, Execution, Segment, Shard, commit_key, to_json
from busray.storage import Store

SEGMENTS = [Segment("malignant", 0, 4, 4), Segment("benign", 0, 6, 4), Segment("benign", 6, 2, 4)]
SHARDS = [Shard("malignant", 0, 4), Shard("benign", 0, 4), Shard("benign", 4, 2), Shard("benign", 6, 2)]


def commit(shard: Shard, rejected: int = 0, digest: str = "d" * 64, seconds: float = 1.0) -> Commit:
    rejects = tuple((f"id {i}", "gate") for i in range(rejected))
    execution = Execution("cpu", "float32", 4, 1, {})
    key = f"data/{shard.class_name}/{shard.name}-{digest[:16]}.parquet"
    rows = shard.count - rejected
    return Commit(shard.class_name, shard.first, shard.count, key, digest, 100, rows, rejects, execution, seconds)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


def test_a_manifest_has_a_row_a_shard_sorted_by_class_and_index(store: Store) -> None:
    publish_manifest(store, SEGMENTS, [commit(shard, rejected=shard.count == 2) for shard in SHARDS])
    rows = pq.read_table(io.BytesIO(store.read(MANIFEST))).to_pylist()
    assert [(r["class"], r["first"], r["count"]) for r in rows] == [
        ("benign", 0, 4),
        ("benign", 4, 2),
        ("benign", 6, 2),
        ("malignant", 0, 4),
    ]
    assert [(r["rows"], r["rejects"]) for r in rows] == [(4, 0), (1, 1), (1, 1), (4, 0)]
    assert rows[0]["object"] == f"data/benign/00000000-00004-{'d' * 16}.parquet"
    assert rows[0]["digest"] == "d" * 64


def test_the_digest_is_in_the_manifest_and_follows_content_alone(store: Store) -> None:
    digest = publish_manifest(store, SEGMENTS, [commit(shard) for shard in SHARDS])
    schema = pq.read_schema(io.BytesIO(store.read(MANIFEST)))
    assert json.loads(schema.metadata[b"busray"]) == {"digest": digest}
    slower = [commit(shard, seconds=9.0) for shard in reversed(SHARDS)]
    assert publish_manifest(store, SEGMENTS, slower) == digest
    others = [commit(SHARDS[0], digest="e" * 64), *map(commit, SHARDS[1:])]
    assert publish_manifest(store, SEGMENTS, others) != digest


def test_commits_outside_the_plan_are_not_in_the_manifest(store: Store) -> None:
    stray = commit(Shard("benign", 100, 4))
    publish_manifest(store, SEGMENTS, [*map(commit, SHARDS), stray])
    assert pq.read_table(io.BytesIO(store.read(MANIFEST))).num_rows == 4


def test_an_incomplete_corpus_leaves_the_old_manifest_and_names_what_is_missing(store: Store) -> None:
    publish_manifest(store, SEGMENTS[:1], [commit(SHARDS[0])])
    before = store.read(MANIFEST)
    with pytest.raises(RuntimeError, match=r"3 of 4 planned shards are not committed \(benign/00000000-00004, "):
        publish_manifest(store, SEGMENTS, [commit(SHARDS[0])])
    assert store.read(MANIFEST) == before


def test_only_objects_whose_shards_record_names_another_one_are_orphans(store: Store) -> None:
    done, in_flight = commit(SHARDS[0]), commit(SHARDS[1])
    lost = commit(SHARDS[0], digest="e" * 64)
    for one in (done, in_flight, lost):
        store.put_once(one.object, b"x")
    assert orphans(store) == []
    store.put_once(commit_key(done.shard), to_json(done))
    assert orphans(store) == [lost.object]


def test_an_empty_store_has_no_orphans(store: Store) -> None:
    assert orphans(store) == []
