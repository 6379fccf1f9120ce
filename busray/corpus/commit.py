"""What counts as done: encode, hash, put once, record. The first record of a shard wins; readers trust records."""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from busray.corpus.encode import Row, encode_parquet, encode_png
from busray.identity import sha256_bytes
from busray.layout import commit_key, committed_shard, data_key, first_draws_key, png_prefix
from busray.records import Commit, Execution, FirstDraws, Redrawn, Shard, UserError, to_json
from busray.storage import Store

READERS = 16
"""Threads that read records at once."""
AHEAD = 512
"""Results that may wait for whoever takes them."""
REASON = 200
"""Characters of a quarantined image's reason."""

T = TypeVar("T")
R = TypeVar("R")


def commit_shard(
    store: Store,
    shard: Shard,
    rows: Sequence[Row],
    rejects: Sequence[tuple[str, str]],
    provenance: Mapping[str, Any],
    execution: Execution,
    format: str,
    seconds: float,
    redrawn: Sequence[Redrawn] = (),
    first_draws: Sequence[Row] = (),
) -> Commit:
    """Make a shard done; returns the commit that won, which another worker may have put first.

    redrawn, first_draws: what the class gate did, and the first draws that it rejected.
    A row that does not encode joins the rejects: one image never fails its shard.
    """
    if len(rows) + len(rejects) != shard.count:
        raise ValueError(f"shard {shard}: {len(rows)} rows and {len(rejects)} rejects")
    suffix = ".parquet" if format == "parquet" else ".jsonl"

    def encode(some: Sequence[Row]) -> tuple[bytes, dict[str, bytes]]:
        if format == "parquet":
            return encode_parquet(some, provenance), {}
        return encode_png(some, provenance, png_prefix(shard))

    (data, pngs), rows, refused = _encode_what_encodes(rows, encode)
    for name, png in pngs.items():
        store.put_once(name, png)
    digest = sha256_bytes(data)
    key = data_key(shard, digest, suffix)
    store.put_once(key, data)
    lost = {image_id for image_id, _ in refused}
    commit = Commit(
        class_name=shard.class_name,
        first=shard.first,
        count=shard.count,
        object=key,
        digest=digest,
        bytes=len(data) + sum(map(len, pngs.values())),
        rows=len(rows),
        rejects=tuple(sorted([*rejects, *refused])),
        execution=execution,
        seconds=seconds,
        redrawn=tuple(replace(one, kept=None) if one.image_id in lost else one for one in redrawn),
        first_draws=_put_first_draws(store, shard, first_draws, provenance),
    )
    store.put_once(commit_key(shard), to_json(commit))
    return read_commit(store, shard)


def _put_first_draws(
    store: Store, shard: Shard, rows: Sequence[Row], provenance: Mapping[str, Any]
) -> FirstDraws | None:
    """The object of the rejected first draws; a row that does not encode is left out."""
    if not rows:
        return None
    marked = {**provenance, "rejected": "first draws that the class gate rejected; no part of the corpus"}
    data, kept, _ = _encode_what_encodes(rows, lambda some: encode_parquet(some, marked))
    digest = sha256_bytes(data)
    store.put_once(first_draws_key(shard, digest), data)
    return FirstDraws(first_draws_key(shard, digest), digest, len(data), tuple(row.spec.index for row in kept))


def _encode_what_encodes(
    rows: Sequence[Row], encode: Callable[[Sequence[Row]], T]
) -> tuple[T, Sequence[Row], list[tuple[str, str]]]:
    """(encoded, the rows in it, (image id, reason) of those left out).

    Rows are tried alone only after all together failed. Where each passes alone, or memory is short, no image is to
    blame and the error is the caller's.
    """
    try:
        return encode(rows), rows, []
    except MemoryError:
        raise
    except Exception as together:
        good, refused = [], []
        for row in rows:
            try:
                encode([row])
            except MemoryError:
                raise
            except Exception as error:
                refused.append((row.spec.image_id, _reason(error)))
            else:
                good.append(row)
        if not refused:
            raise together
        return encode(good), good, refused


def _reason(error: Exception) -> str:
    """One line that any store takes: a lone surrogate in a prompt must not fail the record that reports it."""
    text = " ".join(f"does not encode: {type(error).__name__}: {error}".split())
    return text.encode(errors="backslashreplace").decode()[:REASON]


def committed_shards(store: Store) -> list[Shard]:
    """The shards that are done, in the order of their keys: one listing, no record is read.

    UserError names a key under commits/ that is no record's.
    """
    try:
        return [committed_shard(key) for key in store.list("commits")]
    except ValueError as error:
        raise UserError(f"{store.url}/commits: {error}; move what is not busray's elsewhere") from error


def read_commit(store: Store, shard: Shard) -> Commit:
    """A shard's record; ValueError where it is none or contradicts itself, FileNotFoundError where there is none."""
    key = commit_key(shard)
    try:
        commit = Commit.from_json(store.read(key))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{store.url}/{key} is no commit record: {error}") from error
    if commit.shard != shard:
        raise ValueError(f"{store.url}/{key} is the record of {commit.class_name}/{commit.shard.name}")
    if commit.rows + len(commit.rejects) != commit.count:
        raise ValueError(f"{store.url}/{key}: {commit.rows} rows and {len(commit.rejects)} rejects of {commit.count}")
    return commit


def read_commits(store: Store) -> list[Commit]:
    """Every commit of a corpus, in the order of its keys."""
    return list(in_threads(lambda shard: read_commit(store, shard), committed_shards(store)))


def in_threads(work: Callable[[T], R], items: Sequence[T], threads: int = READERS) -> Iterator[R]:
    """work of each item, in order; a bounded number of results is held, however many items there are."""
    with ThreadPoolExecutor(threads) as pool:
        for at in range(0, len(items), AHEAD):
            yield from pool.map(work, items[at : at + AHEAD])


def rejected_first_draws(commit: Commit) -> Commit | None:
    """The record as if those were the shard's rows; None where there are none."""
    found = commit.first_draws
    return found and replace(
        commit, object=found.object, digest=found.digest, bytes=found.bytes, rows=len(found.indices)
    )


def first_draws_held(commit: Commit) -> int:
    """How many first draws a shard holds: its rows that are no redraws, and those that the class gate rejected."""
    rejected = rejected_first_draws(commit)
    return commit.rows - sum(one.kept is not None for one in commit.redrawn) + (rejected.rows if rejected else 0)


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


def find_image(store: Store, image_id: str) -> tuple[Commit, dict[str, Any]] | None:
    """(commit, row) of an image, or None; reads the shards its id may belong to only."""
    index = image_id.rpartition("-")[2]
    for shard in committed_shards(store) if index.isdecimal() else ():
        if f"-{shard.class_name}-" not in image_id or not shard.first <= int(index) < shard.first + shard.count:
            continue
        commit = read_commit(store, shard)
        for row in read_rows(store, commit).to_pylist():
            if row["image_id"] == image_id:
                return commit, row
    return None
