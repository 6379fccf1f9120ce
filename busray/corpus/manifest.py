"""The manifest and the orphans of a corpus.

The manifest has one row per shard. It is published when every planned shard is committed. Orphans
are objects of a committed shard that its record does not name.
"""

import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from busray.corpus.commit import committed_shards, read_commit, read_named, record_digests
from busray.corpus.plan import in_class_order, read_segments, shards
from busray.identity import fingerprint_rows
from busray.layout import DATA_FOLDERS, MANIFEST, data_shard
from busray.records import Commit, Damaged, Segment, Shard, Stopped
from busray.storage import Store, in_threads

TEXT, INT = pa.string(), pa.int64()
SCHEMA = pa.schema(
    {"class": TEXT}
    | dict.fromkeys(("first", "count", "rows", "rejects"), INT)
    | {"object": TEXT, "digest": TEXT, "bytes": INT}
)
EXAMPLES = 5  # shards or images that a message or a record names; the rest is counted


class Incomplete(Stopped):
    """Planned shards have no commit, so there is no manifest to publish yet."""


# ---- publishing ----


def publish_manifest(store: Store, segments: Sequence[Segment], *, drawn: Iterable[Shard] = ()) -> str:
    """Bring manifest.parquet up to the plan. Returns the digest of its content.

    Records are create-only, so a row of the published manifest is not read again. `drawn`: shards
    that had no record when this driver started; what an older manifest says of them is ignored.
    Incomplete where a planned shard has no commit.
    """
    fresh = frozenset(drawn)
    # Another driver may grow the plan meanwhile. Its shards are included if they are committed, so
    # that a slow driver does not leave its old manifest over a newer one.
    digest = _publish(store, segments, fresh)
    while (latest := read_segments(store)) != list(segments):
        segments = latest
        try:
            digest = _publish(store, segments, fresh)
        except Incomplete:  # the other driver draws the missing shards, and publishes them then
            break
    return digest


def _publish(store: Store, segments: Sequence[Segment], drawn: Set[Shard]) -> str:
    plan = in_class_order(shards(segments))
    published = {Shard(row["class"], row["first"], row["count"]): row for row in _stored_rows(store) or ()}
    known = {shard: row for shard, row in published.items() if shard not in drawn}
    unknown = [shard for shard in plan if shard not in known]
    for shard, row in zip(unknown, _rows_or_none(store, unknown), strict=True):
        if row is not None:
            known[shard] = row
    missing = [shard for shard in unknown if shard not in known]
    if missing:
        names = ", ".join(f"{s.class_name}/{s.name}" for s in missing[:EXAMPLES])
        raise Incomplete(f"{store.url}: {len(missing)} of {len(plan)} planned shards are not committed ({names})")
    rows = [known[shard] for shard in plan]
    digest = fingerprint_rows(rows)
    if rows != list(published.values()) or not published:
        schema = SCHEMA.with_metadata({"busray": json.dumps({"digest": digest})})
        table = pa.Table.from_pylist(rows, schema=schema)
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        store.replace_checked(MANIFEST, buffer.getvalue())
    return digest


def manifest_row(commit: Commit) -> dict[str, Any]:
    """A shard's row. It does not depend on when, where or by whom the shard was drawn."""
    row = {"class": commit.class_name, "first": commit.first, "count": commit.count}
    row |= {"rows": commit.rows, "rejects": len(commit.rejects)}
    return row | {"object": commit.object, "digest": commit.digest, "bytes": commit.bytes}


def _rows_or_none(store: Store, wanted: Sequence[Shard]) -> Iterator[dict[str, Any] | None]:
    """The row of each shard; None where it has no record."""
    digests = record_digests(store, len(wanted))

    def row_or_none(shard: Shard) -> dict[str, Any] | None:
        try:
            return manifest_row(read_commit(store, shard, digests))
        except FileNotFoundError:
            return None

    yield from in_threads(row_or_none, wanted)


