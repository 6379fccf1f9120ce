"""What counts as done: encode, hash, put once, record. The first record of a shard wins; readers trust records."""

import io
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from busray.corpus.encode import Row, encode_parquet, encode_png
from busray.identity import sha256_bytes
from busray.records import Commit, Execution, Shard, commit_key, data_key, to_json
from busray.storage import Store

READERS = 8


def commit_shard(
    store: Store,
    shard: Shard,
    rows: Sequence[Row],
    rejects: Sequence[tuple[str, str]],
    provenance: Mapping[str, Any],
    execution: Execution,
    format: str,
    seconds: float,
) -> Commit:
    """Make a shard done; returns the commit that won, which another worker may have put first."""
    if len(rows) + len(rejects) != shard.count:
        raise ValueError(f"shard {shard}: {len(rows)} rows and {len(rejects)} rejects")
    if format == "parquet":
        data = encode_parquet(rows, provenance)
        digest = sha256_bytes(data)
        key = data_key(shard, digest, ".parquet")
        size = len(data)
    else:
        prefix = f"data/{shard.class_name}/{shard.name}"
        data, pngs = encode_png(rows, provenance, prefix)
        digest = sha256_bytes(data)
        key = data_key(shard, digest, ".jsonl")
        size = len(data) + sum(map(len, pngs.values()))
        for name, png in pngs.items():
            store.put_once(name, png)
    store.put_once(key, data)
    commit = Commit(
        class_name=shard.class_name,
        first=shard.first,
        count=shard.count,
        object=key,
        digest=digest,
        bytes=size,
        rows=len(rows),
        rejects=tuple(rejects),
        execution=execution,
        seconds=seconds,
    )
    store.put_once(commit_key(shard), to_json(commit))
    return _read(store, commit_key(shard))


def _read(store: Store, key: str) -> Commit:
    try:
        commit = Commit.from_json(store.read(key))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{store.url}/{key} is no commit record: {error}") from error
    if commit.rows + len(commit.rejects) != commit.count:
        raise ValueError(f"{store.url}/{key}: {commit.rows} rows and {len(commit.rejects)} rejects of {commit.count}")
    return commit


def read_commits(store: Store) -> list[Commit]:
    """Every commit of a corpus, in the order of its keys."""
    keys = [key for key in store.list("commits") if key.endswith(".json")]
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda key: _read(store, key), keys))


def read_rows(store: Store, commit: Commit, columns: Sequence[str] | None = None) -> pa.Table:
    """A committed shard's rows; images as struct<bytes, path>. ValueError where the object is not the recorded one."""
    data = store.read(commit.object)
    if sha256_bytes(data) != commit.digest:
        raise ValueError(f"{store.url}/{commit.object} is not what its commit records")
    if commit.object.endswith(".parquet"):
        return pq.read_table(io.BytesIO(data), columns=None if columns is None else list(columns))
    rows = [json.loads(line) for line in data.decode().splitlines()[1:]]
    if columns is not None:
        rows = [{column: row[column] for column in columns} for row in rows]
    return pa.Table.from_pylist([{k: _image(store, v) for k, v in row.items()} for row in rows])


def _image(store: Store, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    data = store.read(value["key"])
    if sha256_bytes(data) != value["sha256"]:
        raise ValueError(f"{store.url}/{value['key']} is not what its shard records")
    return {"bytes": data, "path": value["key"].rsplit("/", 1)[-1]}


def find_image(store: Store, image_id: str) -> tuple[Commit, dict[str, Any], int] | None:
    """(commit, row, position in the shard's plan) of an image, or None."""
    for commit in read_commits(store):
        if f"-{commit.class_name}-" not in image_id:
            continue
        for row in read_rows(store, commit).to_pylist():
            if row["image_id"] == image_id:
                return commit, row, row["index"] - commit.first
    return None
