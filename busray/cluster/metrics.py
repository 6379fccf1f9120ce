"""What sampling actors tell Ray's metrics, for Ray's dashboard and Prometheus: README lists it.

A number costs some microseconds. A node's agent collects the numbers and serves them at the node's
metrics port; where there is none, they are lost and the work goes on.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from busray.records import Commit, Shard

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


class ShardMetrics:
    """The metrics of one sampling actor. Nothing here raises: the first failure is logged, and
    ends the metrics of this actor."""

    def __init__(self, arm: str, device: str) -> None:
        self.tags = {"arm": arm, "device": device}
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
        text = "Seconds of encoding and storing a shard"
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

    @contextmanager
    def storing(self, shard: Shard) -> Iterator[None]:
        """Around the commit of a shard."""
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        tags = {**self.tags, "class": shard.class_name}
        self._safely(lambda: self.instruments["store"].observe(seconds, tags=tags))

    def committed(self, commit: Any) -> None:
        """Count what a commit holds. Another drawing's result than a Commit is not looked into."""
        if not isinstance(commit, Commit):
            return
        tags = {**self.tags, "class": commit.class_name}
        self._count("committed", commit.rows, tags)
        self._count("quarantined", len(commit.rejects), tags)
        self._count("redrawn", len(commit.redrawn), tags)

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
