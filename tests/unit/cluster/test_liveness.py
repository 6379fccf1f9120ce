"""What the Board takes for a move, and how often a Pulse tells it. No Ray here: the actor's class alone."""

from types import SimpleNamespace
from typing import Any

import pytest

from busray.cluster import liveness as board
from busray.cluster.liveness import BEAT_SECONDS, Pulse

ONE, TWO = ("node", 1), ("node", 2)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(board, "time", clock)
    return clock


@pytest.fixture
def plain(clock: Clock) -> Any:
    """A Board that is no actor."""
    actor: Any = board.Board
    return actor.__ray_metadata__.modified_class()


def moves(plain: Any, act: Any) -> bool:
    before = plain.moved()
    act()
    return plain.moved() != before


def test_a_beat_of_a_worker_at_work_moves_and_its_first_one_does_not(plain: Any) -> None:
    assert not moves(plain, lambda: plain.add(0, ONE))
    assert moves(plain, lambda: plain.add(0, ONE))
    assert plain.read() == 0
    assert not moves(plain, lambda: plain.begin("a shard", TWO))
    assert moves(plain, lambda: plain.add(0, TWO))


def test_a_count_moves_and_so_does_one_that_is_taken_back_or_put(plain: Any) -> None:
    assert moves(plain, lambda: plain.add(3, ONE))
    assert moves(plain, lambda: plain.add(-3))
    assert moves(plain, lambda: plain.put(7, TWO))
    assert not moves(plain, lambda: plain.put(7))


def test_work_that_is_done_moves_and_rest_from_none_does_not(plain: Any) -> None:
    plain.add(0, ONE)
    assert moves(plain, lambda: plain.rest(ONE))
    assert not moves(plain, lambda: plain.rest(ONE))
    assert not moves(plain, lambda: plain.add(0, ONE))


def test_workers_that_begin_one_after_the_other_and_are_never_heard_of_again_move_nothing(
    plain: Any, clock: Clock
) -> None:
    for pid in range(9):
        assert not moves(plain, lambda pid=pid: plain.begin("a shard", ("node", pid)))
        clock.now += 11
        assert plain.silent(10) == [("node", pid)]


def test_a_worker_that_others_wait_for_beats_for_them_but_not_for_those_at_rest(plain: Any, clock: Clock) -> None:
    for worker in (ONE, TWO, ("node", 3)):
        plain.add(0, worker)
    plain.rest(("node", 3))
    clock.now += 8
    plain.add(0, ONE, for_all=True)
    clock.now += 8
    assert plain.silent(10) == []
    plain.add(0, ONE)
    clock.now += 3
    assert plain.silent(10) == [TWO]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    monkeypatch.setattr(board, "this_worker", lambda: ONE)
    return []


@pytest.fixture
def beat(told: list[tuple[Any, ...]], clock: Clock) -> Pulse:
    def telling(name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: told.append((name, *arguments)))

    return Pulse(SimpleNamespace(add=telling("add"), rest=telling("rest")))


def test_a_pulse_tells_at_once_and_then_once_a_while_however_often_it_is_called(
    beat: Pulse, told: list[tuple[Any, ...]], clock: Clock
) -> None:
    for _ in range(1000):
        beat()
        clock.now += BEAT_SECONDS / 100
    assert told[0] == ("add", 0, ONE, False)
    assert 9 <= len(told) <= 10


def test_counts_add_up_until_they_are_told_and_none_is_lost_at_rest(
    beat: Pulse, told: list[tuple[Any, ...]], clock: Clock
) -> None:
    for _ in range(3):
        beat(1)
    clock.now += BEAT_SECONDS
    beat(1, for_all=True)
    beat(1)
    beat.rest()
    assert [entry[1] for entry in told if entry[0] == "add"] == [1, 3, 1]
    assert told[1] == ("add", 3, ONE, True) and told[-1] == ("rest", ONE)
    beat()
    assert told[-1] == ("add", 0, ONE, False), "the first beat of the next work came too late"
