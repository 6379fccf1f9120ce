"""The manifest: one row a shard, in an order of its own, with a digest that names the corpus's
content."""

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from busray.corpus.manifest import Incomplete, publish_manifest, quarantine
from busray.corpus.plan import read_segments, shards
from busray.layout import MANIFEST, commit_key, segment_key
from busray.records import Commit, Execution, Segment, Shard, to_json
from busray.storage import Store

SEGMENTS = [Segment("malignant", 0, 4, 4), Segment("benign", 0, 6, 4), Segment("benign", 6, 2, 4)]
SHARDS = shards(SEGMENTS)


def commit(shard: Shard, rejected: int = 0, digest: str = "d" * 64, seconds: float = 1.0) -> Commit:
    rejects = tuple((f"{shard.class_name} {shard.first + i}", "gate") for i in range(rejected))
    execution = Execution("cpu", "float32", 4, 1, {})
    key = f"data/{shard.class_name}/{shard.name}-{digest[:16]}.parquet"
    rows = shard.count - rejected
    return Commit(shard.class_name, shard.first, shard.count, key, digest, 100, rows, rejects, execution, seconds)


def put(store: Store, *commits: Commit) -> None:
    for one in commits:
        store.put_once(commit_key(one.shard), to_json(one))


def put_plan(store: Store, segments: list[Segment] = SEGMENTS) -> None:
    for i, segment in enumerate(segments):
        store.put_once(segment_key(i), to_json(segment))


def manifest_rows(store: Store) -> list[dict]:
    return pq.read_table(io.BytesIO(store.read(MANIFEST))).to_pylist()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A corpus with its plan, and nothing committed."""
    store = Store(str(tmp_path / "run"))
    put_plan(store)
    return store


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of records that are read from here on."""
    read, keys = Store.read, []

    def counted(self: Store, key: str) -> bytes:
        if key.startswith("commits/"):
            keys.append(key)
        return read(self, key)

    monkeypatch.setattr(Store, "read", counted)
    return keys


def test_a_manifest_has_a_row_a_shard_sorted_by_class_and_index(store: Store) -> None:
    put(store, *(commit(shard, rejected=shard.count == 2) for shard in SHARDS))
    publish_manifest(store, SEGMENTS)
    rows = manifest_rows(store)
    assert [(r["class"], r["first"], r["count"]) for r in rows] == [
        ("benign", 0, 4),
        ("benign", 4, 2),
        ("benign", 6, 2),
        ("malignant", 0, 4),
    ]
    assert [(r["rows"], r["rejects"]) for r in rows] == [(4, 0), (1, 1), (1, 1), (4, 0)]
    assert rows[0]["object"] == f"data/benign/00000000-00004-{'d' * 16}.parquet"
    assert rows[0]["digest"] == "d" * 64


def test_the_digest_is_in_the_manifest_and_follows_content_alone(store: Store, tmp_path: Path) -> None:
    put(store, *map(commit, SHARDS))
    digest = publish_manifest(store, SEGMENTS)
    schema = pq.read_schema(io.BytesIO(store.read(MANIFEST)))
    assert json.loads(schema.metadata[b"busray"]) == {"digest": digest}

    slower = Store(str(tmp_path / "slower"))
    put_plan(slower)
    put(slower, *(commit(shard, seconds=9.0) for shard in reversed(SHARDS)))
    assert publish_manifest(slower, SEGMENTS) == digest
    assert slower.read(MANIFEST) == store.read(MANIFEST)

    other = Store(str(tmp_path / "other"))
    put_plan(other)
    put(other, commit(SHARDS[0], digest="e" * 64), *map(commit, SHARDS[1:]))
    assert publish_manifest(other, SEGMENTS) != digest


def test_a_manifest_made_in_steps_is_the_one_made_at_once(store: Store, tmp_path: Path) -> None:
    at_once = Store(str(tmp_path / "at-once"))
    put_plan(at_once)
    put(at_once, *map(commit, SHARDS))
    in_steps = Store(str(tmp_path / "in-steps"))
    for n in (1, 2, 3):
        put_plan(in_steps, SEGMENTS[:n])
        put(in_steps, *map(commit, shards(SEGMENTS[:n])))
        digest = publish_manifest(in_steps, SEGMENTS[:n])
    assert digest == publish_manifest(at_once, SEGMENTS)
    assert in_steps.read(MANIFEST) == at_once.read(MANIFEST)


