"""Committing a shard: encode, hash, put the bytes, then put the record that makes it done.

The first record of a shard wins. Readers trust records and never a listing of data.
"""

import io
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from busray.corpus.encode import Row, encode_parquet, encode_png
from busray.identity import sha256_bytes
from busray.layout import FORMAT, commit_key, committed_shard, data_key, first_draws_key, png_prefix, txt2img_prefix
from busray.records import Commit, Damaged, Execution, FirstDraws, Redrawn, Shard, UserError, to_json
from busray.storage import FEW_KEYS, Store, in_threads

RECORDS_READ = 200  # records that are enough to tell a corpus's speed, devices and quarantine
REASON_LENGTH = 200  # most characters of a quarantined image's reason

T = TypeVar("T")


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
    stored_format: int = FORMAT,
    keeps_txt2img: bool = False,
) -> Commit:
    """Make a shard done. Returns the commit that won, which another worker may have put first.

    rejects: (image id, reason) of images to quarantine. Rows that do not encode join them, so that
    one image never fails its shard.
    redrawn, first_draws: what the class gate did, and the first draws that it rejected.
    format: `parquet` or `png`. seconds: the time of drawing. stored_format: of the corpus.
    keeps_txt2img: whether its rows have images from before refinement.
    ValueError where rows and rejects are not as many as the shard's images.
    """
    if len(rows) + len(rejects) != shard.count:
        raise ValueError(f"shard {shard}: {len(rows)} rows and {len(rejects)} rejects")
    suffix = ".parquet" if format == "parquet" else ".jsonl"

    def encode(subset: Sequence[Row]) -> tuple[bytes, dict[str, bytes]]:
        if format == "parquet":
            return encode_parquet(subset, provenance, txt2img=keeps_txt2img, caption=stored_format >= 2), {}
        # In a corpus of format 1 both lie in one folder: all its shards are alike.
        before = txt2img_prefix(shard) if stored_format >= 2 else png_prefix(shard)
        return encode_png(subset, provenance, png_prefix(shard), before)

    (data, pngs), rows, failed = _encode_what_encodes(rows, encode)
    failed_ids, redraws = {image_id for image_id, _ in failed}, []
    for record in redrawn:  # of an image that does not encode, no attempt is kept after all
        redraws.append(replace(record, kept=None) if record.image_id in failed_ids else record)
    # Bytes before the record: a record never names an object that is not there.
    for name, png in pngs.items():
        store.put_named(name, png)
    digest = sha256_bytes(data)
    key = data_key(shard, digest, suffix)
    store.put_named(key, data)
    commit = Commit(
        class_name=shard.class_name,
        first=shard.first,
        count=shard.count,
        object=key,
        digest=digest,
        bytes=len(data) + sum(map(len, pngs.values())),
        rows=len(rows),
        rejects=tuple(sorted([*rejects, *failed])),
        execution=execution,
        seconds=seconds,
        redrawn=tuple(redraws),
        first_draws=_put_first_draws(store, shard, first_draws, provenance),
    )
    store.put_checked(commit_key(shard), to_json(commit))
    return read_commit(store, shard)


def _put_first_draws(
    store: Store, shard: Shard, rows: Sequence[Row], provenance: Mapping[str, Any]
) -> FirstDraws | None:
    """Put the rejected first draws. A row that does not encode is left out."""
    if not rows:
        return None
    rejected = "first draws that the class gate rejected; no part of the corpus"
    marked = {**provenance, "rejected": rejected}
    data, rows, _ = _encode_what_encodes(rows, lambda subset: encode_parquet(subset, marked))
    digest = sha256_bytes(data)
    key = first_draws_key(shard, digest)
    store.put_named(key, data)
    return FirstDraws(key, digest, len(data), tuple(row.spec.index for row in rows))


def _encode_what_encodes(
    rows: Sequence[Row], encode: Callable[[Sequence[Row]], T]
) -> tuple[T, Sequence[Row], list[tuple[str, str]]]:
    """(encoded, the rows in it, (image id, reason) of those left out).

    Rows are encoded one by one only after all together failed. If each one passes alone, no image
    is to blame, and the error is raised; so is MemoryError.
    """
    try:
        return encode(rows), rows, []
    except MemoryError:
        raise
    except Exception as together:
        good, failed = [], []
        for row in rows:
            try:
                encode([row])
            except MemoryError:
                raise
            except Exception as error:
                failed.append((row.spec.image_id, _reason(error)))
            else:
                good.append(row)
        if not failed:
            raise together
        return encode(good), good, failed


def _reason(error: Exception) -> str:
    """One line that is valid UTF-8: a lone surrogate in a prompt must not fail its own report."""
    text = " ".join(f"does not encode: {type(error).__name__}: {error}".split())
    return text.encode(errors="backslashreplace").decode()[:REASON_LENGTH]


def committed_shards(store: Store) -> list[Shard]:
    """The shards that are done, in the order of their keys. One listing; no record is read.

    UserError for a key under commits/ that is not a record's.
    """
    try:
        return [committed_shard(key) for key in store.list("commits")]
    except ValueError as error:
        raise UserError(f"{store.url}/commits: {error}; move files of others elsewhere") from error


