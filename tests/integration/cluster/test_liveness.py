"""Liveness on a local Ray: work that beats is left alone; work that hangs or never begins ends."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from busray import stalls
from busray.cluster.liveness import Heartbeat, monitored
from busray.records import Stopped
from busray.stalls import STALLED_AFTER
from tests.support.runs import quiet

HANG = 5.0
"""The least that a configuration takes; a worker needs some of it to begin."""


@pytest.fixture(scope="module", autouse=True)
def started_worker(local_ray: None) -> None:
    """A worker process is there before any limit runs."""
    ray.get(ray.remote(lambda: None).remote(), timeout=600)


def watch(task: Any, hang: float = HANG) -> Any:
    return monitored(quiet, "a stage", 1, hang, lambda liveness: ray.get(task.remote(liveness)))


def test_a_worker_that_beats_and_counts_nothing_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    hang, limit = 40.0, 20.0  # seconds of silence of a worker, and of all workers, that a busy machine may need
    monkeypatch.setattr(stalls, "STALLED_AFTER", limit / hang)

    @ray.remote(max_retries=0)
    def slow(liveness: Any) -> str:
        beat, end = Heartbeat(liveness), time.monotonic() + limit + 3
        while time.monotonic() < end:
            beat()
            time.sleep(0.01)
        beat.idle()
        return "done"

    assert watch(slow, hang) == "done"


def test_a_worker_that_falls_silent_is_killed_and_its_work_done_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stalls, "STALLED_AFTER", 40)  # new processes may take longer to start than a hanging limit

    @ray.remote(max_retries=-1)
    def hangs_once(liveness: Any) -> int:
        beat = Heartbeat(liveness)
        beat()
        (tmp_path / str(os.getpid())).touch()
        if len(list(tmp_path.iterdir())) == 1:
            time.sleep(600)
        beat.idle()
        return os.getpid()

    pid = watch(hangs_once)
    assert {path.name for path in tmp_path.iterdir()} > {str(pid)}


def test_a_stage_whose_workers_begin_and_are_not_heard_of_again_ends(tmp_path: Path) -> None:
    @ray.remote(max_retries=-1)
    def hangs(liveness: Any) -> None:
        (tmp_path / str(os.getpid())).touch()
        Heartbeat(liveness)()
        time.sleep(600)

    with pytest.raises(Stopped, match=f"a stage: nothing moved for {STALLED_AFTER * HANG:.0f} s"):
        watch(hangs)
    assert list(tmp_path.iterdir()), "a test of nothing: no worker began"


def test_a_stage_whose_work_never_begins_ends() -> None:
    @ray.remote(num_cpus=64)
    def unplaced(liveness: Any) -> None:
        pass

    with pytest.raises(Stopped, match="nothing moved"):
        watch(unplaced, hang=1)
