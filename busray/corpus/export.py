"""An export: the released images of a run, in an order that mixes classes, in files of other
programs' formats.

Shards are put into batches, each with its share of every class. A batch is read at once, its images
are shuffled, and its files and then its record are written: the unit of work and of resuming. Only
rows of committed shards are read, so what was quarantined or rejected by a class gate never leaves.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from busray.corpus.columns import FlatColumns
from busray.corpus.commit import read_rows
from busray.corpus.export_files import encoder, names_in
from busray.identity import canonical_json, image_id, sha256_bytes
from busray.records import Commit, UserError, json_object, to_json
from busray.storage import Store, in_threads

PART_BYTES = 500_000_000
"""About the size of a file with many images. Batches are as large, and are in memory as a whole."""
SHARD_THREADS = 4

RECORDS = "export"
"""Folder of the target with an export's own records. No reader looks there."""
PLAN, VERIFIED = f"{RECORDS}/plan.json", f"{RECORDS}/verified.json"

Json = dict[str, Any]


@dataclass(frozen=True)
class ExportPlan:
    """What is exported, and how; export/plan.json. A resumed export must have the same."""

    fingerprint: str  # of the corpus
    manifest: str  # its digest
    to: str  # the format
    seed: int  # of the order
    batches: tuple[tuple[int, ...], ...]  # positions of shards in the manifest
    parts: tuple[int, ...]  # files with images of each batch, where a file has many

    def first_part(self, batch: int) -> int:
        return sum(self.parts[:batch])


@dataclass(frozen=True)
class BatchRecord:
    """What a batch has put; export/batches/NNNNN.json."""

    images: int
    files: dict[str, str]  # key -> SHA-256
    rows: str  # key of the table with the images' columns


def plan_export(
    commits: Sequence[Commit], fingerprint: str, manifest: str, to: str, seed: int, released_share: float
) -> ExportPlan:
    """commits: of the manifest's shards, in its order. released_share: of the bytes of a shard that
    are released images."""
    order = [i for i in _spread(commits, seed) if commits[i].rows]
    sizes = [commits[i].bytes * released_share for i in order]
    wanted = max(1, round(sum(sizes) / PART_BYTES))
    # A batch of few large shards would lack classes.
    fewest = len({commit.class_name for commit in commits if commit.rows})
    batches, parts = list[tuple[int, ...]](), list[int]()
    batch, size, limit = list[int](), 0.0, sum(sizes) / wanted
    for i, of_shard in zip(order, sizes, strict=True):
        batch.append(i)
        size += of_shard
        if size >= limit * 0.999 and len(batch) >= fewest:
            batches.append(tuple(batch))
            parts.append(max(1, round(size / PART_BYTES)))
            batch, size = [], 0.0
    if batch:
        batches.append(tuple(batch))
        parts.append(max(1, round(size / PART_BYTES)))
    return ExportPlan(fingerprint, manifest, to, seed, tuple(batches), tuple(parts))


def _spread(commits: Sequence[Commit], seed: int) -> list[int]:
    """Positions of shards, so that each stretch has its share of every class, in a random order."""
    rng = random.Random(seed)
    by_class: dict[str, list[int]] = {}
    for i, commit in enumerate(commits):
        by_class.setdefault(commit.class_name, []).append(i)
    places: list[tuple[float, int]] = []
    for shards in by_class.values():
        rng.shuffle(shards)
        places += [((n + rng.random()) / len(shards), i) for n, i in enumerate(shards)]
    return [i for _, i in sorted(places)]


def claim_target(target: Store, plan: ExportPlan) -> ExportPlan:
    """Keep the plan in the target, and return the one that is kept. UserError where other things
    lie there."""
    kept = target.read_record_or_none(PLAN, _plan_of)
    if kept is None:
        other = next(target.list(), None)
        if other is not None:
            raise UserError(f"{target.url}: it holds other things, such as {other}: name a new or empty folder")
        target.put_once(PLAN, to_json(plan))
        kept = target.read_record(PLAN, _plan_of)
    for name in ("fingerprint", "manifest", "to", "seed"):
        there, here = getattr(kept, name), getattr(plan, name)
        if there != here:
            what = "the corpus has grown or is another one" if name in ("fingerprint", "manifest") else f"--{name}"
            raise UserError(
                f"{target.url}: an export of another {name} lies there ({there}, now {here}; {what}): name a new folder"
            )
    return kept


