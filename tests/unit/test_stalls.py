"""What a Ledger takes for progress, and when a StallWatch ends a stage."""

from typing import Any

import pytest

from busray import stalls as module
from busray.records import Stopped
from busray.stalls import HOPELESS_SECONDS, Ledger, StallWatch, State
from tests.support.clock import Clock

ONE, TWO = ("node", 1, ""), ("node", 2, "")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def ledger(clock: Clock) -> Ledger:
    return Ledger(lambda node: True)


def progresses(ledger: Ledger, act: Any) -> bool:
    before = ledger.progress()
    act()
    return ledger.progress() != before


def test_a_beat_of_a_worker_at_work_is_progress_and_its_first_one_is_not(ledger: Ledger) -> None:
    assert not progresses(ledger, lambda: ledger.add(0, ONE))
    assert progresses(ledger, lambda: ledger.add(0, ONE))
    assert ledger.done() == 0
    assert not progresses(ledger, lambda: ledger.begin("a shard", "actor", ("node", ()), TWO))
    assert progresses(ledger, lambda: ledger.add(0, TWO))


def test_a_count_is_progress_and_so_is_one_that_is_taken_back_or_set(ledger: Ledger) -> None:
    assert progresses(ledger, lambda: ledger.add(3, ONE))
    assert progresses(ledger, lambda: ledger.add(-3))
    assert progresses(ledger, lambda: ledger.set(7, TWO))
    assert not progresses(ledger, lambda: ledger.set(7))


def test_finished_work_is_progress_and_an_idle_worker_that_had_none_is_not(ledger: Ledger) -> None:
    ledger.add(0, ONE)
    assert progresses(ledger, lambda: ledger.idle(ONE))
    assert not progresses(ledger, lambda: ledger.idle(ONE))
    assert not progresses(ledger, lambda: ledger.add(0, ONE))


def test_workers_that_start_one_after_the_other_and_fall_silent_are_no_progress(
    ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.is_alive = lambda node: False
    for pid in range(9):
        worker = ("node", pid, "")
        assert not progresses(ledger, lambda worker=worker: ledger.begin("a shard", "actor", ("node", ()), worker))
        clock.now += 11
        assert ledger.stalled(10) == [("node", pid, "")]
    assert ledger.restarts() == 8


def test_a_worker_that_others_wait_for_beats_for_them_but_not_for_idle_ones(ledger: Ledger, clock: Clock) -> None:
    for worker in (ONE, TWO, ("node", 3, "")):
        ledger.add(0, worker)
    ledger.idle(("node", 3, ""))
    clock.now += 8
    ledger.add(0, ONE, for_all=True)
    clock.now += 8
    assert ledger.stalled(10) == []
    ledger.add(0, ONE)
    clock.now += 3
    assert ledger.stalled(10) == [TWO]


HANG = 10.0
"""4 x HANG seconds without progress end a stage to which workers came."""


class Stage:
    """A StallWatch whose clock and workers a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, patience: float) -> None:
        self.clock, self.told = Clock(), list[str]()
        monkeypatch.setattr(module, "time", self.clock)
        self.watch = StallWatch("draw", HANG, patience, self.told.append, lambda: "Ray at 10.0.0.1:6379 has 1 node")
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


def test_a_ledger_that_does_not_answer_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, patience=0)
    stage.look(None, 39)
    with pytest.raises(Stopped):
        stage.look(None, 3)
