"""Generation as a Ray Data stream: a plan of shards -> actors that draw and commit them.

Ray Data takes an actor whose constructor raises on a later start for dead for good, and the run
with it. So a constructor here raises nothing: what it cannot mend it raises at the first call.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import ray.data

from busray import config
from busray.cluster.liveness import Heartbeat, Site, carrying_errors
from busray.cluster.metrics import Measured
from busray.cluster.session import use_threads
from busray.failures import is_device_error
from busray.faults import Begin
from busray.records import Shard, Stopped, UserError
from busray.together import Together
from busray.workers import Beat, Drawing, DrawStage

CALLS = 2
"""Shards that an actor has at once: one is drawn, one is committed."""

FRUITLESS_STREAMS = 3
"""Streams in a row that hand back what they got and draw nothing, after which the stage ends."""

Row = dict[str, Any]


def draw_and_commit(settings: config.Cluster, stage: DrawStage, tell: Callable[[str], None], liveness: Any) -> int:
    """Draw and commit the shards; returns how often one was begun again as its worker was lost.

    The first ones are a stream of their own where the others need more actors.
    """
    drawing, first = stage.drawing, stage.first
    drawing = drawing.each(Measured) if isinstance(drawing, Together) else Measured(drawing)
    ahead = set(first)
    later = [shard for shard in stage.shards if shard not in ahead]
    if not first or not later or settings.actors <= len(first):
        streams = [[*first, *later]]
    else:
        streams = [first, later]
        names = ", ".join(map(_name, first))
        tell(f"one shard of each class comes first ({names}), on at most {len(first)} of {settings.actors} actors")
    for stream in streams:
        fruitless = 0
        while stream:
            left: dict[Shard, str] = {}
            for row in _rows(settings, drawing, stream, liveness):
                if row["left"]:
                    left[row["shard"]] = row["left"]
                elif row["quarantined"]:
                    tell(f"all images of shard {_name(row['shard'])} are quarantined: {row['quarantined']}")
                elif row["commit"] is not None:
                    stage.seen(row["commit"])
            fruitless = fruitless + 1 if len(left) == len(stream) else 0
            if fruitless == FRUITLESS_STREAMS:
                raise Stopped(f"no worker takes what is left ({len(left)} shards): {next(iter(left.values()))}")
            stream = [shard for shard in stream if shard in left]
    return ray.get(liveness.restarts.remote())


def _name(shard: Shard) -> str:
    return f"{shard.class_name}/{shard.name}"


def _rows(settings: config.Cluster, drawing: Drawing, shards: Sequence[Shard], liveness: Any) -> Iterator[Row]:
    """What became of each shard, as DrawShards says it, in the order in which they are done."""
    rows = [{"shard": shard} for shard in shards]
    plan = ray.data.from_items(rows, override_num_blocks=len(rows))
    done = plan.map(
        DrawShards,  # pyright: ignore[reportArgumentType] (Ray's types leave callable classes out)
        fn_constructor_args=(drawing, settings, liveness),
        compute=ray.data.ActorPoolStrategy(
            size=min(settings.actors, len(rows)),
            # One shard is drawn while the one before it is committed.
            max_tasks_in_flight_per_actor=CALLS,
            max_concurrent_calls_per_actor=CALLS,
            enable_true_multi_threading=True,
        ),
        num_cpus=settings.cpus_per_actor,
        num_gpus=settings.gpus,
        **_elsewhere(liveness),
    )
    yield from done.iter_rows()


def _elsewhere(liveness: Any) -> dict[str, Any]:
    """Options that keep new actors away from nodes with an avoided place, if there are others."""
    avoided = {node for node, _ in ray.get(liveness.avoided.remote())}
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    if not avoided or not alive - avoided:
        return {}
    return {"label_selector": {"ray.io/node-id": f"!in({','.join(sorted(avoided))})"}}


class DrawShards:
    """The sampling actor: loads the models once, then draws and commits shard after shard.

    Ray calls it from CALLS threads. One of them draws at a time, so that pixels do not depend on
    the other. A call ends when its shard is committed: Ray then never takes a shard for done that
    is not, and the actor needs no CPU but its own. Pixels stay in the actor.

    In a place that failed again and again it loads nothing: it keeps the place from other actors,
    and hands back what it gets when nobody has other work any more.
    """

    def __init__(self, drawing: Drawing, settings: config.Cluster, liveness: Any) -> None:
        use_threads(settings.threads)
        self.drawing, self.threads, self.liveness = drawing, settings.threads, liveness
        self.beat = Heartbeat(liveness)
        self.site = Site(liveness)
        self.drawing_one, self.committing = threading.Lock(), threading.Lock()
        self.draw: Any = None
        self.error: Exception | None = None
        try:
            self.draw = self.site.load(drawing.start, settings.patience * 3600)
        except Exception as error:
            self.error = error
            return
        if self.draw is None:  # an actor whose constructor has not ended gets no shards
            self.site.wait_until_quiet()

    def __call__(self, row: Row) -> Row:
        """The shard, with its commit, why it is handed back, or why it is quarantined."""
        shard: Shard = row["shard"]
        result = {"shard": shard, "commit": None, "left": "", "quarantined": ""}
        with carrying_errors():
            if self.error is not None:
                raise self.error
            if self.draw is None:
                self.site.wait_until_quiet()
                return result | {"left": "its machine failed again and again"}
            with self.drawing_one:
                order, drawn = self._drawn(shard)
            if order == "hold":
                self.site.wait_until_quiet()
            if order in ("leave", "hold"):
                result["left"] = drawn
            elif order == "quarantine":
                result["quarantined"] = drawn
                self._record(shard, lambda _: self.drawing.quarantine(shard, drawn))
            elif order == "draw":
                result["commit"] = self._record(shard, lambda beat: self.drawing.commit(drawn, beat))
                self.site.finish(_name(shard))
        return result

    def _drawn(self, shard: Shard) -> tuple[Begin | None, Any]:
        """("draw", the drawn shard), or another order and why; (None, None) for a shard that is
        committed already."""
        while True:
            if self.drawing.is_committed(shard):  # by another driver, or before its node was lost
                self.site.finish(_name(shard))
                self.beat(shard.count)
                self.beat.idle()
                return None, None
            order, why = self.site.begin(_name(shard))
            if order == "raise":
                raise Stopped(f"shard {_name(shard)} cannot be drawn: {why}")
            if order != "draw":
                self.beat.idle()
                return order, why
            try:
                use_threads(self.threads)  # of this thread
                drawn = self.draw(shard, lambda n=0: self.beat())  # an image counts when committed
                self.beat.idle()
                return order, drawn
            except (UserError, Stopped):
                raise
            except Exception as error:  # of this machine, or of this shard: it is tried again
                self.beat.idle()
                if is_device_error(error):
                    with self.committing:  # what was drawn before is not lost with the device
                        self.site.end_or_raise(error, _name(shard))
                self.site.raise_or_again(error, _name(shard))

    def _record(self, shard: Shard, commit: Callable[[Beat], Any]) -> Any:
        with self.committing:
            # A heartbeat of its own: beats of the drawing thread must not hide a commit that hangs.
            beat = Heartbeat(self.liveness, f"commit {_name(shard)}")
            beat()
            try:
                recorded = commit(lambda n=0: beat())  # an image counts when its shard is recorded
            except Exception as error:
                if is_device_error(error):  # with evaluate.inline a commit measures on the device
                    self.site.end_or_raise(error, _name(shard))
                raise
            beat(shard.count)
            beat.idle()
        return recorded