def read_commit(store: Store, shard: Shard, known: Mapping[str, set[str]] | None = None) -> Commit:
    """A shard's record. FileNotFoundError without one, Damaged where it contradicts itself.

    known: digests of record_digests, where many records are read."""
    return store.read_record(commit_key(shard), partial(_commit_of, shard), known)


def record_digests(store: Store, records: int) -> Mapping[str, set[str]] | None:
    """The digests of all records by one listing; None where so few are read that it costs more."""
    return store.digests_below("commits") if records > FEW_KEYS else None


def _commit_of(shard: Shard, data: bytes) -> Commit:
    """The record's content. ValueError where it is not this shard's, or cannot be true."""
    commit = Commit.from_json(data)
    if commit.shard != shard:
        raise ValueError(f"it is the record of {commit.class_name}/{commit.shard.name}")
    if commit.rows + len(commit.rejects) != commit.count:
        raise ValueError(f"{commit.rows} rows and {len(commit.rejects)} rejects of {commit.count}")
    return commit


def read_commits(store: Store) -> list[Commit]:
    """Every commit of a corpus, in the order of its keys."""
    return list(each_commit(store, committed_shards(store)))


def each_commit(store: Store, wanted: Sequence[Shard]) -> Iterator[Commit]:
    """The commits of these shards, in their order: a request a record, many at once. Few of them
    are in memory at a time."""
    known = record_digests(store, len(wanted))
    yield from in_threads(lambda shard: read_commit(store, shard, known), wanted)


def sampled_commits(store: Store, done: Sequence[Shard], most: int) -> tuple[list[Commit], list[Shard]]:
    """(records of at most `most` of the shards, chosen by chance; those of them that cannot be
    read). Without their digests: for sums that people read, never for a figure."""

    def read(shard: Shard) -> Commit | None:
        try:
            return store.parsed(commit_key(shard), store.read(commit_key(shard)), partial(_commit_of, shard))
        except (Damaged, FileNotFoundError):
            return None

    chosen = random.Random(0).sample(list(done), min(most, len(done)))
    commits, unreadable = list[Commit](), list[Shard]()
    for shard, commit in zip(chosen, in_threads(read, chosen), strict=True):
        if commit is None:
            unreadable.append(shard)
        else:
            commits.append(commit)
    return commits, unreadable


def rejected_first_draws(commit: Commit) -> Commit | None:
    """A commit whose object is the shard's rejected first draws; None where it has none."""
    draws = commit.first_draws
    if draws is None:
        return None
    changes = {"object": draws.object, "digest": draws.digest, "bytes": draws.bytes}
    return replace(commit, **changes, rows=len(draws.indices))


def count_first_draws(commit: Commit) -> int:
    """First draws of a shard: rows that are not redraws, and those that the gate rejected."""
    redraws = sum(record.kept is not None for record in commit.redrawn)
    rejected = len(commit.first_draws.indices) if commit.first_draws else 0
    return commit.rows - redraws + rejected


def read_rows(store: Store, commit: Commit, columns: Sequence[str] | None = None) -> pa.Table:
    """A committed shard's rows, all columns or some; images as struct<bytes, path>.

    Damaged where the object or a PNG is lost, or is not the recorded one.
    """
    data = read_named(store, commit.object, commit.digest, "its commit")
    if commit.object.endswith(".parquet"):
        return pq.read_table(io.BytesIO(data), columns=None if columns is None else list(columns))
    rows = []
    for line in data.decode().splitlines()[1:]:
        row = json.loads(line)
        row = {column: row[column] for column in columns or row}
        for column, value in row.items():
            if isinstance(value, dict):  # a cell that names a PNG becomes that PNG
                png = read_named(store, value["key"], value["sha256"], "its shard")
                row[column] = {"bytes": png, "path": value["key"].rsplit("/", 1)[-1]}
        rows.append(row)
    return pa.Table.from_pylist(rows)


def read_named(store: Store, key: str, digest: str, recorder: str) -> bytes:
    """The bytes of an object whose SHA-256 a record has; Damaged where it is lost or another one.
    recorder: what has the digest, such as "its commit"."""
    try:
        data = store.read(key)
    except FileNotFoundError as error:
        raise store.damaged(key, f"it is not there, though {recorder} records it") from error
    if sha256_bytes(data) != digest:
        raise store.damaged(key, f"it is not what {recorder} records")
    return data


def find_image(store: Store, image_id: str) -> tuple[Commit, dict[str, Any]] | None:
    """(commit, row) of an image, or None. Only the shards that its id may belong to are read."""
    index = image_id.rpartition("-")[2]
    if not index.isdecimal():
        return None
    for shard in committed_shards(store):
        in_shard = shard.first <= int(index) < shard.first + shard.count
        if not in_shard or f"-{shard.class_name}-" not in image_id:
            continue
        commit = read_commit(store, shard)
        for row in read_rows(store, commit).to_pylist():
            if row["image_id"] == image_id:
                return commit, row
    return None
