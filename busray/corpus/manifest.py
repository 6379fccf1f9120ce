"""The manifest: one row a shard, published only when planned = committed + quarantined."""

import io
import json
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from busray.corpus.plan import shards
from busray.identity import fingerprint
from busray.records import MANIFEST, Commit, Segment, Shard, commit_key
from busray.storage import Store


def publish_manifest(store: Store, segments: Sequence[Segment], commits: Sequence[Commit]) -> str:
    """Write manifest.parquet; returns the digest of its content. RuntimeError where a planned shard has no commit."""
    by_shard = {commit.shard: commit for commit in commits}
    plan = shards(segments)
    missing = [shard for shard in plan if shard not in by_shard]
    if missing:
        names = ", ".join(f"{s.class_name}/{s.name}" for s in missing[:5])
        raise RuntimeError(f"{store.url}: {len(missing)} of {len(plan)} planned shards are not committed ({names})")
    rows = [
        {
            "class": c.class_name,
            "first": c.first,
            "count": c.count,
            "rows": c.rows,
            "rejects": len(c.rejects),
            "object": c.object,
            "digest": c.digest,
            "bytes": c.bytes,
        }
        for c in (by_shard[shard] for shard in sorted(plan, key=lambda s: (s.class_name, s.first)))
    ]
    digest = fingerprint(rows)
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"busray": json.dumps({"digest": digest})})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    store.replace(MANIFEST, buffer.getvalue())
    return digest


def orphans(store: Store) -> list[str]:
    """Data objects whose shard's record names another one; an object whose record is still in flight is none."""
    found = []
    for key in store.list("data"):
        _, class_name, name, *_ = key.split("/")
        first, count = name.split(".")[0].split("-")[:2]
        record = store.read_or_none(commit_key(Shard(class_name, int(first), int(count))))
        if record is not None and key not in _live(store, Commit.from_json(record)):
            found.append(key)
    return found


def _live(store: Store, commit: Commit) -> set[str]:
    live = {commit.object}
    if commit.object.endswith(".jsonl"):
        for line in store.read(commit.object).decode().splitlines()[1:]:
            live |= {value["key"] for value in json.loads(line).values() if isinstance(value, dict)}
    return live