def test_records_that_the_manifest_has_are_not_read_again(tmp_path: Path, reads: list[str]) -> None:
    store = Store(str(tmp_path / "run"))
    put_plan(store, SEGMENTS[:2])
    put(store, *map(commit, SHARDS))
    first = publish_manifest(store, SEGMENTS[:2])
    assert len(reads) == 3
    before = store.read(MANIFEST)
    assert publish_manifest(store, SEGMENTS[:2]) == first
    assert store.read(MANIFEST) == before and len(reads) == 3
    put_plan(store)
    publish_manifest(store, SEGMENTS)
    assert reads[3:] == [commit_key(Shard("benign", 6, 2))]


def test_what_this_driver_drew_is_read_whatever_an_older_manifest_says(store: Store, reads: list[str]) -> None:
    put(store, *map(commit, SHARDS))
    publish_manifest(store, SEGMENTS)
    store.delete(commit_key(SHARDS[0]))
    put(store, commit(SHARDS[0], digest="e" * 64))
    reads.clear()
    publish_manifest(store, SEGMENTS, drawn=[SHARDS[0]])
    assert reads == [commit_key(SHARDS[0])]
    assert [row["digest"][0] for row in manifest_rows(store)] == ["d", "d", "d", "e"]


@pytest.mark.parametrize("damage", ["torn", "not Parquet", "a row changed", "no digest"])
def test_a_manifest_that_does_not_hold_is_made_again_from_the_records(store: Store, damage: str) -> None:
    put(store, *map(commit, SHARDS))
    publish_manifest(store, SEGMENTS)
    sound = store.read(MANIFEST)
    table, buffer = pq.read_table(io.BytesIO(sound)), io.BytesIO()
    if damage == "a row changed":
        table = table.set_column(7, "bytes", [[101, 100, 100, 100]])
    pq.write_table(table.replace_schema_metadata() if damage == "no digest" else table, buffer)
    store.replace(MANIFEST, {"torn": sound[:-20], "not Parquet": b"x"}.get(damage, buffer.getvalue()))
    publish_manifest(store, SEGMENTS)
    assert store.read(MANIFEST) == sound


def test_a_driver_that_wakes_late_leaves_the_manifest_of_the_plan_as_it_has_grown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "run"))
    put_plan(store, SEGMENTS[:1])
    put(store, *map(commit, SHARDS))
    replace, published = Store.replace, []

    def stalls_first(self: Store, key: str, data: bytes) -> None:
        if not published:
            published.append(key)
            put_plan(Store(self.url))
            publish_manifest(Store(self.url), SEGMENTS)
        replace(self, key, data)

    monkeypatch.setattr(Store, "replace", stalls_first)
    publish_manifest(store, SEGMENTS[:1])
    assert len(manifest_rows(store)) == 4
    assert read_segments(store) == SEGMENTS


def test_what_another_driver_planned_and_has_not_drawn_yet_is_not_this_ones_failure(store: Store) -> None:
    put(store, commit(SHARDS[0]))
    publish_manifest(store, SEGMENTS[:1])
    assert len(manifest_rows(store)) == 1


def test_commits_outside_the_plan_are_not_in_the_manifest(store: Store) -> None:
    put(store, *map(commit, SHARDS), commit(Shard("benign", 100, 4)))
    publish_manifest(store, SEGMENTS)
    assert len(manifest_rows(store)) == 4


def test_an_incomplete_corpus_leaves_the_old_manifest_and_names_what_is_missing(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    put_plan(store, SEGMENTS[:1])
    put(store, commit(SHARDS[0]))
    publish_manifest(store, SEGMENTS[:1])
    before = store.read(MANIFEST)
    put_plan(store)
    with pytest.raises(Incomplete, match=r"3 of 4 planned shards are not committed \(benign/00000000-00004, "):
        publish_manifest(store, SEGMENTS)
    assert store.read(MANIFEST) == before


def test_an_empty_plan_has_an_empty_manifest(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    publish_manifest(store, [])
    assert manifest_rows(store) == []


def test_quarantined_images_are_counted_with_the_first_reasons(store: Store, reads: list[str]) -> None:
    put(store, *(commit(shard, rejected=2 * (shard.class_name == "benign")) for shard in SHARDS))
    publish_manifest(store, SEGMENTS)
    reads.clear()
    found = quarantine(store)
    assert (found.planned, found.images, found.share) == (12, 6, 0.5)
    assert found.examples == tuple((f"benign {i}", "gate") for i in (0, 1, 4, 5, 6))
    assert len(reads) == 3
