"""Fine-tuning's state in the run's store: checkpoints to resume from, and the finished adapters.

Bytes are put first, then a create-only record that names their digest. A reader takes the newest
record whose digest matches its bytes. The first committed adapters of a run win.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from busray.identity import sha256_bytes
from busray.layout import ADAPTERS, how_to_mend
from busray.records import AdaptersRecord, Damaged, to_json
from busray.storage import Store

FOLDER = "finetune/checkpoints"


@dataclass(frozen=True)
class TrainingLog:
    """The course of a training, over all its starts."""

    loss: tuple[tuple[int, float], ...] = ()  # (step, mean loss since the previous entry)
    validation: tuple[tuple[int, float], ...] = ()  # (step, validation loss)
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
    store.put_once(key, checkpoint.state)
    record = {"step": checkpoint.step, "object": key, "digest": digest, **asdict(checkpoint.log)}
    store.put_once(f"{name}.json", to_json(record))


def newest_checkpoint(store: Store) -> Checkpoint | None:
    """The checkpoint of the highest step whose record and bytes are whole; None without one."""
    for key in sorted(store.list(FOLDER), reverse=True):
        if not key.endswith(".json"):
            continue
        try:
            record = json.loads(store.read(key))
            state = store.read(record["object"])
        except (ValueError, KeyError, FileNotFoundError):
            continue  # an interrupted write: an older checkpoint will do
        if sha256_bytes(state) == record["digest"]:
            loss, validation, workers = record["loss"], record["validation"], record["workers"]
            log = TrainingLog(_pairs(loss), _pairs(validation), _pairs(workers))
            return Checkpoint(record["step"], state, log)
    return None


def _pairs(values: list[list[Any]]) -> tuple[Any, ...]:
    return tuple(map(tuple, values))  # JSON has no tuples


def commit_adapters(store: Store, files: dict[str, bytes], record: dict[str, Any]) -> AdaptersRecord:
    """Put the adapters' files, then the record that makes them the run's.

    Returns the stored record, which is another process's where that was first. record: `sha256` of
    the adapters and whatever else describes them; `folder` and `files` are added.
    """
    folder = f"adapters/{record['sha256'][:16]}"
    for name, data in files.items():
        store.put_once(f"{folder}/{name}", data)
    # An earlier try may have put the same tensors here, with another order of their header.
    digests = {name: sha256_bytes(store.read(f"{folder}/{name}")) for name in files}
    store.put_once(ADAPTERS, to_json({**record, "folder": folder, "files": digests}))
    winner = read_adapters(store)
    assert winner is not None
    return winner


def read_adapters(store: Store) -> AdaptersRecord | None:
    return store.read_record_or_none(ADAPTERS, AdaptersRecord.from_json)


def fetch_adapters(store: Store, folder: Path) -> Path:
    """Copy the run's adapters into a local folder, which is returned.

    FileNotFoundError where there are none yet, ValueError for a file of another digest.
    """
    record = read_adapters(store)
    if record is None:
        raise FileNotFoundError(f"{store.url} has no adapters yet")
    folder.mkdir(parents=True, exist_ok=True)
    for name, digest in record.files.items():
        data = store.read(f"{record.folder}/{name}")
        if sha256_bytes(data) != digest:
            key = f"{record.folder}/{name}"
            raise Damaged(f"{store.url}/{key} is not what adapters.json records", how_to_mend(key))
        (folder / name).write_bytes(data)
    return folder
