"""A plan only grows, its shards follow from it, and what is pending is the plan minus the
commits."""

from pathlib import Path

import pytest

from busray.corpus.plan import extend_plan, pending, read_segments, shards
from busray.layout import commit_key, committed_shard, data_key, data_shard, png_prefix, txt2img_prefix
from busray.records import Segment, Shard, UserError
from busray.storage import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


def test_shards_cover_a_class_once_and_never_cross_a_segment() -> None:
    plan = shards([Segment("b", 0, 10, 4), Segment("m", 0, 3, 4), Segment("b", 10, 5, 4)])
    assert [s.count for s in plan if s.class_name == "b"] == [4, 4, 2, 4, 1]
    covered = [i for s in plan if s.class_name == "b" for i in range(s.first, s.first + s.count)]
    assert covered == list(range(15))


def test_growing_appends_a_segment_and_keeps_the_shards_there_were(store: Store) -> None:
    first = shards(extend_plan(store, {"b": 6, "m": 4}, shard_size=4))
    second = shards(extend_plan(store, {"b": 9, "m": 4}, shard_size=3))
    assert second[: len(first)] == first
    assert second[len(first) :] == [Shard("b", 6, 3)]
    assert read_segments(store) == [Segment("b", 0, 6, 4), Segment("m", 0, 4, 4), Segment("b", 6, 3, 3)]


def test_the_same_plan_again_appends_nothing(store: Store) -> None:
    before = extend_plan(store, {"b": 6}, 4)
    assert extend_plan(store, {"b": 6}, 2) == before


def test_lowering_is_refused_by_name(store: Store) -> None:
    extend_plan(store, {"b": 6}, 4)
    with pytest.raises(UserError, match=r"classes\.b\.images: 5 is below the 6 already planned"):
        extend_plan(store, {"b": 5}, 4)


def test_what_was_planned_is_kept_where_fewer_will_do(store: Store) -> None:
    extend_plan(store, {"b": 6, "m": 4}, 4)
    kept = [Segment("b", 0, 6, 4), Segment("m", 0, 4, 4)]
    assert extend_plan(store, {"b": 5, "m": 4}, 4, never_shrink=True) == kept
    assert extend_plan(store, {"b": 5, "m": 7}, 4, never_shrink=True) == [*kept, Segment("m", 4, 3, 4)]


def test_two_drivers_that_plan_at_once_end_with_one_plan(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put, raced = Store.put_once, []

    def slow(self: Store, key: str, data: bytes) -> bool:
        if not raced:
            raced.append(key)
            extend_plan(Store(self.url), {"b": 6}, 4)
        return put(self, key, data)

    monkeypatch.setattr(Store, "put_once", slow)
    assert extend_plan(store, {"b": 6}, 4) == [Segment("b", 0, 6, 4)]
    assert raced and read_segments(store) == [Segment("b", 0, 6, 4)]


def test_what_is_pending_takes_the_classes_in_turn() -> None:
    plan = shards([Segment("b", 0, 3, 1), Segment("m", 0, 2, 1)])
    assert [s.class_name for s in pending(plan, [])] == ["b", "m", "b", "m", "b"]
    assert pending(plan, plan[1:]) == plan[:1]


def test_a_plan_that_is_refused_for_one_class_is_extended_for_none(store: Store) -> None:
    before = extend_plan(store, {"b": 6, "m": 4}, 4)
    with pytest.raises(UserError, match=r"classes\.m\.images: 3 is below"):
        extend_plan(store, {"b": 9, "m": 3}, 4)
    assert read_segments(store) == before


def test_a_class_without_images_has_no_segment(store: Store) -> None:
    assert extend_plan(store, {"b": 0, "m": 2}, 4) == [Segment("m", 0, 2, 4)]


@pytest.mark.parametrize("shard", [Shard("b", 0, 1), Shard("a-b_1.x", 123_456_789, 100_000), Shard("b", 4096, 256)])
def test_a_shard_is_told_from_the_key_of_its_record_and_of_its_objects(shard: Shard) -> None:
    assert committed_shard(commit_key(shard)) == shard
    assert data_shard(data_key(shard, "d" * 64, ".parquet")) == shard
    assert data_shard(data_key(shard, "d" * 64, ".jsonl")) == shard
    assert data_shard(f"{png_prefix(shard)}/f-{shard.class_name}-00000000.txt2img-{'d' * 16}.png") == shard
    assert data_shard(f"{txt2img_prefix(shard)}/f-{shard.class_name}-00000000.txt2img-{'d' * 16}.png") == shard


@pytest.mark.parametrize(
    "key",
    [
        "commits/b/00000000-00004.json.bak",
        "commits/b/0-4.json",
        "commits/b/00000000-0004.json",
        "commits/b/000000000-00004.json",
        "commits/b/c/00000000-00004.json",
        "commits/b/-0000001-00004.json",
        "commits/b/٠0000000-00004.json",
        "commits/notes.txt",
    ],
)
def test_a_key_that_is_no_records_is_refused_by_name(key: str) -> None:
    with pytest.raises(ValueError, match="is no commit record's key"):
        committed_shard(key)


@pytest.mark.parametrize("name", ["notes.txt", "0-4-" + "d" * 16 + ".parquet", "00000000-00004-short.parquet"])
def test_what_busray_does_not_name_so_belongs_to_no_shard(name: str) -> None:
    assert data_shard(f"data/b/{name}") is None
