"""What is known of machines before any Ray is started, and a Ray that starts beside other work. No
Ray here."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from busray.cluster import session as sessions
from busray.cluster.session import early_ray, machines
from busray.config import Cluster
from busray.records import Stopped


def test_without_an_address_the_machines_are_this_one_and_no_ray_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("a Ray was started")

    monkeypatch.setattr("ray.init", started)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    where, ((cpus, gpus),) = machines(Cluster())
    assert where == "this machine" and cpus >= 1 and gpus == 0


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """In what order things happen; a stand-in for Ray starts when `begin` is set."""
    told = SimpleNamespace(words=[], begin=threading.Event(), fails=False)

    @contextmanager
    def own_ray() -> Iterator[None]:
        told.begin.wait()
        if told.fails:
            raise Stopped("Ray did not start")
        told.words.append("up")
        try:
            yield
        except ValueError as error:
            told.words.append(str(error))
            raise
        finally:
            told.words.append("ended")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(sessions, "own_ray", own_ray)
    monkeypatch.setattr(sessions, "_native_messages_to", nullcontext)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    return told


def test_a_ray_starts_beside_other_work_which_waits_for_it_when_it_needs_it(told: Any) -> None:
    with early_ray(Cluster()) as ray:
        ray.start()
        told.words.append("checked")
        told.begin.set()
        ray.wait()
        told.words.append("used")
    assert told.words == ["checked", "up", "used", "ended"]


def test_a_mistake_found_while_a_ray_starts_ends_that_ray_with_the_mistake(told: Any) -> None:
    with pytest.raises(ValueError, match="a mistake"), early_ray(Cluster()) as ray:
        ray.start()
        told.begin.set()
        raise ValueError("a mistake")
    assert told.words == ["up", "a mistake", "ended"] and not ray.thread.is_alive()


def test_a_ray_that_does_not_start_early_is_left_to_the_session(told: Any) -> None:
    told.fails = True
    with early_ray(Cluster()) as ray:
        ray.start()
        told.begin.set()
        ray.wait()


def test_no_ray_starts_early_where_none_is_asked_for_or_a_cluster_is_named(told: Any) -> None:
    with early_ray(Cluster()) as ray:
        ray.wait()
    with early_ray(Cluster(address="10.0.0.1:6379")) as ray:
        ray.start()
        ray.wait()
    assert not told.words


def test_a_session_waits_for_nothing_but_its_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from busray.cluster import pool

    words: list[str] = []

    @contextmanager
    def session(*_: object) -> Iterator[None]:
        words.append("session")
        yield

    monkeypatch.setattr(pool, "session", session)
    wait = lambda: words.append("waited")  # noqa: E731
    with pool.ray_workers(Cluster(), tmp_path / "ray.log", lambda *_: None, wait) as workers:
        assert not words
        workers.start_session()
        workers.start_session()
    assert words == ["waited", "session"]
