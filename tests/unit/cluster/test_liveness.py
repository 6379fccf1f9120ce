"""What Liveness takes for progress, and how often a Heartbeat sends. Without Ray: the actor's
class alone."""

from types import SimpleNamespace
from typing import Any

import pytest

from busray.cluster import liveness as module
from busray.cluster.liveness import BEAT_SECONDS, HOPELESS_SECONDS, Heartbeat, StallWatch, State
from busray.records import Stopped

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
    assert not progresses(liveness, lambda: liveness.begin("a shard", "actor", ("node", ()), TWO))
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


def test_workers_that_start_one_after_the_other_and_fall_silent_are_no_progress(
    liveness: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_is_alive", lambda node: False)
    for pid in range(9):
        worker = ("node", pid, "")
        assert not progresses(liveness, lambda worker=worker: liveness.begin("a shard", "actor", ("node", ()), worker))
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


HANG = 10.0
"""4 x HANG seconds without progress end a stage to which workers came."""


class Stage:
    """A StallWatch whose clock and workers a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, patience: float) -> None:
        self.clock, self.told = Clock(), list[str]()
        monkeypatch.setattr(module, "time", self.clock)
        monkeypatch.setattr(module, "capacity", lambda: "Ray at 10.0.0.1:6379 has 1 node")
        self.watch = StallWatch("draw", HANG, patience, self.told.append)
        self.look(state())

    def look(self, state: State | None, seconds: float = 0.0) -> None:
        for _ in range(max(1, int(seconds))):
            self.clock.now += 1 if seconds else 0
            self.watch.look(state, self.clock.now)


def state(progress: int = 0, joins: int = 0, at_work: int = 0, **more: Any) -> State:
    values: dict[str, Any] = {"waits_for": "", "hopeless": "", "avoided": ()} | more
    return State(progress, joins, at_work, **values)


def test_a_stage_without_a_worker_waits_for_its_patience_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, patience=3600)
    stage.look(state(progress=5, joins=2, at_work=2))
    stage.look(state(progress=5, joins=2), 3500)
    assert stage.told[0] == "waits, 16 s of at most 60 min: no worker came; Ray at 10.0.0.1:6379 has 1 node"
    assert stage.told[2].startswith("waits, 1 min of at most 60 min: no worker came")
    assert 5 <= len(stage.told) <= 12, "not every minute"
    with pytest.raises(Stopped, match=r"^draw: nothing moved for 3600 s: no worker came; Ray at"):
        stage.look(state(progress=5, joins=2), 200)


def test_a_worker_that_comes_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, patience=100)
    for progress in range(5):
        stage.look(state(progress=progress, joins=progress), 90)


def test_a_worker_that_comes_after_hours_has_the_time_of_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, patience=36_000)
    stage.look(state(), 7200)
    stage.look(state(joins=1, at_work=1), 4 * HANG - 1)
    with pytest.raises(Stopped, match="nothing moved for 40 s"):
        stage.look(state(joins=1, at_work=1), 5)


def test_workers_that_come_and_get_on_with_nothing_end_a_stage_before_its_patience(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage(monkeypatch, patience=3600)
    with pytest.raises(Stopped, match="nothing moved for 40 s: workers came, but got on with nothing"):
        for joins in range(100):
            stage.look(state(joins=joins), HANG)


def test_a_worker_at_work_that_is_silent_ends_a_stage_before_its_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, patience=3600)
    with pytest.raises(Stopped, match="nothing moved for 40 s"):
        stage.look(state(joins=1, at_work=1), 100)


def test_what_a_worker_waits_for_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, patience=3600)
    stage.look(state(joins=1, waits_for="429 Too Many Requests; it tries again in 40 s"), 20)
    assert stage.told == ["waits, 16 s of at most 60 min: 429 Too Many Requests; it tries again in 40 s"]


def test_a_machine_that_is_avoided_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, patience=0)
    for progress in range(3):
        stage.look(state(progress=progress, avoided=("ECC (node 10.0.0.7)",)))
    assert stage.told == ["a machine gets no more work of this stage: ECC (node 10.0.0.7)"]


def test_failures_that_nothing_helps_end_a_stage_when_no_worker_could_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, patience=3600)
    stage.look(state(hopeless="workers fail"), HOPELESS_SECONDS - 1)
    stage.look(state(progress=1))
    with pytest.raises(Stopped, match=r"^draw: workers fail$"):
        stage.look(state(progress=1, hopeless="workers fail"), HOPELESS_SECONDS + 5)


def test_a_liveness_that_does_not_answer_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, patience=0)
    stage.look(None, 39)
    with pytest.raises(Stopped):
        stage.look(None, 3)
