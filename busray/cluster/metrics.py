"""What sampling actors tell Ray's metrics, for its dashboard and Prometheus; docs/how-to/aws.md
lists it.

A number costs some microseconds. A node's agent collects the numbers and serves them at the node's
metrics port; where there is none, they are lost and the work goes on.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from busray.records import Commit, Shard
from busray.workers import Beat, Drawing

log = logging.getLogger(__name__)

SHARD_BOUNDS = [5.0, 15.0, 30.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0, 1800.0]
STORE_BOUNDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
"""Upper ends of the histograms' buckets, in seconds."""
TAGS = ("arm", "class", "device")
COUNTERS = {
    "drawn": "Images of shards that were drawn to their end",
    "committed": "Images that were committed, without quarantined ones",
    "quarantined": "Images that were quarantined",
    "redrawn": "Images that the class gate had drawn again",
}


class Measured:
    """A drawing that tells its worker's metrics what it draws and commits."""

    def __init__(self, drawing: Drawing) -> None:
        self.inner: Any = drawing
        self.metrics: ShardMetrics | None = None  # of the worker, from start() on

    def labels(self) -> Mapping[str, str]:
        return self.inner.labels()

    def is_committed(self, shard: Shard) -> bool:
        return self.inner.is_committed(shard)

    def start(self) -> Callable[[Shard, Beat], Any]:
        draw = self.inner.start()
        metrics = self.metrics = ShardMetrics(self.inner.labels())

        def measured(shard: Shard, beat: Beat) -> Any:
            with metrics.drawing(shard):
                return draw(shard, beat)

        return measured

    def commit(self, drawn: Any, beat: Beat) -> Any:
        return self._counted(lambda: self.inner.commit(drawn, beat))

    def quarantine(self, shard: Shard, reason: str) -> Any:
        return self._counted(lambda: self.inner.quarantine(shard, reason))

    def _counted(self, put: Callable[[], Any]) -> Any:
        began = time.monotonic()
        commit = put()
        # A commit that was lost to another driver's is counted here too.
        if self.metrics is not None and isinstance(commit, Commit):
            self.metrics.committed(commit, time.monotonic() - began)
        return commit


class ShardMetrics:
    """The metrics of one sampling actor. Nothing here raises: the first failure is logged, and
    ends the metrics of this actor."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self.tags = dict(labels)
        self.instruments: dict[str, Any] = {}
        self.broken = False
        self.idle_since = time.monotonic()
        self._safely(self._create)

    def _create(self) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        for name, text in COUNTERS.items():
            self.instruments[name] = Counter(f"busray_{name}_images", text, TAGS)
        text = "Seconds of drawing a shard"
        self.instruments["shard"] = Histogram("busray_shard_seconds", text, SHARD_BOUNDS, TAGS)
        text = "Seconds of encoding, storing and (with evaluate.inline) measuring a shard"
        self.instruments["store"] = Histogram("busray_store_seconds", text, STORE_BOUNDS, TAGS)
        text = "Share of its time that an actor drew, from the end of the shard before to the end of the last one"
        self.instruments["busy"] = Gauge("busray_busy_share", text, TAGS)

    @contextmanager
    def drawing(self, shard: Shard) -> Iterator[None]:
        """Around the drawing of a shard; one that fails counts for nothing."""
        began = time.monotonic()
        yield
        now = time.monotonic()
        share = (now - began) / max(now - self.idle_since, 1e-9)
        self.idle_since = now
        tags = {**self.tags, "class": shard.class_name}
        self._count("drawn", shard.count, tags)
        self._safely(lambda: self.instruments["shard"].observe(now - began, tags=tags))
        self._safely(lambda: self.instruments["busy"].set(share, tags=tags))

    def committed(self, commit: Commit, seconds: float) -> None:
        """Count what a commit holds that took so many seconds to encode and store."""
        tags = {**self.tags, "class": commit.class_name}
        self._count("committed", commit.rows, tags)
        self._count("quarantined", len(commit.rejects), tags)
        self._count("redrawn", len(commit.redrawn), tags)
        self._safely(lambda: self.instruments["store"].observe(seconds, tags=tags))

    def _count(self, name: str, images: int, tags: dict[str, str]) -> None:
        if images > 0:
            self._safely(lambda: self.instruments[name].inc(images, tags=tags))

    def _safely(self, act: Callable[[], None]) -> None:
        if self.broken:
            return
        try:
            act()
        except Exception as error:
            log.warning("no metrics of this actor from now on: %s", error)
            self.broken = True
