"""Watchdogs on a local Ray: work that beats is left alone; work that hangs or never begins ends."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from busray.cluster import liveness as board_module
from busray.cluster.liveness import PATIENCE, Pulse, supervised, watched
from busray.records import Stopped

HANG = 5.0
"""The least that a configuration takes; a worker needs some of it to begin."""


def quiet(stage: str, done: int, total: int) -> None:
    pass


def watch(task: Any, *arguments: Any, hang: float = HANG) -> Any:
    with watched(quiet, "a stage", 1) as board:
        return supervised(board, "a stage", hang, lambda: ray.get(task.remote(board, *arguments)))


def test_a_worker_that_beats_and_counts_nothing_is_left_alone() -> None:
    @ray.remote(max_retries=0)
    def slow(board: Any) -> str:
        beat, end = Pulse(board), time.monotonic() + (PATIENCE + 0.5) * HANG
        while time.monotonic() < end:
            beat()
            time.sleep(0.01)
        beat.rest()
        return "done"

    assert watch(slow) == "done"


def test_a_worker_that_falls_silent_is_killed_and_its_work_done_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_module, "PATIENCE", 40)  # new processes may take longer to start than a hanging limit

    @ray.remote(max_retries=3)
    def hangs_once(board: Any) -> int:
        beat = Pulse(board)
        beat()
        begun = tmp_path / str(os.getpid())
        begun.touch()
        if len(list(tmp_path.iterdir())) == 1:
            time.sleep(600)
        beat.rest()
        return os.getpid()

    pid = watch(hangs_once)
    assert {path.name for path in tmp_path.iterdir()} > {str(pid)}


def test_a_stage_whose_workers_begin_and_are_not_heard_of_again_ends(tmp_path: Path) -> None:
    @ray.remote(max_retries=-1)
    def hangs(board: Any) -> None:
        (tmp_path / str(os.getpid())).touch()
        Pulse(board)()
        time.sleep(600)

    with pytest.raises(Stopped, match=f"a stage: nothing moved for {PATIENCE * HANG:.0f} s"):
        watch(hangs)
    assert list(tmp_path.iterdir()), "a test of nothing: no worker began"


def test_a_stage_whose_work_never_begins_ends() -> None:
    @ray.remote(num_cpus=64)
    def unplaced(board: Any) -> None:
        pass

    with pytest.raises(Stopped, match="nothing moved"):
        watch(unplaced, hang=1)
