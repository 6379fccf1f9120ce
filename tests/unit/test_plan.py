"""A plan only grows, its shards follow from it, and what is pending is the plan minus the commits."""

from pathlib import Path

import pytest

from busray.corpus.plan import extend_plan, pending, read_segments, shards
from busray.records import Commit, Execution, Segment, Shard, UserError
from busray.storage import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


def commit(shard: Shard) -> Commit:
    execution = Execution("cpu", "float32", 1, 1, {})
    return Commit(shard.class_name, shard.first, shard.count, "data/x", "d", 1, shard.count, (), execution, 0.0)


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
    assert pending(plan, [commit(s) for s in plan[1:]]) == plan[:1]


def test_a_plan_that_is_refused_for_one_class_is_extended_for_none(store: Store) -> None:
    before = extend_plan(store, {"b": 6, "m": 4}, 4)
    with pytest.raises(UserError, match=r"classes\.m\.images: 3 is below"):
        extend_plan(store, {"b": 9, "m": 3}, 4)
    assert read_segments(store) == before


def test_a_class_without_images_has_no_segment(store: Store) -> None:
    assert extend_plan(store, {"b": 0, "m": 2}, 4) == [Segment("m", 0, 2, 4)]
