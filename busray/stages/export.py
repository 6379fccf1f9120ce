"""`busray export`: a run's released images as files of other programs' formats, verified."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from busray.config import Config
from busray.corpus import export
from busray.corpus.columns import FlatColumns, class_names, flat_columns
from busray.corpus.commit import each_commit
from busray.corpus.export import ExportPlan
from busray.corpus.export_files import data_files
from busray.corpus.manifest import published_rows
from busray.corpus.record import read_run
from busray.corpus.secondary_capture import uid
from busray.identity import fingerprint_rows
from busray.layout import CARD, DATASET, REPORT_JSON
from busray.records import Commit, DataSet, Shard, StoppedForGood, UserError, json_object, to_json
from busray.report.card import MARK, data_card, header
from busray.report.hub import image_columns, split_files, tar_columns
from busray.stages.card import with_statements
from busray.storage import Store
from busray.workers import Report

Json = dict[str, Any]
INDEX = {"imagefolder": "train/metadata.parquet", "dicom": "images.csv"}
"""Format -> the file with a row for each image, where images are files of their own."""


@dataclass(frozen=True)
class Exported:
    """A verified export."""

    images: dict[str, int]  # by class
    files: int
    size: int  # bytes of these files


def export_run(store: Store, config: Config, target: Store, to: str, seed: int, report: Report) -> Exported:
    """Export, or go on with it, and verify it. UserError where the run is not finished or other
    things lie in the target; StoppedForGood where the verification finds a difference."""
    _refuse_each_other(store, target)
    shards, record = list(published_rows(store).values()), read_run(store)
    if not shards or record is None:
        raise UserError(f"{store.url}: its corpus is not finished: finish it with `busray run CONFIG` first")
    commits = list(each_commit(store, [Shard(row["class"], row["first"], row["count"]) for row in shards]))
    for row, commit in zip(shards, commits, strict=True):
        if (row["digest"], row["rows"]) != (commit.digest, commit.rows):
            raise store.damaged(commit.object, "the manifest and the shard's record do not agree")
    columns = flat_columns(config, store.read_record(DATASET, DataSet.from_json), class_names(shards))
    kept = 0.5 if config.corpus.keep_txt2img and config.refine else 1.0
    manifest = fingerprint_rows(shards)
    plan = export.plan_export(commits, record["fingerprint"], manifest, to, seed, kept)
    plan = export.claim_target(target, plan)
    _write(store, target, plan, commits, columns, report)
    _put_index(target, plan, columns)
    found = _verified(target, plan, commits, report)
    _put_card(store, target, config, plan, shards, columns, found)
    return found


def _refuse_each_other(store: Store, target: Store) -> None:
    here, there = f"{store.url}/", f"{target.url}/"
    if here.startswith(there) or there.startswith(here):
        raise UserError(f"{target.url}: an export lies outside its run {store.url}: name another folder")


def _write(
    store: Store,
    target: Store,
    plan: ExportPlan,
    commits: Sequence[Commit],
    columns: FlatColumns,
    report: Report,
) -> None:
    done, total = 0, sum(commit.rows for commit in commits)
    report("export", 0, total)
    for batch in range(len(plan.batches)):
        record = export.read_batch(target, batch)
        if record is None:
            record = export.write_batch(store, target, plan, batch, commits, columns)
        done += record.images
        report("export", done, total)


def _put_index(target: Store, plan: ExportPlan, columns: FlatColumns) -> None:
    """The file with a row for each image, made of those of the batches."""
    if plan.to not in INDEX:
        return
    rows: list[Json] = []
    for batch in range(len(plan.batches)):
        rows += pq.read_table(io.BytesIO(target.read(export.rows_key(batch)))).to_pylist()
    if plan.to == "imagefolder":
        named = [{"file_name": f"{row['class_name']}/{row['image_id']}.png", **row} for row in rows]
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(named, schema=columns.schema(file_name=True)), buffer)
        target.replace(INDEX[plan.to], buffer.getvalue())
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, ["file_name", "SOPInstanceUID", *columns.fields()])
    writer.writeheader()
    for row in rows:
        instance = uid(plan.fingerprint, row["image_id"], "image")
        name = f"{row['class_name']}/{row['image_id']}.dcm"
        writer.writerow({"file_name": name, "SOPInstanceUID": instance, **row})
    target.replace(INDEX[plan.to], text.getvalue().encode())


def _verified(target: Store, plan: ExportPlan, commits: Sequence[Commit], report: Report) -> Exported:
    """Read everything that was written, and compare it with the corpus's records."""
    expected = {name: class_name for class_name, name in export.ids_of(commits, plan.fingerprint)}
    found = export.Found()
    for batch in range(len(plan.batches)):
        export.look_at(target, plan, batch, found)
        report("verify export", len(found.ids), len(expected))
    problems, ids = found.problems, set(found.ids)
    lost, extra = len(expected.keys() - ids), len(found.ids) - len(ids & expected.keys())
    if lost or extra:
        problems.append(f"{lost} released images are not there, {extra} are there that should not be")
    own = {*found.files, CARD, *INDEX.values()}
    keys = [key for key in target.list() if not key.startswith(f"{export.RECORDS}/")]
    strangers = [key for key in keys if key not in own]
    if strangers and not problems:
        problems.append(f"{len(strangers)} files are no part of the export, such as {strangers[0]}")
    if problems:
        raise StoppedForGood(
            f"{target.url}: the export is not what was recorded: {'; '.join(problems[:5])}",
            "delete this folder, and export again",
        )
    counts = dict(sorted(Counter(expected.values()).items()))
    result = {"images": counts, "files": len(found.files), "bytes": found.size}
    target.replace(export.VERIFIED, to_json({**result, "ids": export.fingerprint_of(found.ids)}))
    return Exported(counts, len(found.files), found.size)


def _put_card(
    store: Store,
    target: Store,
    config: Config,
    plan: ExportPlan,
    shards: Sequence[Mapping[str, Any]],
    columns: FlatColumns,
    found: Exported,
) -> None:
    """README.md: the run's card, with a header for the files that lie here."""
    config, images = with_statements(store, config), sum(found.images.values())
    files: Json = {}
    if paths := data_files(plan.to):
        there = (tar_columns if plan.to == "webdataset" else image_columns)(columns.fields(), columns.classes)
        files = split_files(paths, there, images, found.size)
    described, own = store.read_record_or_none(REPORT_JSON, json_object), store.read_or_none(CARD)
    if described is not None:
        card = data_card(described, config, shards, plan.manifest, files)
    else:
        text = own.decode().split("---\n", 2)[2] if own and MARK.encode() in own else f"# {config.name}\n\n{MARK}\n"
        card = header(config, images, files) + text
    target.replace(CARD, card.encode())
