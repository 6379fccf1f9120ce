"""How often a Heartbeat sends. No Ray here."""

from types import SimpleNamespace
from typing import Any

import pytest

from busray.cluster import liveness as module
from busray.cluster.liveness import BEAT_SECONDS, Heartbeat
from tests.support.clock import Clock

ONE = ("node", 1, "")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


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