def published_rows(store: Store) -> dict[Shard, dict[str, Any]]:
    """The published manifest's rows, in its order.

    A manifest that is missing or damaged is derived: its rows are made again from the records. None
    where the corpus has no plan, or a planned shard has no record, so that nothing is published.
    Damaged where a record is.
    """
    rows = _stored_rows(store)
    if rows is None:
        plan = in_class_order(shards(read_segments(store)))
        recorded = list(_rows_or_none(store, plan))
        complete = [row for row in recorded if row is not None]
        rows = complete if len(complete) == len(plan) else []
    return {Shard(row["class"], row["first"], row["count"]): row for row in rows}


def _stored_rows(store: Store) -> list[dict[str, Any]] | None:
    """The rows of manifest.parquet; None if it is missing or damaged."""
    data = store.read_or_none(MANIFEST)
    if data is None:
        return None
    try:
        table = pq.read_table(pa.BufferReader(data))
        digest = json.loads((table.schema.metadata or {})[b"busray"])["digest"]
        rows = table.to_pylist()
        return rows if fingerprint_rows(rows) == digest and rows else None
    except (pa.ArrowException, OSError, ValueError, TypeError, LookupError):
        return None


# ---- what was quarantined ----


@dataclass(frozen=True)
class Quarantine:
    """How many images of a corpus were quarantined."""

    planned: int  # images of the whole corpus
    images: int  # of these, quarantined ones
    examples: tuple[tuple[str, str], ...]  # (image id, reason) of the first of them

    @property
    def share(self) -> float:
        return self.images / self.planned if self.planned else 0.0


def quarantine(store: Store) -> Quarantine:
    """Counted in the published manifest; a few records are read for their reasons."""
    planned = images = 0
    examples: list[tuple[str, str]] = []
    for shard, row in published_rows(store).items():
        planned += row["count"]
        images += row["rejects"]
        if row["rejects"] and len(examples) < EXAMPLES:
            examples += read_commit(store, shard).rejects
    return Quarantine(planned, images, tuple(examples[:EXAMPLES]))


# ---- orphans ----


def orphans(store: Store) -> list[str]:
    """Keys of objects whose shard's record names other objects: left by a driver that came second.

    Not orphans: objects of a shard without a record (it may be about to be put), keys that busray
    does not make, and everything of a shard whose record or object is damaged (see verify).
    Records are create-only, so an orphan stays one and may be deleted at any time.
    """
    # List records before objects: an object is put before the record that names it, so every shard
    # in `done` has its object in the later listing.
    done = set(committed_shards(store))
    objects: dict[Shard, list[str]] = defaultdict(list)
    for key in chain.from_iterable(map(store.list, DATA_FOLDERS)):
        shard = data_shard(key)
        if shard is not None and shard in done:
            objects[shard].append(key)
    # A committed shard with one object has no orphan: its record need not be read.
    several = [shard for shard, keys in objects.items() if len(keys) > 1]
    orphaned, digests = [], record_digests(store, len(several))
    for shard, live in zip(several, in_threads(partial(_live_keys, store, digests), several), strict=True):
        # Otherwise the shard is damaged: keep everything for whoever repairs it.
        if live and live <= set(objects[shard]):
            orphaned += [key for key in objects[shard] if key not in live]
    return sorted(orphaned)


def _live_keys(store: Store, digests: Mapping[str, set[str]] | None, shard: Shard) -> set[str]:
    """Keys of all objects that a shard's record names; none where it or one is damaged."""
    try:
        commit = read_commit(store, shard, digests)
        first_draws = {commit.first_draws.object} if commit.first_draws else set()
        return {commit.object, *pictures(store, commit), *first_draws}
    except (Damaged, FileNotFoundError):
        return set()


def pictures(store: Store, commit: Commit) -> Iterator[str]:
    """Keys of the PNGs of a shard of format `png`. Damaged if its object is not as recorded."""
    if not commit.object.endswith(".jsonl"):
        return
    data = read_named(store, commit.object, commit.digest, "its commit")
    for line in data.decode().splitlines()[1:]:
        for value in json.loads(line).values():
            if isinstance(value, dict):
                yield value["key"]
