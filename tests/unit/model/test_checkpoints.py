"""Training goes on from the newest checkpoint whose bytes hold, and the first committed
adapters win."""

import json
from pathlib import Path

import pytest

from busray.model.checkpoints import (
    FOLDER,
    Checkpoint,
    CheckpointRecord,
    TrainingLog,
    commit_adapters,
    fetch_adapters,
    newest_checkpoint,
    put_checkpoint,
)
from busray.storage import Store


def log(step: int) -> TrainingLog:
    return TrainingLog(loss=((step, 0.5),), validation=((step, 0.25),), distance=((0, 0.75), (step, 0.5)))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


def test_the_newest_checkpoint_comes_back_whole(store: Store) -> None:
    assert newest_checkpoint(store) is None
    for step in (5, 10):
        put_checkpoint(store, Checkpoint(step, bytes([step]) * 100, log(step)))
    assert newest_checkpoint(store) == Checkpoint(10, bytes([10]) * 100, log(10))


def test_a_checkpoint_of_an_older_busray_has_no_distances(store: Store) -> None:
    put_checkpoint(store, Checkpoint(5, b"state", TrainingLog(loss=((5, 0.5),))))
    (key,) = (key for key in store.list(FOLDER) if key.endswith(".json"))
    record = json.loads(store.read(key))
    assert record.pop("distance") == []
    assert CheckpointRecord.from_json(json.dumps(record).encode()).log == TrainingLog(loss=((5, 0.5),))


@pytest.mark.parametrize("damage", ["bytes", "record", "object gone"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(store: Store, damage: str) -> None:
    for step in (5, 10):
        put_checkpoint(store, Checkpoint(step, bytes([step]) * 100, TrainingLog()))
    folder = Path(store.url) / FOLDER
    data = next(folder.glob("00000010-*.safetensors"))
    if damage == "bytes":
        data.write_bytes(b"torn")
    elif damage == "record":
        (folder / "00000010.json").write_text('{"step": 10, "obj')
    else:
        data.unlink()
    newest = newest_checkpoint(store)
    assert newest is not None and newest.step == 5


def test_the_first_committed_adapters_win(store: Store, tmp_path: Path) -> None:
    first = commit_adapters(store, {"a.safetensors": b"first"}, {"sha256": "1" * 64})
    second = commit_adapters(store, {"a.safetensors": b"second"}, {"sha256": "2" * 64})
    assert second == first
    assert (fetch_adapters(store, tmp_path / "local") / "a.safetensors").read_bytes() == b"first"


def test_adapters_that_are_not_what_was_recorded_are_not_used(store: Store, tmp_path: Path) -> None:
    record = commit_adapters(store, {"a.safetensors": b"first"}, {"sha256": "1" * 64})
    (Path(store.url) / record.folder / "a.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"not what adapters\.json records"):
        fetch_adapters(store, tmp_path / "local")


def test_a_repeated_training_whose_files_differ_in_their_header_only_records_what_is_stored(
    store: Store, tmp_path: Path
) -> None:
    commit_adapters(store, {"a.safetensors": b"header one, tensors"}, {"sha256": "1" * 64})
    store.delete("adapters.json")
    commit_adapters(store, {"a.safetensors": b"header two, tensors"}, {"sha256": "1" * 64})
    assert (fetch_adapters(store, tmp_path / "local") / "a.safetensors").read_bytes() == b"header one, tensors"
