"""Checking a corpus: each planned image is there once, objects are as recorded, digests agree.

Reads everything that a corpus holds, with a few shards in memory. Changes nothing.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from busray.corpus.commit import committed_shards, read_commit, read_rows, record_digests, rejected_first_draws
from busray.corpus.manifest import manifest_row
from busray.corpus.plan import in_class_order, read_segments, shards
from busray.corpus.record import read_run
from busray.identity import fingerprint_rows, image_id
from busray.layout import MANIFEST, RUN, commit_key, segment_key
from busray.records import Commit, Damaged, Segment, Shard, UserError
from busray.storage import Store, in_threads

SHARD_THREADS = 4  # shards read at once; each is in memory as a whole
ID_COLUMNS = ("image_id", "class", "index", "attempt")


@dataclass(frozen=True)
class VerifyResult:
    """Result of verify(); the corpus is sound if `problems` is empty."""

    planned: int  # images, as the next two
    committed: int
    quarantined: int
    shards: int  # with a readable record
    digest: str  # of the manifest that follows from the records
    problems: tuple[str, ...]
    broken: Mapping[Shard, tuple[str, ...]]  # shards that must be drawn again -> their problems
    plan_problems: tuple[str, ...]
    manifest_problems: tuple[str, ...]


def verify(store: Store, progress: Callable[[int, int], None] = lambda done, total: None) -> VerifyResult:
    """Check a corpus. progress(images checked, planned). UserError where there is no corpus."""
    record = read_run(store)
    if record is None:
        raise UserError(f"{store.url}: no corpus there (no {RUN})")
    fingerprint = record["fingerprint"]
    segments, unreadable = _readable_segments(store)
    plan = in_class_order(shards(segments))
    planned = sum(shard.count for shard in plan)
    plan_problems = unreadable or _plan_problems(segments, plan, committed_shards(store))
    known = record_digests(store, len(plan))
    problems, broken = list(plan_problems), dict[Shard, tuple[str, ...]]()
    committed = quarantined = readable = checked = 0

    def rows() -> Iterator[dict[str, Any]]:
        """Manifest rows of the readable records, one after the other to save memory."""
        nonlocal committed, quarantined, readable, checked
        results = in_threads(lambda shard: _check_shard(store, shard, fingerprint, known), plan, SHARD_THREADS)
        for shard, (commit, shard_problems) in zip(plan, results, strict=True):
            problems.extend(shard_problems)
            if shard_problems:
                broken[shard] = tuple(shard_problems)
            checked += shard.count
            progress(checked, planned)
            if commit is not None:
                committed += commit.rows
                quarantined += len(commit.rejects)
                readable += 1
                yield manifest_row(commit)

    digest = fingerprint_rows(rows())
    manifest_problems = _manifest_problems(store, digest)
    problems += manifest_problems
    if planned != committed + quarantined:
        problems.append(f"{planned} images are planned, {committed} committed and {quarantined} quarantined")
    return VerifyResult(
        planned,
        committed,
        quarantined,
        readable,
        digest,
        tuple(problems),
        broken,
        tuple(plan_problems),
        tuple(manifest_problems),
    )


def _readable_segments(store: Store) -> tuple[list[Segment], list[str]]:
    """(the plan's segments that can be read, what is wrong with the others)."""
    try:
        segments = read_segments(store)
    except Damaged as error:
        return [], [f"{error.key}: {error.reason}"]
    later = [key for key in store.list("plan") if key > segment_key(len(segments))]
    missing = segment_key(len(segments))
    return segments, [f"{missing}: it is not there, but {later[0]} is"] if later else []


def _plan_problems(segments: Sequence[Segment], plan: Sequence[Shard], done: Sequence[Shard]) -> list[str]:
    """Images that the plan has twice or never, and records of shards that it does not have."""
    problems, end_of_class = [], {}
    for segment in segments:
        if segment.first != end_of_class.get(segment.class_name, 0):
            problems.append(f"plan: {segment} does not begin where its class's last segment ends")
        end_of_class[segment.class_name] = segment.first + segment.count
    unplanned = sorted(map(commit_key, set(done) - set(plan)))
    return problems + [f"{key}: the plan has no such shard" for key in unplanned]


def _check_shard(
    store: Store, shard: Shard, fingerprint: str, known: Mapping[str, set[str]] | None
) -> tuple[Commit | None, list[str]]:
    """(the shard's record, if it can be read; problems of the shard)."""
    try:
        commit = read_commit(store, shard, known)
    except FileNotFoundError:
        return None, [f"{commit_key(shard)}: no record: the shard is not done"]
    except Damaged as error:
        return None, [f"{error.key}: {error.reason}"]
    problems = _object_problems(store, commit, fingerprint, _row_problems)
    first_draws = rejected_first_draws(commit)
    if first_draws is not None:
        problems += _object_problems(store, first_draws, fingerprint, _first_draw_problems)
    return commit, problems


RowProblems = Callable[[Commit, pa.Table, str], list[str]]


def _object_problems(store: Store, commit: Commit, fingerprint: str, row_problems: RowProblems) -> list[str]:
    """Problems of a record's object and of its rows, each with the object's key."""
    # The digest of a Parquet object covers its images. Of PNGs it covers their digests only: all
    # columns are read, so that read_rows compares each picture.
    columns = ID_COLUMNS if commit.object.endswith(".parquet") else None
    try:
        problems = row_problems(commit, read_rows(store, commit, columns), fingerprint)
    except Damaged as error:
        problems = [error.reason if error.key == commit.object else f"{error.key}: {error.reason}"]
    except (ValueError, KeyError, OSError, pa.ArrowException) as error:
        problems = [f"{type(error).__name__}: {error}"]
    return [f"{commit.object}: {problem}" for problem in problems]


def _row_problems(commit: Commit, rows: pa.Table, fingerprint: str) -> list[str]:
    """Where a planned image is not exactly one row or one reject under its id."""
    indices = range(commit.first, commit.first + commit.count)
    ids = {index: image_id(fingerprint, commit.class_name, index) for index in indices}
    problems = []
    if rows.num_rows != commit.rows:
        problems.append(f"{rows.num_rows} rows, recorded are {commit.rows}")
    cells = rows.select(ID_COLUMNS).to_pylist() if rows.num_rows else []
    wrong = [row["image_id"] for row in cells if ids.get(row["index"]) != row["image_id"]]
    if wrong:
        problems.append(f"{len(wrong)} ids do not belong to this corpus, such as {wrong[0]}")
    listed = [row["image_id"] for row in cells] + [reject for reject, _ in commit.rejects]
    if sorted(listed) != sorted(ids.values()):
        lost, extra = len(set(ids.values()) - set(listed)), len(listed) - len(set(listed))
        lost_text = f"{lost} planned images are neither rows nor rejects"
        problems.append(f"{lost_text}, {extra} ids are there twice")
    recorded = {image.image_id: image.kept for image in commit.redrawn if image.kept is not None}
    if {row["image_id"]: row["attempt"] for row in cells if row["attempt"]} != recorded:
        problems.append("its rows' attempts are not those that its record says the class gate kept")
    return problems


def _first_draw_problems(commit: Commit, rows: pa.Table, fingerprint: str) -> list[str]:
    """Where the rejected first draws are not those of redrawn images, each once."""
    cells = rows.select(ID_COLUMNS).to_pylist()
    recorded = commit.first_draws.indices if commit.first_draws else ()
    ids = [image_id(fingerprint, commit.class_name, index) for index in recorded]
    stored = [(row["image_id"], row["index"], row["attempt"]) for row in cells]
    as_recorded = stored == [(name, index, 0) for name, index in zip(ids, recorded)]
    redrawn = {record.image_id for record in commit.redrawn}
    if as_recorded and len(set(ids)) == len(ids) and set(ids) <= redrawn:
        return []
    return ["its rows are not the first draws that its record says were rejected"]


def _manifest_problems(store: Store, digest: str) -> list[str]:
    """Where the manifest's rows, the digest that it states and `digest` of the records differ."""
    try:
        data = store.read_or_none(MANIFEST)
    except Damaged as error:  # no file at all stands there
        return [f"{MANIFEST}: {error.reason}"]
    if data is None:
        return [f"{MANIFEST}: not there: the run is not finished"]
    try:
        table = pq.read_table(pa.BufferReader(data))
        stated = json.loads((table.schema.metadata or {})[b"busray"])["digest"]
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        return [f"{MANIFEST}: cannot be read: {error}"]
    batches = map(pa.RecordBatch.to_pylist, table.to_batches(1024))  # one after the other
    counted = fingerprint_rows(chain.from_iterable(batches))
    problems = []
    if counted != stated:
        problems.append(f"{MANIFEST}: its rows have the digest {counted}, it states {stated}")
    if stated != digest:
        problems.append(f"{MANIFEST}: it states the digest {stated}, the records have {digest}")
    try:
        store.read_checked(MANIFEST)  # its rows are not all of its bytes
    except (Damaged, FileNotFoundError) as error:
        problems = problems or [f"{MANIFEST}: {getattr(error, 'reason', 'it is not there any more')}"]
    return problems