def _plan_of(data: bytes) -> ExportPlan:
    value = json_object(data)
    value["batches"] = tuple(map(tuple, value["batches"]))
    return ExportPlan(**{**value, "parts": tuple(value["parts"])})


def batch_key(batch: int) -> str:
    return f"{RECORDS}/batches/{batch:05d}.json"


def rows_key(batch: int) -> str:
    return f"{RECORDS}/rows/{batch:05d}.parquet"


def read_batch(target: Store, batch: int) -> BatchRecord | None:
    return target.read_record_or_none(batch_key(batch), lambda data: BatchRecord(**json_object(data)))


def write_batch(
    source: Store, target: Store, plan: ExportPlan, batch: int, commits: Sequence[Commit], columns: FlatColumns
) -> BatchRecord:
    """Read a batch, shuffle its images, put its files and then its record."""
    wanted = [commits[i] for i in plan.batches[batch]]
    rows: list[tuple[Json, bytes]] = []
    for of_shard in in_threads(partial(_released, source, columns), wanted, SHARD_THREADS):
        rows += of_shard
    random.Random(f"{plan.seed}/{batch}").shuffle(rows)
    encode = encoder(plan.to)
    files = dict[str, str]()
    for part in range(plan.parts[batch]):
        own = rows[part :: plan.parts[batch]]
        put = encode(own, columns, plan.first_part(batch) + part, sum(plan.parts), plan.fingerprint)
        # Derived: an export that was stopped writes a file again.
        for _ in in_threads(lambda file: target.replace(*file), list(put.items())):
            pass
        files |= {key: sha256_bytes(data) for key, data in put.items()}
    table = columns.table([values for values, _ in rows])
    target.replace(rows_key(batch), table)
    record = BatchRecord(len(rows), {**files, rows_key(batch): sha256_bytes(table)}, rows_key(batch))
    target.put_once(batch_key(batch), to_json(record))
    return record


def _released(source: Store, columns: FlatColumns, commit: Commit) -> list[tuple[Json, bytes]]:
    """(columns, PNG) of each image of a shard. Damaged where it is not as recorded."""
    table = read_rows(source, commit)
    return [(columns.flat(row), row["image"]["bytes"]) for row in table.to_pylist()]


def ids_of(commits: Sequence[Commit], fingerprint: str) -> Iterator[tuple[str, str]]:
    """(class, image id) of every released image, by the records alone."""
    for commit in commits:
        rejected = {name for name, _ in commit.rejects}
        for index in range(commit.first, commit.first + commit.count):
            name = image_id(fingerprint, commit.class_name, index)
            if name not in rejected:
                yield commit.class_name, name


@dataclass
class Found:
    """What lies in a target, by reading it."""

    ids: list[str] = field(default_factory=list[str])
    files: set[str] = field(default_factory=set[str])  # keys of files with images
    size: int = 0  # bytes of these files
    problems: list[str] = field(default_factory=list[str])

    def add(self, key: str, data: bytes | None, digest: str, to: str) -> None:
        if data is None:
            self.problems.append(f"{key}: it is not there")
        elif sha256_bytes(data) != digest:
            self.problems.append(f"{key}: it is not what was written")
        elif not key.startswith(f"{RECORDS}/"):
            self.ids += names_in(to, key, data)
            self.files.add(key)
            self.size += len(data)


def look_at(target: Store, plan: ExportPlan, batch: int, found: Found) -> None:
    """Read all files of a batch, and add them to what is found."""
    record = read_batch(target, batch)
    if record is None:
        found.problems.append(f"{batch_key(batch)}: it is not there")
        return
    keys = list(record.files)
    for key, data in zip(keys, in_threads(target.read_or_none, keys, SHARD_THREADS), strict=True):
        found.add(key, data, record.files[key], plan.to)


def fingerprint_of(ids: Sequence[str]) -> str:
    """SHA-256 of the sorted ids."""
    return sha256_bytes(canonical_json(sorted(ids)).encode())
