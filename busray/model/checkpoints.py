"""Fine-tuning's state in the run's store: checkpoints to resume from, and the finished adapters.

Bytes are put first, then a create-only record that names their digest. A reader takes the newest
record whose digest matches its bytes. The first committed adapters of a run win.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from busray.identity import sha256_bytes
from busray.layout import ADAPTERS
from busray.records import AdaptersRecord, Damaged, to_json
from busray.storage import Store

FOLDER = "finetune/checkpoints"


@dataclass(frozen=True)
class TrainingLog:
    """The course of a training, over all its starts."""

    loss: tuple[tuple[int, float], ...] = ()  # (step, mean loss since the previous entry)
    validation: tuple[tuple[int, float], ...] = ()  # (step, validation loss)
    # (step, distance of drawn images to the val images); step 0 is the base before training
    distance: tuple[tuple[int, float], ...] = ()
    # (steps done, number of workers from then on), one entry a start
    workers: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """What a training resumes from."""

    step: int  # optimiser steps done
    state: bytes  # from FineTuner.state_bytes
    log: TrainingLog


def put_checkpoint(store: Store, checkpoint: Checkpoint) -> None:
    """Put the state under its digest, then the record that names it."""
    digest = sha256_bytes(checkpoint.state)
    name = f"{FOLDER}/{checkpoint.step:08d}"
    key = f"{name}-{digest[:16]}.safetensors"
    store.put_named(key, checkpoint.state)
    record = {"step": checkpoint.step, "object": key, "digest": digest, **asdict(checkpoint.log)}
    store.put_checked(f"{name}.json", to_json(record))


def newest_checkpoint(store: Store) -> Checkpoint | None:
    """The checkpoint of the highest step whose record and bytes are whole; None without one."""
    for key in sorted(store.list(FOLDER), reverse=True):
        if not key.endswith(".json"):
            continue
        with suppress(Damaged, FileNotFoundError):  # lost or damaged: an older checkpoint will do
            return _read_checkpoint(store, key)
    return None


def _read_checkpoint(store: Store, key: str) -> Checkpoint:
    """The checkpoint of this record. Damaged, FileNotFoundError."""
    record: CheckpointRecord = store.read_record(key, CheckpointRecord.from_json)
    state = store.read(record.object)
    if sha256_bytes(state) != record.digest:
        raise store.damaged(record.object, f"it is not what {key} records")
    return Checkpoint(record.step, state, record.log)


@dataclass(frozen=True)
class CheckpointRecord:
    """The create-only record of a checkpoint."""

    step: int
    object: str  # key of the state
    digest: str  # SHA-256 of the state's bytes
    log: TrainingLog

    @staticmethod
    def from_json(data: bytes) -> "CheckpointRecord":
        value = json.loads(data)
        log = TrainingLog(
            loss=_pairs(value["loss"]),
            validation=_pairs(value["validation"]),
            distance=_pairs(value.get("distance", [])),  # an older busray measured none
            workers=_pairs(value["workers"]),
        )
        return CheckpointRecord(int(value["step"]), str(value["object"]), str(value["digest"]), log)


def _pairs(values: list[list[Any]]) -> tuple[Any, ...]:
    return tuple(map(tuple, values))  # JSON has no tuples


def commit_adapters(store: Store, files: dict[str, bytes], record: dict[str, Any]) -> AdaptersRecord:
    """Put the adapters' files, then the record that makes them the run's.

    Returns the stored record, which is another process's where that was first. record: `sha256` of
    the adapters and whatever else describes them; `folder` and `files` are added. Damaged where an
    earlier try's files are not what it put.
    """
    folder = f"adapters/{record['sha256'][:16]}"
    for name, data in files.items():
        store.put_checked(f"{folder}/{name}", data)
    # An earlier try may have put the same tensors here, with another order of their header.
    digests = {name: sha256_bytes(store.read_checked(f"{folder}/{name}")) for name in files}
    store.put_checked(ADAPTERS, to_json({**record, "folder": folder, "files": digests}))
    winner = read_adapters(store)
    assert winner is not None
    return winner


def read_adapters(store: Store) -> AdaptersRecord | None:
    """The record of a run's adapters; None where it has none yet. Damaged."""
    return store.read_record_or_none(ADAPTERS, AdaptersRecord.from_json)


def read_adapter_files(store: Store, record: AdaptersRecord) -> dict[str, bytes]:
    """file -> bytes of a run's adapters. Damaged where one is lost, or not as it was recorded."""
    files = {}
    for name, digest in record.files.items():
        key = f"{record.folder}/{name}"
        data = store.read_or_none(key)
        if data is None:
            raise store.damaged(key, f"it is not there, though {ADAPTERS} records it")
        if sha256_bytes(data) != digest:
            raise store.damaged(key, f"it is not what {ADAPTERS} records")
        files[name] = data
    return files


def fetch_adapters(store: Store, folder: Path) -> Path:
    """Copy the run's adapters into a local folder, which is returned.

    FileNotFoundError where there are none yet, Damaged for a file of another digest.
    """
    record = read_adapters(store)
    if record is None:
        raise FileNotFoundError(f"{store.url} has no adapters yet")
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in read_adapter_files(store, record).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return folder
