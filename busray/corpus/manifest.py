"""The manifest: one row a shard, published only when planned = committed + quarantined; and what nobody reads."""

import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from busray.corpus.commit import committed_shards, in_threads, read_commit
from busray.corpus.plan import read_segments, shards
from busray.identity import fingerprint_rows, sha256_bytes
from busray.layout import MANIFEST, commit_key, data_shard
from busray.records import Commit, Segment, Shard, Stopped
from busray.storage import Store

SCHEMA = pa.schema(
    [
        ("class", pa.string()),
        ("first", pa.int64()),
        ("count", pa.int64()),
        ("rows", pa.int64()),
        ("rejects", pa.int64()),
        ("object", pa.string()),
        ("digest", pa.string()),
        ("bytes", pa.int64()),
    ]
)
EXAMPLES = 5


class Incomplete(Stopped):
    """Planned shards have no commit: there is no manifest to publish yet."""


# ---- publishing -----------------------------------------------------------------------------------------------------


def publish_manifest(store: Store, segments: Sequence[Segment], *, drawn: Iterable[Shard] = ()) -> str:
    """Bring manifest.parquet up to the plan; returns the digest of its content.

    A row that the published manifest has is not read again, since records are create-only; `drawn` are the shards
    that had no record when this driver looked, so what an older manifest says of them does not count.
    Incomplete where a planned shard has no commit. Another driver may grow the plan meanwhile: its shards are
    taken up if they are there, so that a stalled driver does not leave its old manifest over a newer one.
    """
    fresh = frozenset(drawn)
    digest = _publish(store, segments, fresh)
    while (latest := read_segments(store)) != list(segments):
        segments = latest
        try:
            digest = _publish(store, segments, fresh)
        except Incomplete:  # what is missing is the other driver's, which publishes when it is done
            break
    return digest


def _publish(store: Store, segments: Sequence[Segment], drawn: Set[Shard]) -> str:
    plan = sorted(shards(segments), key=lambda shard: (shard.class_name, shard.first))
    published = published_rows(store)
    known = {shard: row for shard, row in published.items() if shard not in drawn}
    unknown = [shard for shard in plan if shard not in known]
    for shard, row in zip(unknown, in_threads(lambda shard: _row_or_none(store, shard), unknown), strict=True):
        if row is not None:
            known[shard] = row
    missing = [shard for shard in unknown if shard not in known]
    if missing:
        names = ", ".join(f"{s.class_name}/{s.name}" for s in missing[:5])
        raise Incomplete(f"{store.url}: {len(missing)} of {len(plan)} planned shards are not committed ({names})")
    rows = [known[shard] for shard in plan]
    digest = fingerprint_rows(rows)
    if rows != list(published.values()) or not published:
        table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata({"busray": json.dumps({"digest": digest})}))
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        store.replace(MANIFEST, buffer.getvalue())
    return digest


def manifest_row(commit: Commit) -> dict[str, Any]:
    """What the manifest says of a shard: nothing of when, where or by whom it was drawn."""
    return {
        "class": commit.class_name,
        "first": commit.first,
        "count": commit.count,
        "rows": commit.rows,
        "rejects": len(commit.rejects),
        "object": commit.object,
        "digest": commit.digest,
        "bytes": commit.bytes,
    }


def _row_or_none(store: Store, shard: Shard) -> dict[str, Any] | None:
    try:
        return manifest_row(read_commit(store, shard))
    except FileNotFoundError:
        return None


def published_rows(store: Store) -> dict[Shard, dict[str, Any]]:
    """The published manifest's rows in its order; none where there is no manifest whose digest holds."""
    data = store.read_or_none(MANIFEST)
    if data is None:
        return {}
    try:
        table = pq.read_table(pa.BufferReader(data))
        digest = json.loads(table.schema.metadata[b"busray"])["digest"]
        rows = table.to_pylist()
        sound = fingerprint_rows(rows) == digest
        return {Shard(row["class"], row["first"], row["count"]): row for row in rows} if sound else {}
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError):
        return {}  # a derived file: it is made again from the records


# ---- what was quarantined -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quarantine:
    """How many of a corpus's planned images were quarantined, and the first of them as (image id, reason)."""

    planned: int
    images: int
    examples: tuple[tuple[str, str], ...]

    @property
    def share(self) -> float:
        return self.images / self.planned if self.planned else 0.0


def quarantine(store: Store) -> Quarantine:
    """From the published manifest; reads a few records for their reasons."""
    rows = published_rows(store)
    return Quarantine(
        planned=sum(row["count"] for row in rows.values()),
        images=sum(row["rejects"] for row in rows.values()),
        examples=tuple(_examples(store, [shard for shard, row in rows.items() if row["rejects"]])),
    )


def _examples(store: Store, holders: Sequence[Shard]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for shard in holders:
        found += read_commit(store, shard).rejects
        if len(found) >= EXAMPLES:
            break
    return found[:EXAMPLES]


# ---- orphans --------------------------------------------------------------------------------------------------------


def orphans(store: Store) -> list[str]:
    """Objects of a corpus whose shard's record names others: what a driver that lost left behind.

    Kept: an object whose shard has no record yet (in flight), whatever is not named as busray names things, and
    everything of a shard whose record or recorded object cannot be read as it should (see verify).
    Records are create-only, so what is an orphan once stays one: it may be deleted at any time.
    """
    done = set(committed_shards(store))  # before the data: a record's own object is there before its record
    objects: dict[Shard, list[str]] = defaultdict(list)
    for key in (*store.list("data"), *store.list("first-draws")):
        shard = data_shard(key)
        if shard is not None and shard in done:
            objects[shard].append(key)
    doubtful = [shard for shard, keys in objects.items() if len(keys) > 1]
    return sorted(
        key
        for shard, live in zip(doubtful, in_threads(lambda shard: _live(store, shard), doubtful), strict=True)
        if live and live <= set(objects[shard])
        for key in objects[shard]
        if key not in live
    )


def _live(store: Store, shard: Shard) -> set[str]:
    """What a shard's record names, with its pictures; nothing where that cannot be told for certain."""
    try:
        commit = read_commit(store, shard)
        first_draws = {commit.first_draws.object} if commit.first_draws else set()
        return {commit.object, *pictures(store, commit), *first_draws}
    except (ValueError, FileNotFoundError):
        return set()


def pictures(store: Store, commit: Commit) -> Iterator[str]:
    """Keys of the pictures of a shard of format `png`. ValueError where its object is not the recorded one."""
    if not commit.object.endswith(".jsonl"):
        return
    data = store.read(commit.object)
    if sha256_bytes(data) != commit.digest:
        raise ValueError(f"{store.url}/{commit.object} is not what {commit_key(commit.shard)} records")
    for line in data.decode().splitlines()[1:]:
        yield from (value["key"] for value in json.loads(line).values() if isinstance(value, dict))
