"""The manifest against the world: every planned image once, every object as recorded, one digest whoever counts.

Reads everything a corpus holds, in threads, and keeps no more than a few shards of it. Changes nothing.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from busray.corpus.commit import committed_shards, in_threads, read_commit, read_rows, rejected_first_draws
from busray.corpus.manifest import manifest_row
from busray.corpus.plan import read_segments, shards
from busray.identity import fingerprint_rows, image_id
from busray.layout import MANIFEST, RUN, commit_key
from busray.records import Commit, Segment, Shard, UserError
from busray.storage import Store

READERS = 4
"""Shards read at once: each is held whole."""
ID_COLUMNS = ("image_id", "class", "index", "attempt")


@dataclass(frozen=True)
class Verdict:
    """What a corpus was found to be; sound where there is no problem."""

    planned: int
    committed: int
    quarantined: int
    shards: int
    digest: str
    """Of the manifest that follows from the records."""
    problems: tuple[str, ...]


def verify(store: Store, tell: Callable[[int, int], None] = lambda done, total: None) -> Verdict:
    """Check a corpus; tell(images looked at, planned) as it goes on. UserError where there is none."""
    record = store.read_or_none(RUN)
    if record is None:
        raise UserError(f"{store.url}: no corpus there (no {RUN})")
    fingerprint = json.loads(record)["fingerprint"]
    segments = read_segments(store)
    plan = sorted(shards(segments), key=lambda shard: (shard.class_name, shard.first))
    planned = sum(shard.count for shard in plan)
    problems = _plan_problems(segments, plan, committed_shards(store))
    committed = quarantined = found = looked_at = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal committed, quarantined, found, looked_at
        looked_over = in_threads(lambda shard: _look_over(store, shard, fingerprint), plan, READERS)
        for shard, (commit, ills) in zip(plan, looked_over, strict=True):
            problems.extend(ills)
            looked_at += shard.count
            tell(looked_at, planned)
            if commit is not None:
                committed += commit.rows
                quarantined += len(commit.rejects)
                found += 1
                yield manifest_row(commit)

    digest = fingerprint_rows(rows())
    problems += _manifest_problems(store, digest)
    if planned != committed + quarantined:
        problems.append(f"{planned} images are planned, {committed} committed and {quarantined} quarantined")
    return Verdict(planned, committed, quarantined, found, digest, tuple(problems))


def _plan_problems(segments: Sequence[Segment], plan: Sequence[Shard], done: Sequence[Shard]) -> list[str]:
    """Images that the plan holds twice or never, and records of shards that it does not hold."""
    problems = []
    reached: dict[str, int] = {}
    for segment in segments:
        if segment.first != reached.get(segment.class_name, 0):
            problems.append(f"plan: {segment} does not go on where its class's last segment ends")
        reached[segment.class_name] = segment.first + segment.count
    strays = set(done) - set(plan)
    return problems + [f"{commit_key(shard)}: the plan has no such shard" for shard in sorted(strays, key=commit_key)]


def _look_over(store: Store, shard: Shard, fingerprint: str) -> tuple[Commit | None, list[str]]:
    """(the shard's record, if it can be read, what is wrong with the shard)."""
    try:
        commit = read_commit(store, shard)
    except FileNotFoundError:
        return None, [f"{commit_key(shard)}: no record: the shard is not done"]
    except ValueError as error:
        return None, [str(error)]
    problems = _look_into(store, commit, lambda rows: _row_problems(commit, rows, fingerprint))
    first_draws = rejected_first_draws(commit)
    if first_draws is not None:
        problems += _look_into(store, first_draws, lambda rows: _first_draw_problems(first_draws, rows, fingerprint))
    return commit, problems


def _look_into(store: Store, commit: Commit, told: Callable[[pa.Table], list[str]]) -> list[str]:
    """What is wrong with a record's object, by name; told: what its rows tell."""
    try:
        # a PNG shard's metadata vouches for each picture, so that all of them are read
        problems = told(read_rows(store, commit, ID_COLUMNS if commit.object.endswith(".parquet") else None))
    except FileNotFoundError as error:
        problems = [f"it or one of its pictures is not there ({error})"]
    except (ValueError, KeyError, pa.ArrowException) as error:
        problems = [f"{type(error).__name__}: {error}"]
    return [f"{commit.object}: {problem}" for problem in problems]


def _row_problems(commit: Commit, rows: pa.Table, fingerprint: str) -> list[str]:
    """Every planned image is one row or one reject, under the id that follows from the corpus, class and index."""
    ids = {
        index: image_id(fingerprint, commit.class_name, index)
        for index in range(commit.first, commit.first + commit.count)
    }
    problems = []
    if rows.num_rows != commit.rows:
        problems.append(f"{rows.num_rows} rows, recorded are {commit.rows}")
    cells = rows.select(ID_COLUMNS).to_pylist() if rows.num_rows else []
    wrong = [row["image_id"] for row in cells if ids.get(row["index"]) != row["image_id"]]
    if wrong:
        problems.append(f"{len(wrong)} ids do not follow from the corpus, such as {wrong[0]}")
    listed = [row["image_id"] for row in cells] + [reject for reject, _ in commit.rejects]
    if sorted(listed) != sorted(ids.values()):
        lost, extra = set(ids.values()) - set(listed), len(listed) - len(set(listed))
        problems.append(f"{len(lost)} planned images are neither rows nor rejects, {extra} ids are there twice")
    kept = {one.image_id: one.kept for one in commit.redrawn if one.kept is not None}
    if {row["image_id"]: row["attempt"] for row in cells if row["attempt"]} != kept:
        problems.append("its rows' attempts are not those that its record says the class gate kept")
    return problems


def _first_draw_problems(commit: Commit, rows: pa.Table, fingerprint: str) -> list[str]:
    """The rejected first draws are of images that the record says were redrawn, each once."""
    cells = rows.select(ID_COLUMNS).to_pylist()
    recorded = commit.first_draws.indices if commit.first_draws else ()
    ids = [image_id(fingerprint, commit.class_name, index) for index in recorded]
    found = [(row["image_id"], row["index"], row["attempt"]) for row in cells]
    sound = found == [(name, index, 0) for name, index in zip(ids, recorded)]
    if sound and len(set(ids)) == len(ids) and set(ids) <= {one.image_id for one in commit.redrawn}:
        return []
    return ["its rows are not the first draws that its record says were rejected"]


def _manifest_problems(store: Store, digest: str) -> list[str]:
    """Where the manifest's rows, the digest it states and the records do not come to one digest."""
    data = store.read_or_none(MANIFEST)
    if data is None:
        return [f"{MANIFEST}: not there: the run is not finished"]
    try:
        table = pq.read_table(pa.BufferReader(data))
        stated = json.loads((table.schema.metadata or {})[b"busray"])["digest"]
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        return [f"{MANIFEST}: cannot be read: {error}"]
    counted = fingerprint_rows(row for batch in table.to_batches(1024) for row in batch.to_pylist())
    problems = []
    if counted != stated:
        problems.append(f"{MANIFEST}: its rows have the digest {counted}, it states {stated}")
    if stated != digest:
        problems.append(f"{MANIFEST}: it states the digest {stated}, the records have {digest}")
    return problems
