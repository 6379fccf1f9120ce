"""A shard is done when its record is there: the first record wins, and whatever a fault leaves
behind is not read."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from busray.corpus.commit import commit_shard, committed_shards, find_image, read_commits, read_rows
from busray.corpus.draw import DrawnShard
from busray.corpus.encode import Row
from busray.corpus.manifest import Incomplete, orphans, publish_manifest
from busray.corpus.plan import extend_plan
from busray.layout import DATA_FOLDERS, commit_key
from busray.records import Commit, Computing, ContentBox, Damaged, Execution, ImageSpec, Shard, UserError
from busray.stages.generate import draw_job
from busray.storage import Store
from tests.support.released import finish

SHARD = Shard("benign", 4, 3)
PROVENANCE = {"fingerprint": "f" * 64}
EXECUTION = Execution("cpu", "float32", 2, 1, {"torch": "2"})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


def rows(shade: int = 0, shard: Shard = SHARD) -> list[Row]:
    return [
        Row(
            ImageSpec(f"f-benign-{i:08d}", "benign", i, 0, "a prompt", i, i + 1, ContentBox(0, 0, 8, 8)),
            np.full((8, 8), shade + i, np.uint8),
            np.full((8, 8), 100 + i, np.uint8),
        )
        for i in range(shard.first, shard.first + shard.count)
    ]


def commit(store: Store, made: list[Row], rejects: tuple = (), format: str = "parquet", shard: Shard = SHARD) -> Commit:
    return commit_shard(store, shard, made, rejects, PROVENANCE, EXECUTION, format, 1.5)


@pytest.mark.parametrize("format", ["parquet", "png"])
def test_the_record_names_the_object_by_digest_and_its_rows_come_back(store: Store, format: str) -> None:
    made = commit(store, rows(), format=format)
    assert made.digest[:16] in made.object and store.exists(made.object)
    assert read_commits(store) == [made]
    table = read_rows(store, made)
    assert table.column("index").to_pylist() == [4, 5, 6]
    assert table.column("image").to_pylist()[0]["bytes"].startswith(b"\x89PNG")
    assert read_rows(store, made, columns=["index"]).column_names == ["index"]
    assert made.bytes == sum(len(store.read(key)) for folder in DATA_FOLDERS for key in store.list(folder))


def test_a_shard_whose_images_are_all_quarantined_has_the_columns_of_the_others(tmp_path: Path) -> None:
    job = draw_job(finish(Store(str(tmp_path / "run"))), "cpu", "base+refine")
    full, empty = Shard("benign", 0, 2), Shard("benign", 2, 2)
    picture = np.zeros((8, 8), np.uint8)
    drawn = tuple(Row(spec, picture, picture) for spec in job.recipe.specs(full))
    committed = job.commit(DrawnShard(full, drawn, (), (), (), 2, "cpu", 0.0, Computing("float32")))
    schemas = [read_rows(job.store, made).schema for made in (committed, job.quarantine(empty, "its workers died"))]
    assert schemas[0].equals(schemas[1], check_metadata=True)
    assert {"image_txt2img", "caption"} <= set(schemas[1].names)


@pytest.mark.parametrize("format", ["parquet", "png"])
def test_the_first_record_wins_and_the_losers_objects_are_orphans(store: Store, format: str) -> None:
    first = commit(store, rows(), format=format)
    assert orphans(store) == []
    assert commit(store, rows(shade=50), format=format) == first
    left = orphans(store)
    assert left and not set(left) & {first.object}
    assert read_rows(store, read_commits(store)[0]).column("image").to_pylist()[0]["bytes"] is not None
    kept = {key for folder in DATA_FOLDERS for key in store.list(folder)} - set(left)
    assert len(kept) == (1 if format == "parquet" else 7)


def test_the_same_shard_committed_twice_leaves_one_object(store: Store) -> None:
    assert commit(store, rows()) == commit(store, rows())
    assert len(list(store.list("data"))) == 1


def test_a_worker_that_dies_before_its_record_leaves_nothing_that_is_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Store.put_once

    def dies(self: Store, key: str, data: bytes) -> bool:
        if key == commit_key(SHARD):
            raise ConnectionError("the node went away")
        return put(self, key, data)

    monkeypatch.setattr(Store, "put_once", dies)
    with pytest.raises(ConnectionError):
        commit(store, rows(shade=9))
    assert len(list(store.list("data"))) == 1
    assert read_commits(store) == []
    assert orphans(store) == [], "its record may still be in flight"
    monkeypatch.setattr(Store, "put_once", put)
    done = commit(store, rows())
    assert read_commits(store) == [done]
    assert len(orphans(store)) == 1


def test_an_object_that_is_not_the_recorded_one_is_refused(store: Store) -> None:
    made = commit(store, rows())
    (Path(store.url) / made.object).write_bytes(b"torn")
    with pytest.raises(ValueError, match="is not what its commit records"):
        read_rows(store, made)


def test_a_picture_that_is_not_the_recorded_one_is_refused(store: Store) -> None:
    made = commit(store, rows(), format="png")
    (picture, *_) = (key for key in store.list("data") if key.endswith(".png"))
    (Path(store.url) / picture).write_bytes(b"torn")
    with pytest.raises(ValueError, match="is not what its shard records"):
        read_rows(store, made)


def test_a_worker_that_dies_among_its_pictures_leaves_no_record(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put, written = Store.put_once, []

    def dies(self: Store, key: str, data: bytes) -> bool:
        if len(written) == 3:
            raise ConnectionError("the node went away")
        written.append(key)
        return put(self, key, data)

    monkeypatch.setattr(Store, "put_once", dies)
    with pytest.raises(ConnectionError):
        commit(store, rows(shade=9), format="png")
    monkeypatch.setattr(Store, "put_once", put)
    assert read_commits(store) == []
    done = commit(store, rows(), format="png")
    assert read_rows(store, done).num_rows == 3
    shared = [key for key in written if ".txt2img-" in key]  # the same picture in both attempts: not left behind
    assert len(shared) == 1
    assert orphans(store) == sorted(set(written) - set(shared))


@pytest.mark.parametrize("text", ["", '{"class_name": "benign"', "[]", '{"class_name": "benign"}'])
def test_a_record_that_does_not_parse_is_an_error_and_not_a_missing_shard(store: Store, text: str) -> None:
    made = commit(store, rows())
    (Path(store.url) / commit_key(made.shard)).write_text(text)
    with pytest.raises(Damaged, match=r"00003\.json is damaged: it is not what was stored"):
        read_commits(store)
    without_digests(store)
    with pytest.raises(Damaged, match=r"00003\.json is damaged: it"):
        read_commits(store)


def without_digests(store: Store) -> None:
    """As an older busray left it."""
    shutil.rmtree(Path(store.url) / "digests")


def test_a_record_that_lost_rows_is_an_error(store: Store) -> None:
    commit(store, rows())
    path = Path(store.url) / commit_key(SHARD)
    path.write_text(json.dumps({**json.loads(path.read_text()), "rows": 2}))
    without_digests(store)
    with pytest.raises(ValueError, match="2 rows and 0 rejects of 3"):
        read_commits(store)


def test_rows_and_rejects_account_for_every_image(store: Store) -> None:
    with pytest.raises(ValueError, match="2 rows and 0 rejects"):
        commit(store, rows()[:2])
    made = commit(store, rows()[:2], (("f-benign-00000006", "not finite"),))
    assert (made.rows, made.rejects) == (2, (("f-benign-00000006", "not finite"),))


def test_an_image_is_found_by_its_id(store: Store) -> None:
    made = commit(store, [rows()[0], rows()[2]], (("f-benign-00000005", "not finite"),))
    found = find_image(store, "f-benign-00000006")
    assert found is not None
    assert (found[0], found[1]["index"]) == (made, 6)
    assert find_image(store, "f-benign-00000005") is None


def test_an_image_is_found_without_reading_the_other_shards(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for first in (0, 3, 6):
        commit(store, rows(shard=Shard("benign", first, 3)), shard=Shard("benign", first, 3))
    read, keys = Store.read, []
    monkeypatch.setattr(Store, "read", lambda self, key: keys.append(key) or read(self, key))
    found = find_image(store, "f-benign-00000004")
    assert found is not None and found[0].first == 3
    assert len(keys) == 2
    assert find_image(store, "f-benign-nonsense") is None


def test_what_is_done_is_told_by_names_and_no_record_is_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(store, rows())
    monkeypatch.setattr(Store, "read", lambda self, key: pytest.fail(f"{key} was read"))
    assert committed_shards(store) == [SHARD]


def test_a_file_that_is_no_record_under_commits_is_an_error_that_names_it(store: Store) -> None:
    commit(store, rows())
    (Path(store.url) / "commits/benign/notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"commits/benign/notes\.txt"):
        committed_shards(store)


def test_a_record_under_another_shards_name_is_an_error(store: Store) -> None:
    commit(store, rows())
    (Path(store.url) / commit_key(SHARD)).rename(Path(store.url) / commit_key(Shard("benign", 7, 3)))
    with pytest.raises(ValueError, match=r"is the record of benign/00000004-00003"):
        read_commits(store)


def broken_row(fault: str) -> Row:
    """A row whose PNG, or whose text, cannot be made."""
    good = rows()[1]
    if fault == "pixels":
        return replace(good, image=np.full((8, 8), np.nan, np.complex64))
    return replace(good, spec=replace(good.spec, prompt="a lone surrogate \ud800"))


@pytest.mark.parametrize("format", ["parquet", "png"])
@pytest.mark.parametrize("fault", ["pixels", "prompt"])
def test_an_image_that_does_not_encode_is_quarantined_and_its_shard_is_done(
    store: Store, format: str, fault: str
) -> None:
    first, _, last = rows()
    made = commit(store, [first, broken_row(fault), last], format=format)
    ((image_id, reason),) = made.rejects
    assert image_id == "f-benign-00000005"
    assert reason.startswith("does not encode: ") and "\n" not in reason
    assert read_rows(store, made).column("index").to_pylist() == [4, 6]
    assert read_commits(store) == [made]
    unhurt = Store(store.url + "-unhurt")
    assert commit(unhurt, [first, last], (made.rejects[0],), format=format).digest == made.digest


def test_a_shard_of_images_that_do_not_encode_is_done_too(store: Store) -> None:
    shard = Shard("benign", 5, 1)
    made = commit(store, [broken_row("pixels")], shard=shard)
    assert (made.rows, len(made.rejects)) == (0, 1)
    assert read_rows(store, made).num_rows == 0


def test_a_failure_that_is_no_images_fault_quarantines_none(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_together(some: list[Row], provenance: dict, **columns: bool) -> bytes:
        if len(some) > 1:
            raise OSError("something else is broken")
        return b"x"

    monkeypatch.setattr("busray.corpus.commit.encode_parquet", fails_together)
    with pytest.raises(OSError, match="something else"):
        commit(store, rows())

    def no_memory(some: list[Row], provenance: dict, **columns: bool) -> bytes:
        raise MemoryError

    monkeypatch.setattr("busray.corpus.commit.encode_parquet", no_memory)
    with pytest.raises(MemoryError):
        commit(store, rows())
    assert committed_shards(store) == []


def test_a_manifest_is_published_only_when_every_planned_shard_is_committed(store: Store) -> None:
    segments = extend_plan(store, {"benign": 6}, shard_size=3)
    first, second = Shard("benign", 0, 3), Shard("benign", 3, 3)
    commit(store, rows(shard=first), shard=first)
    with pytest.raises(Incomplete, match="1 of 2 planned shards are not committed"):
        publish_manifest(store, segments)
    assert not store.exists("manifest.parquet")
    commit(store, rows(shard=second), shard=second)
    digest = publish_manifest(store, segments)
    assert publish_manifest(store, segments) == digest
