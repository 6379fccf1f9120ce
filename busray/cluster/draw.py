"""Generation as a Ray Data stream: a plan of shards -> actors that draw and commit them."""

import threading
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

CALLS = 2
"""Shards that an actor has at once: one is drawn, one is committed."""


def draw_and_commit(settings: config.Cluster, drawing: Drawing, shards: Sequence[Shard], liveness: Any) -> int:
    """Draw and commit the shards; returns how often one was begun again as its worker was lost."""
    # In a random order: drivers that run beside each other then share the work.
    rows = [{"shard": shard} for shard in sample(shards, len(shards))]
    plan = ray.data.from_items(rows, override_num_blocks=len(rows))
    done = plan.map(
        DrawShards,  # pyright: ignore[reportArgumentType] (Ray's types leave callable classes out)
        fn_constructor_args=(drawing, settings.threads, liveness),
        compute=ray.data.ActorPoolStrategy(
            size=min(settings.actors, len(rows)),
            # One shard is drawn while the one before it is committed.
            max_tasks_in_flight_per_actor=CALLS,
            max_concurrent_calls_per_actor=CALLS,
            enable_true_multi_threading=True,
        ),
        num_cpus=settings.cpus_per_actor,
        num_gpus=settings.gpus_per_actor,
    )
    deque(done.iter_rows(), maxlen=0)
    return ray.get(liveness.restarts.remote())


class DrawShards:
    """The sampling actor: loads the models once, then draws and commits shard after shard.

    Ray calls it from CALLS threads. One of them draws at a time, so that pixels do not depend on
    the other. A call ends when its shard is committed: Ray then never takes a shard for done that
    is not, and the actor needs no CPU but its own. Pixels stay in the actor.
    """

    def __init__(self, drawing: Drawing, threads: int, liveness: Any) -> None:
        use_threads(threads)
        self.drawing, self.threads, self.liveness = drawing, threads, liveness
        self.beat = Heartbeat(liveness)
        self.draw = drawing.start()
        self.drawing_one = threading.Lock()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard: Shard = row["shard"]
        with carrying_errors():
            with self.drawing_one:
                drawn = self._drawn(shard)
            if drawn is not None:
                self._commit(shard, drawn)
        return {"committed": drawn is not None}

    def _drawn(self, shard: Shard) -> Any:
        """The drawn shard; None where it has its commit already."""
        if self.drawing.is_committed(shard):  # by another driver, or before its node was lost
            self.beat(shard.count)
            self.beat.idle()
            return None
        name = f"{shard.class_name}/{shard.name}"
        if self.beat.start(name) > MOST_STARTS:
            raise RuntimeError(f"shard {name} was begun {MOST_STARTS} times and its workers died")
        use_threads(self.threads)  # of this thread
        drawn = self.draw(shard, lambda n=0: self.beat())  # an image counts when it is committed
        self.beat.idle()
        return drawn

    def _commit(self, shard: Shard, drawn: Any) -> None:
        # A heartbeat of its own: beats of the drawing thread must not hide a commit that hangs.
        beat = Heartbeat(self.liveness, f"commit {shard.class_name}/{shard.name}")
        beat()
        self.drawing.commit(drawn)
        beat(shard.count)
        beat.idle()
