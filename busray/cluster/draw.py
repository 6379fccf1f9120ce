"""Generation as a Ray Data stream: a plan of shards -> actors that draw -> tasks that commit."""

from collections import deque
from collections.abc import Sequence
from random import sample
from typing import Any

import ray
import ray.data

from busray import config
from busray.cluster.liveness import Heartbeat, carrying_errors
from busray.cluster.session import use_threads
from busray.records import Shard
from busray.workers import Drawing

MOST_STARTS = 5
"""Times a shard is begun before the command ends: it may be the shard that kills its workers.

Ray's own max_task_retries will not do: calls to a lost node's actor use them up within seconds.
"""


def draw_and_commit(settings: config.Cluster, drawing: Drawing, shards: Sequence[Shard], liveness: Any) -> int:
    """Draw and commit the shards; returns how often one was begun again as its worker was lost."""
    # In a random order: drivers that run beside each other then share the work.
    rows = [{"shard": shard} for shard in sample(shards, len(shards))]
    plan = ray.data.from_items(rows, override_num_blocks=len(rows))
    drawn = plan.map(
        DrawShards,  # pyright: ignore[reportArgumentType] (Ray's types leave callable classes out)
        fn_constructor_args=(drawing, settings.threads, liveness),
        compute=ray.data.ActorPoolStrategy(min_size=settings.min_actors, max_size=settings.max_actors),
        num_cpus=settings.cpus_per_actor,
        num_gpus=settings.gpus_per_actor,
    )
    committed = drawn.map(CommitShard(drawing, liveness), num_cpus=1)
    deque(committed.iter_rows(), maxlen=0)
    return ray.get(liveness.restarts.remote())


class DrawShards:
    """The sampling actor: loads the models once, then draws shard after shard."""

    def __init__(self, drawing: Drawing, threads: int, liveness: Any) -> None:
        use_threads(threads)
        self.drawing = drawing
        self.beat = Heartbeat(liveness)
        self.draw = drawing.start()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        with carrying_errors():
            return {"drawn": self._drawn(row["shard"])}

    def _drawn(self, shard: Shard) -> Any:
        """The drawn shard; None where it has its commit already."""
        if self.drawing.is_committed(shard):  # by another driver, or before its node was lost
            self.beat(shard.count)
            self.beat.idle()
            return None
        name = f"{shard.class_name}/{shard.name}"
        if self.beat.start(name) > MOST_STARTS:
            raise RuntimeError(f"shard {name} was begun {MOST_STARTS} times and its workers died")
        drawn = self.draw(shard, self.beat)
        self.beat.idle()
        return drawn


class CommitShard:
    """The CPU task behind it: encodes, hashes, puts once and records what was drawn."""

    def __init__(self, drawing: Drawing, liveness: Any) -> None:
        self.drawing, self.liveness = drawing, liveness

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["drawn"] is not None:
            beat = Heartbeat(self.liveness)
            with carrying_errors():
                beat()
                self.drawing.commit(row["drawn"])
                beat.idle()
        return {"committed": row["drawn"] is not None}
