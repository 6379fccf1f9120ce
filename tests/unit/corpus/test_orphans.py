"""gc: objects that lost against another driver's go, and everything else stays."""

from pathlib import Path

import pytest

from busray.cli import main
from busray.corpus.commit import read_rows
from busray.corpus.manifest import orphans
from busray.corpus.plan import read_segments
from busray.layout import DATA_FOLDERS, commit_key
from busray.records import Shard
from busray.storage import Store
from tests.support.fake_corpus import FIRST, commit, draw


def gc(store: Store, capsys: pytest.CaptureFixture, *flags: str) -> list[str]:
    capsys.readouterr()
    assert main(["gc", store.url, *flags]) == 0
    return capsys.readouterr().out.split()


def stored(store: Store) -> set[str]:
    return {key for folder in DATA_FOLDERS for key in store.list(folder)}


def test_two_drivers_with_different_bytes_leave_one_live_object_and_one_orphan(
    store: Store, capsys: pytest.CaptureFixture
) -> None:
    won = commit(store, FIRST)
    assert commit(Store(store.url), FIRST, shade=9) == won
    (orphan,) = gc(store, capsys)
    assert set(store.list("data")) == {won.object, orphan}
    assert gc(store, capsys, "--delete") == [orphan]
    assert list(store.list("data")) == [won.object]
    assert read_rows(store, won).num_rows == 4
    assert gc(store, capsys, "--delete") == []


def test_live_pictures_are_kept_and_the_losers_pictures_go(store: Store, capsys: pytest.CaptureFixture) -> None:
    won = commit(store, FIRST, format="png")
    live = stored(store)
    commit(store, FIRST, shade=9, format="png")
    lost = stored(store) - live
    assert len(live) == 9 and len(lost) == 5  # four pictures before refinement are the same in both
    assert set(gc(store, capsys, "--delete")) == lost
    assert stored(store) == live
    assert read_rows(store, won).num_rows == 4


@pytest.mark.parametrize("format", ["parquet", "png"])
def test_what_a_writer_has_in_flight_survives_a_deleting_gc(
    store: Store, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """gc runs at each moment of the writer's work: before and after each of its objects, and
    before its record and its digest."""
    put, moments = Store.put_once, []

    def tidied_around(self: Store, key: str, data: bytes) -> bool:
        moments.append(key)
        assert main(["gc", store.url, "--delete"]) == 0
        return put(self, key, data)

    commit(store, Shard("benign", 4, 2), format=format)
    monkeypatch.setattr(Store, "put_once", tidied_around)
    made = commit(store, FIRST, format=format)
    assert len(moments) == (3 if format == "parquet" else 11)
    assert gc(store, capsys, "--delete") == []
    assert read_rows(store, made).num_rows == 4


def test_a_stalled_writer_that_wakes_after_gc_finds_the_shard_done(
    store: Store, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, stalled = Store.put_once, []

    def stalls_before_its_record(self: Store, key: str, data: bytes) -> bool:
        if key == commit_key(FIRST) and not stalled:
            stalled.append(key)
            commit(Store(store.url), FIRST, shade=9)
            assert len(gc(store, capsys, "--delete")) == 1
        return put(self, key, data)

    monkeypatch.setattr(Store, "put_once", stalls_before_its_record)
    won = commit(store, FIRST)
    assert won.seconds == 9.0
    assert list(store.list("data")) == [won.object]
    assert read_rows(store, won).num_rows == 4


@pytest.mark.parametrize("damage", ["record", "object", "metadata"])
def test_where_it_cannot_be_told_what_is_live_everything_is_kept(
    store: Store, capsys: pytest.CaptureFixture, damage: str
) -> None:
    format = "png" if damage == "metadata" else "parquet"
    won = commit(store, FIRST, format=format)
    commit(store, FIRST, shade=9, format=format)
    if damage == "record":
        (Path(store.url) / commit_key(FIRST)).write_text("{}")
    elif damage == "object":
        (Path(store.url) / won.object).unlink()
        (Path(store.url) / won.object).with_name(f"{FIRST.name}-{'0' * 16}.parquet").write_text("another")
    else:
        (Path(store.url) / won.object).write_text("torn")
    assert gc(store, capsys, "--delete") == []


def test_what_is_not_named_as_busray_names_things_is_kept(store: Store, capsys: pytest.CaptureFixture) -> None:
    commit(store, FIRST)
    for name in ("data/notes.txt", "data/benign/notes.txt", f"data/benign/{FIRST.name}-mine.parquet", "notes.txt"):
        (Path(store.url) / name).write_text("mine")
    assert gc(store, capsys, "--delete") == []


def test_arms_are_tidied_with_their_run(store: Store, capsys: pytest.CaptureFixture) -> None:
    commit(store, FIRST)
    arm = store.sub("arms/lora+ti")
    won = commit(arm, FIRST)
    commit(arm, FIRST, shade=9)
    (orphan,) = gc(store, capsys, "--delete")
    assert orphan.startswith("arms/lora+ti/data/benign/00000000-00004-")
    assert list(arm.list("data")) == [won.object]


def test_gc_reads_only_the_records_of_shards_with_more_than_one_object(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(store, {"benign": 40}, shard_size=2)
    commit(store, Shard("benign", 8, 2), shade=9)
    read, listed, keys, prefixes = Store.read, Store.list, [], []
    monkeypatch.setattr(Store, "read", lambda self, key: keys.append(key) or read(self, key))
    monkeypatch.setattr(Store, "list", lambda self, prefix="": prefixes.append(prefix) or listed(self, prefix))
    assert len(orphans(store)) == 1
    assert keys == [commit_key(Shard("benign", 8, 2))]
    assert sorted(prefixes) == ["commits", "data", "first-draws", "txt2img"]


def test_an_empty_store_has_no_orphans(store: Store) -> None:
    assert orphans(store) == []
    assert read_segments(store) == []
