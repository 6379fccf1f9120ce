"""What Liveness takes for progress, and how often a Heartbeat sends. Without Ray: the actor's
class alone."""

from types import SimpleNamespace
from typing import Any

import pytest

from busray.cluster import liveness as module
from busray.cluster.liveness import BEAT_SECONDS, Heartbeat

ONE, TWO = ("node", 1, ""), ("node", 2, "")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def liveness(clock: Clock) -> Any:
    """A Liveness that is no actor."""
    actor: Any = module.Liveness
    return actor.__ray_metadata__.modified_class()


def progresses(liveness: Any, act: Any) -> bool:
    before = liveness.progress()
    act()
    return liveness.progress() != before


def test_a_beat_of_a_worker_at_work_is_progress_and_its_first_one_is_not(liveness: Any) -> None:
    assert not progresses(liveness, lambda: liveness.add(0, ONE))
    assert progresses(liveness, lambda: liveness.add(0, ONE))
    assert liveness.done() == 0
    assert not progresses(liveness, lambda: liveness.start("a shard", TWO))
    assert progresses(liveness, lambda: liveness.add(0, TWO))


def test_a_count_is_progress_and_so_is_one_that_is_taken_back_or_set(liveness: Any) -> None:
    assert progresses(liveness, lambda: liveness.add(3, ONE))
    assert progresses(liveness, lambda: liveness.add(-3))
    assert progresses(liveness, lambda: liveness.set(7, TWO))
    assert not progresses(liveness, lambda: liveness.set(7))


def test_finished_work_is_progress_and_an_idle_worker_that_had_none_is_not(liveness: Any) -> None:
    liveness.add(0, ONE)
    assert progresses(liveness, lambda: liveness.idle(ONE))
    assert not progresses(liveness, lambda: liveness.idle(ONE))
    assert not progresses(liveness, lambda: liveness.add(0, ONE))


def test_workers_that_start_one_after_the_other_and_fall_silent_are_no_progress(liveness: Any, clock: Clock) -> None:
    for pid in range(9):
        assert not progresses(liveness, lambda pid=pid: liveness.start("a shard", ("node", pid, "")))
        clock.now += 11
        assert liveness.stalled(10) == [("node", pid, "")]
    assert liveness.restarts() == 8


def test_a_worker_that_others_wait_for_beats_for_them_but_not_for_idle_ones(liveness: Any, clock: Clock) -> None:
    for worker in (ONE, TWO, ("node", 3)):
        liveness.add(0, worker)
    liveness.idle(("node", 3))
    clock.now += 8
    liveness.add(0, ONE, for_all=True)
    clock.now += 8
    assert liveness.stalled(10) == []
    liveness.add(0, ONE)
    clock.now += 3
    assert liveness.stalled(10) == [TWO]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    monkeypatch.setattr(module, "this_worker", lambda part: ONE)
    return []


@pytest.fixture
def beat(sent: list[tuple[Any, ...]], clock: Clock) -> Heartbeat:
    def sending(name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: sent.append((name, *arguments)))

    return Heartbeat(SimpleNamespace(add=sending("add"), idle=sending("idle")))


def test_a_heartbeat_sends_at_once_and_then_once_a_while_however_often_it_is_called(
    beat: Heartbeat, sent: list[tuple[Any, ...]], clock: Clock
) -> None:
    for _ in range(1000):
        beat()
        clock.now += BEAT_SECONDS / 100
    assert sent[0] == ("add", 0, ONE, False)
    assert 9 <= len(sent) <= 10


def test_counts_add_up_until_they_are_sent_and_none_is_lost_when_idle(
    beat: Heartbeat, sent: list[tuple[Any, ...]], clock: Clock
) -> None:
    for _ in range(3):
        beat(1)
    clock.now += BEAT_SECONDS
    beat(1, for_all=True)
    beat(1)
    beat.idle()
    assert [entry[1] for entry in sent if entry[0] == "add"] == [1, 3, 1]
    assert sent[1] == ("add", 3, ONE, True) and sent[-1] == ("idle", ONE)
    beat()
    assert sent[-1] == ("add", 0, ONE, False), "the first beat of the next work came too late"
