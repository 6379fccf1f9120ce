"""A corpus whose images take a set time and no computation: what is tested and measured with it is
the stream of shards, not the model.

    python -m tests.support.sleeping FOLDER --shards=40 --images=2 --seconds=0.5 --actors=2 --cpus=2

draws such a corpus, in a Ray with so many CPUs, until it is done or killed.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from busray.cluster.own import own_ray
from busray.cluster.pool import ray_workers
from busray.config import Cluster
from busray.corpus.commit import commit_shard
from busray.corpus.encode import Row
from busray.identity import image_id
from busray.layout import commit_key
from busray.records import Commit, ContentBox, Execution, ImageSpec, Shard
from busray.storage import Store
from busray.workers import Beat, DrawStage
from tests.support.runs import quiet

FINGERPRINT = "f" * 64


@dataclass(frozen=True)
class SleepingCorpus:
    """A workers.Drawing. Black images are committed as real ones are; beside them `drawn/` names
    each shard that was drawn to its end, and `workers/` each process that could draw."""

    store: Store
    seconds: float = 0.0  # of one image
    loading: float = 0.0  # seconds until a worker can draw
    committing: float = 0.0  # seconds of a commit, besides its work
    side: int = 8  # pixels of an image's side
    arm: str = "base"

    def labels(self) -> dict[str, str]:
        return {"arm": self.arm, "device": "sleep"}

    def is_committed(self, shard: Shard) -> bool:
        return self.store.exists(commit_key(shard))

    def start(self) -> Callable[[Shard, Beat], tuple[Shard, list[Row]]]:
        time.sleep(self.loading)
        self.store.put_once(f"workers/{os.getpid()}", b"can draw")
        return self.draw

    def draw(self, shard: Shard, beat: Beat) -> tuple[Shard, list[Row]]:
        rows = []
        for i in range(shard.first, shard.first + shard.count):
            time.sleep(self.seconds)
            name, box = image_id(FINGERPRINT, shard.class_name, i), ContentBox(0, 0, self.side, self.side)
            spec = ImageSpec(name, shard.class_name, i, 0, "", i, i, box)
            rows.append(Row(spec, np.zeros((self.side, self.side), np.uint8)))
            beat(1)
        self.store.put_once(f"drawn/{shard.name}", b"drawn")
        return shard, rows

    def commit(self, drawn: tuple[Shard, list[Row]], beat: Beat) -> Commit:
        time.sleep(self.committing)
        shard, rows = drawn
        return self.record(shard, rows, ())

    def quarantine(self, shard: Shard, reason: str) -> Commit:
        images = range(shard.first, shard.first + shard.count)
        return self.record(shard, (), [(image_id(FINGERPRINT, shard.class_name, i), reason) for i in images])

    def record(self, shard: Shard, rows: Sequence[Row], rejects: Sequence[tuple[str, str]]) -> Commit:
        execution, provenance = Execution("sleep", "float32", 1, 1, {}), {"fingerprint": FINGERPRINT}
        return commit_shard(self.store, shard, rows, rejects, provenance, execution, "parquet", self.seconds)


def plan(shards: int, images: int) -> list[Shard]:
    """So many shards of so many images."""
    return [Shard("benign", first, images) for first in range(0, shards * images, images)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shards", type=int, required=True)
    parser.add_argument("--images", type=int, required=True, help="of a shard")
    parser.add_argument("--seconds", type=float, required=True, help="of an image")
    parser.add_argument("--loading", type=float, default=0.0, help="until a worker can draw")
    parser.add_argument("--actors", type=int, required=True)
    parser.add_argument("--cpus", type=int, required=True)
    args = parser.parse_args()
    corpus = SleepingCorpus(Store(str(args.folder)), args.seconds, args.loading)
    shards = plan(args.shards, args.images)
    cluster = Cluster(actors=args.actors, threads=1)
    with own_ray(num_cpus=args.cpus), ray_workers(cluster, args.folder / "ray.log", quiet) as workers:
        corpus.store.put_once("called", b"now")
        workers.draw(DrawStage("draw", corpus, shards, planned=args.shards * args.images))


if __name__ == "__main__":
    main()
