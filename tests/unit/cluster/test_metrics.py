"""What a sampling actor counts; Ray's own part is tests/integration/cluster/test_metrics.py."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from busray.cluster import metrics as module
from busray.cluster.metrics import Measured, ShardMetrics
from busray.records import Commit, Execution, Redrawn, Shard
from busray.storage import Store
from tests.support.sleeping import SleepingCorpus

SHARD = Shard("benign", 0, 10)
COMMIT = Commit(
    "benign", 0, 10, "data/x", "d", 1, 8, (("a", "broken"), ("b", "broken")),
    Execution("cuda: one", "float16", 8, 1, {}), 60.0, (Redrawn("c", (0.1,), 1),),
)  # fmt: skip


class Instrument:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[float, dict[str, str]]] = []

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0  # Ray raises for less
        self.told.append((value, tags))

    observe = set = inc


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> ShardMetrics:
    def create(self: ShardMetrics) -> None:
        self.instruments = {name: Instrument() for name in (*module.COUNTERS, "shard", "store", "busy")}

    monkeypatch.setattr(ShardMetrics, "_create", create)
    return ShardMetrics({"arm": "lora+ti", "device": "cuda: one"})


def told(metrics: ShardMetrics, name: str) -> list[float]:
    values = metrics.instruments[name].told
    assert all(tags == {"arm": "lora+ti", "class": "benign", "device": "cuda: one"} for _, tags in values)
    return [value for value, _ in values]


def test_a_commit_counts_its_rows_rejects_and_redraws(metrics: ShardMetrics) -> None:
    metrics.committed(COMMIT, 4.0)
    counts = {name: told(metrics, name) for name in module.COUNTERS}
    assert counts == {"drawn": [], "committed": [8], "quarantined": [2], "redrawn": [1]}
    assert told(metrics, "store") == [4.0]


def test_nothing_is_counted_of_a_kind_that_a_shard_lacks(metrics: ShardMetrics) -> None:
    metrics.committed(replace(COMMIT, rows=10, rejects=(), redrawn=()), 4.0)
    assert (told(metrics, "committed"), told(metrics, "quarantined"), told(metrics, "redrawn")) == ([10], [], [])


def test_seconds_and_the_busy_share_are_those_of_the_clock(
    metrics: ShardMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Idle for 20 s, drawing for 60."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    metrics.idle_since = 0.0
    now[0] = 20.0
    with metrics.drawing(SHARD):
        now[0] = 80.0
    assert told(metrics, "drawn") == [10]
    assert (told(metrics, "shard"), told(metrics, "busy")) == ([60.0], [0.75])


def test_a_shard_that_fails_is_not_counted_and_its_error_goes_on(metrics: ShardMetrics) -> None:
    with pytest.raises(RuntimeError, match="no memory"), metrics.drawing(SHARD):
        raise RuntimeError("no memory")
    assert told(metrics, "drawn") == told(metrics, "shard") == []


def test_broken_metrics_are_said_once_and_the_work_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: Any) -> None:
        raise RuntimeError("no agent")

    monkeypatch.setattr(ShardMetrics, "_create", fail)
    with caplog.at_level(logging.WARNING):
        metrics = ShardMetrics({"arm": "base", "device": "cpu"})
        with metrics.drawing(SHARD):
            pass
        metrics.committed(COMMIT, 1.0)
    assert caplog.text.count("no metrics of this actor from now on: no agent") == 1


def test_a_measured_drawing_is_the_drawing_with_its_numbers_told(
    metrics: ShardMetrics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = SleepingCorpus(Store(str(tmp_path)))
    measured = Measured(corpus)
    assert not measured.is_committed(SHARD) and measured.labels() == corpus.labels()
    monkeypatch.setattr(module, "ShardMetrics", lambda labels: metrics)
    drawn = measured.start()(SHARD, lambda n=0: None)
    commit = measured.commit(drawn, lambda n=0: None)
    assert commit.rows == 10 and measured.is_committed(SHARD)
    assert (told(metrics, "drawn"), told(metrics, "committed"), len(told(metrics, "store"))) == ([10], [10], 1)
