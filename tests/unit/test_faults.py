"""Faults: a bad shard is quarantined, a bad place avoided, and one is not taken for the other."""

from collections.abc import Callable

from busray.faults import DEATHS_OF_A_SHARD, FAILURES_OF_A_PLACE, MOST_STARTS, Faults, Place

GOOD: Place = ("node-a", ("0",))
BAD: Place = ("node-b", ("0",))
ECC = "CUDA error: uncorrectable ECC error"


def alive(node: str) -> bool:
    return True


def drawing(faults: Faults, shard: str, place: Place, dies: Callable[[str, Place], bool]) -> str:
    """What becomes of a shard that one actor gets in this place: drawn, leave or quarantine."""
    actor = f"actor in {place}"
    while True:
        order, _ = faults.begin(shard, actor, place, alive)
        if order != "draw":
            return order
        if not dies(shard, place):
            faults.drawn(shard)
            return "drawn"
        faults.is_failing(shard, place, ECC)


def fleet(*places: Place) -> Faults:
    faults = Faults()
    for number, place in enumerate(places):
        assert faults.load(f"{number}", place, alive) == "load"
        faults.loaded(f"{number}", place)
    return faults


def test_a_shard_that_kills_its_workers_is_handed_back_and_then_quarantined_with_the_reason() -> None:
    faults = fleet(GOOD, BAD)
    kills = lambda shard, place: shard == "poison"  # noqa: E731
    assert drawing(faults, "poison", GOOD, kills) == "leave"
    assert drawing(faults, "sound", GOOD, kills) == "drawn"
    assert drawing(faults, "poison", BAD, kills) == "quarantine"
    assert faults.begin("poison", "x", BAD, alive) == (
        "quarantine",
        f"its workers failed {DEATHS_OF_A_SHARD} times, at last so: {ECC}",
    )
    assert not faults.avoided and faults.starts["poison"] == DEATHS_OF_A_SHARD


def test_a_place_that_fails_is_avoided_after_its_second_shard_and_both_are_drawn_elsewhere() -> None:
    faults = fleet(GOOD, BAD)
    fails = lambda shard, place: place == BAD  # noqa: E731
    assert drawing(faults, "one", BAD, fails) == "leave"
    assert drawing(faults, "two", BAD, fails) == "hold"
    assert faults.avoided == {BAD: ECC} and faults.starts.total() == FAILURES_OF_A_PLACE
    assert faults.load("new", BAD, alive) == "wait"
    assert faults.begin("three", "x", BAD, alive) == ("hold", ECC)
    assert [drawing(faults, shard, GOOD, fails) for shard in ("one", "two", "three")] == ["drawn"] * 3


def test_the_failures_of_an_avoided_place_are_not_charged_to_its_shards() -> None:
    faults = fleet(GOOD, BAD)
    fails = lambda shard, place: place == BAD  # noqa: E731
    for shard in ("one", "two"):
        drawing(faults, shard, BAD, fails)
    dies_twice = iter([True, False])
    assert drawing(faults, "one", GOOD, lambda shard, place: next(dies_twice)) == "drawn"


def test_success_between_failures_keeps_a_place() -> None:
    faults = fleet(GOOD, BAD)
    for number in range(10):
        once = iter([True, False])
        assert drawing(faults, f"{number}", BAD, lambda shard, place, once=once: next(once)) == "drawn"
    assert not faults.avoided and faults.hopeless() is None


def test_a_lost_node_is_no_fault_of_its_shard_or_its_place() -> None:
    faults = fleet(GOOD, BAD)
    gone = lambda node: node != "node-b"  # noqa: E731
    faults.has_drawn = True
    for number in range(MOST_STARTS):
        assert faults.begin("unlucky", f"{number}", BAD, gone)[0] == "draw"
    assert faults.begin("unlucky", "last", BAD, gone)[0] == "quarantine", "but not for ever"
    assert not faults.avoided and faults.in_a_row == 0


def test_no_shard_is_quarantined_before_any_was_drawn() -> None:
    faults = fleet(GOOD)
    drawing(faults, "one", GOOD, lambda shard, place: True)
    assert drawing(faults, "one", GOOD, lambda shard, place: True) == "raise"


def test_the_only_place_is_not_avoided_for_its_shards() -> None:
    faults = fleet(BAD)
    kills = lambda shard, place: shard in ("one", "two")  # noqa: E731
    first = [drawing(faults, shard, BAD, kills) for shard in ("one", "two", "three")]
    assert first == ["leave", "leave", "drawn"]
    assert [drawing(faults, shard, BAD, kills) for shard in ("one", "two")] == ["quarantine", "quarantine"]


def test_a_place_whose_workers_cannot_load_is_avoided_and_the_stage_ends_where_none_is_left() -> None:
    faults = fleet(GOOD)
    for _ in range(FAILURES_OF_A_PLACE):
        assert faults.load("b", BAD, alive) == "load"
        assert faults.cannot_load("b", BAD, "No space left on device") == "again"
    assert faults.load("b", BAD, alive) == "wait"
    alone = Faults()
    answers = []
    for _ in range(FAILURES_OF_A_PLACE):
        alone.load("b", BAD, alive)
        answers.append(alone.cannot_load("b", BAD, "No space left on device"))
    assert answers == ["again", "again", "raise"]


def test_processes_that_die_while_they_load_are_counted_to_their_place() -> None:
    faults = fleet(GOOD)
    orders = [faults.load("b", BAD, alive) for _ in range(FAILURES_OF_A_PLACE + 1)]
    assert orders == ["load"] * FAILURES_OF_A_PLACE + ["wait"]


def test_failures_everywhere_without_any_success_are_hopeless() -> None:
    places = [(f"node-{number}", ()) for number in range(4)]
    faults = fleet(*places)
    number = 0
    while faults.hopeless() is None:
        number += 1
        assert number < 50
        drawing(faults, f"{number}", places[number % 4], lambda shard, place: faults.hopeless() is None)
    last = faults.hopeless()
    assert last is not None and last.what == ECC


def test_a_worker_that_comes_up_again_is_charged_for_the_shard_that_it_drew_last() -> None:
    faults = fleet(GOOD, BAD)
    for shard in ("committing", "drawing"):
        faults.begin(shard, "actor", BAD, alive)
    assert faults.is_busy
    assert faults.load("actor", BAD, alive) == "load"
    faults.loaded("actor", BAD)
    assert not faults.is_busy and faults.in_a_row == 1
    assert faults.begin("committing", "actor", BAD, alive)[0] == "draw"


def test_a_worker_waits_in_a_place_where_it_failed_and_holds_no_others_up() -> None:
    faults = fleet(GOOD, BAD)
    for shard in ("one", "one", "two"):
        faults.begin(shard, "actor", BAD, alive)
        faults.is_failing(shard, BAD, ECC)
        order = faults.load("actor", BAD, alive)
        faults.loaded("actor", BAD)
    assert order == "wait" and not faults.is_busy
