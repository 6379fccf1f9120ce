"""What three faults cost a corpus of six shards on one actor. The sampler sleeps; processes, Ray
and commits are real.

    python benchmarks/faults.py

prints a line a fault: shards committed, images quarantined, workers lost, how the stage ended and
its seconds. PYTHONPATH decides which busray is tried, so that an older one can be compared.
"""

import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from busray.cluster.own import own_ray
from busray.cluster.pool import ray_workers
from busray.config import Cluster
from busray.corpus.commit import committed_shards, read_commit
from busray.records import Shard, Stopped
from busray.storage import Store
from busray.workers import Beat, DrawStage
from tests.support.runs import quiet
from tests.support.sleeping import SleepingCorpus, plan

SHARDS, IMAGES = 6, 2
BAD = 4  # first image of the shard that meets the fault


def mark(store: Store, folder: str) -> int:
    """Leave a mark; how many there are."""
    store.put_once(f"{folder}/{os.getpid()}-{time.monotonic_ns()}", b"mark")
    return len(list(store.list(folder)))


class BrokenDevice(SleepingCorpus):
    """A GPU fails once."""

    def draw(self, shard: Shard, beat: Beat) -> Any:
        if shard.first == BAD and not list(self.store.list("lost")):
            mark(self.store, "lost")
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
        return super().draw(shard, beat)


class TooManyRequests(OSError):
    """As a model hub's client raises it."""

    def __init__(self) -> None:
        super().__init__("429 Too Many Requests for huggingface.co")
        self.response = type("Response", (), {"status_code": 429})()

    def __reduce__(self) -> Any:
        return TooManyRequests, ()


class BusyHub(SleepingCorpus):
    """A worker dies once, and the hub then refuses two loads."""

    def start(self) -> Any:
        if 1 < mark(self.store, "loads") < 4:
            raise TooManyRequests
        return super().start()

    def draw(self, shard: Shard, beat: Beat) -> Any:
        if shard.first == BAD and not list(self.store.list("lost")):
            mark(self.store, "lost")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().draw(shard, beat)


class Poison(SleepingCorpus):
    """One shard kills each worker that draws it."""

    def draw(self, shard: Shard, beat: Beat) -> Any:
        if shard.first == BAD:
            mark(self.store, "lost")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().draw(shard, beat)


def main() -> None:
    # An older busray calls the width min_actors and max_actors.
    names = ("actors",) if "actors" in Cluster.model_fields else ("min_actors", "max_actors")
    settings = Cluster.model_validate({"threads": 1, **dict.fromkeys(names, 1)})
    with own_ray(num_cpus=2):
        for kind in (BrokenDevice, BusyHub, Poison):
            folder, began = Path(tempfile.mkdtemp(prefix="busray-faults-")), time.monotonic()
            store = Store(str(folder / "run"))
            with ray_workers(settings, folder / "ray.log", quiet) as workers:
                end = "to its end"
                try:
                    workers.draw(DrawStage("draw", kind(store, 0.05), plan(SHARDS, IMAGES), planned=SHARDS * IMAGES))
                except Stopped as error:
                    end = str(error)[:150]
            done = committed_shards(store)
            quarantined = sum(len(read_commit(store, shard).rejects) for shard in done)
            lost, seconds = len(list(store.list("lost"))), time.monotonic() - began
            row = (kind.__name__, f"{len(done)} of {SHARDS}", str(quarantined), str(lost), end, f"{seconds:.0f} s")
            print(" | ".join(row), flush=True)


if __name__ == "__main__":
    main()
