"""The Workers that run on Ray: one task, many tasks, a pool of actors, drawing and training."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import ray
import ray.data

from busray import config
from busray.cluster.draw import draw_and_commit
from busray.cluster.liveness import Heartbeat, Site, capacity, carrying_errors, monitored
from busray.cluster.session import device_of, is_own, session, use_threads
from busray.cluster.train import fit
from busray.cluster_address import address_of, setting_of, way_without
from busray.failures import is_device_error
from busray.workers import DrawStage, Kind, Report, Shared, Training

T = TypeVar("T")

TASK_RETRIES = 3
"""Times that Ray starts a task again whose worker died."""
MOST_TOGETHER = 16
"""Most items of a pool that are handed out together: a lost worker's are done again."""
ROWS_A_WORKER = 8
MOST_BUNDLES = 64
"""Objects that a pool's items are put in; a worker reads those that it has items of."""


@contextmanager
def ray_workers(settings: config.Cluster, log_file: Path, report: Report) -> Iterator["RayWorkers"]:
    """Workers on Ray, started or joined at their first use and left at the end of the block.

    A session that already runs in this process is used and left running.
    """

    @cache
    def start_session() -> None:
        at_exit.enter_context(session(settings, log_file))
        if not is_own(settings):  # `auto` finds a cluster that the user may not think of
            report(f"joined by {setting_of(settings)}: {capacity()}. Or {way_without(settings)}", 0, 0)

    with ExitStack() as at_exit:
        yield RayWorkers(settings, report, start_session)


class SharedObject(Generic[T]):
    """A value in Ray's object store; pickled, it is a reference only."""

    def __init__(self, reference: Any) -> None:
        self.reference = reference

    def get(self) -> T:
        return ray.get(self.reference)


class RayWorkers:
    """busray.workers.Workers on Ray. start_session() comes before each use; the first one acts."""

    def __init__(self, settings: config.Cluster, report: Report, start_session: Callable[[], None]) -> None:
        self.settings = settings
        self.report = report
        self.start_session = start_session
        self.device = device_of(settings.gpus)

    def labelled(self, prefix: str) -> "RayWorkers":
        def report(stage: str, done: int, total: int) -> None:
            self.report(f"{prefix}: {stage}", done, total)

        return RayWorkers(self.settings, report, self.start_session)

    def share(self, value: T) -> Shared[T]:
        self.start_session()
        return SharedObject(ray.put(value))

    def call(self, stage: str, total: int, task: Callable[..., T], *arguments: Any, kind: Kind = "cpu") -> T:
        def work(liveness: Any) -> T:
            remote: Any = ray.remote(**self._resources(kind), max_retries=TASK_RETRIES)(_run_task)
            return ray.get(remote.remote(self._threads(kind), liveness, task, *arguments))

        return self._monitored(stage, total, work)

    def call_all(
        self, stage: str, total: int, task: Callable[..., T], items: Sequence[Any], *arguments: Any, done: int = 0
    ) -> list[Shared[T]]:
        def work(liveness: Any) -> list[Shared[T]]:
            options = {**self._resources("cpu"), "max_retries": TASK_RETRIES, "num_returns": 2}
            remote: Any = ray.remote(**options)(_run_task_of_many)
            threads = self._threads("cpu")
            ends, results = [], []
            for item in items:
                end, result = remote.remote(threads, liveness, task, item, *arguments)
                ends.append(end)
                results.append(SharedObject(result))
            while ends:
                # In the order in which they end, so that a failure ends the stage at once.
                ended, ends = ray.wait(ends)
                ray.get(ended)
            return results

        return self._monitored(stage, total, work, done)

    def map(
        self,
        stage: str,
        total: int,
        start: Callable[[], Callable[[Any, Any], None]],
        items: Sequence[Any],
        kind: Kind,
    ) -> None:
        cluster = self.settings
        most = cluster.actors
        if kind == "core":  # as many workers of one CPU as the other kinds' CPUs make
            most *= max(1, int(cluster.cpus_per_actor))

        def work(liveness: Any) -> None:
            # Items may hold references, so Ray has to pack them: not a row of Ray Data.
            size = -(-len(items) // MOST_BUNDLES)
            bundles = [ray.put(list(items[at : at + size])) for at in range(0, len(items), size)]
            rows = _handfuls(len(items), size, ROWS_A_WORKER * most)
            arguments = (self._threads(kind), liveness, start, bundles, 3600 * cluster.patience)
            stream = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
                _PoolWorker,  # pyright: ignore[reportArgumentType] (Ray's types leave callable classes out)
                fn_constructor_args=arguments,
                # One handful at a time: a worker that comes first takes no second one from others.
                compute=ray.data.ActorPoolStrategy(size=min(most, len(rows)), max_tasks_in_flight_per_actor=1),
                **self._resources(kind),
            )
            deque(stream.iter_rows(), maxlen=0)

        if items:
            self._monitored(stage, total, work)

    def draw(self, stage: DrawStage) -> None:
        def tell(words: str) -> None:
            self.report(f"{stage.name}: {words}", 0, 0)

        def work(liveness: Any) -> int:
            if stage.done:
                ray.get(liveness.succeed.remote())
            return draw_and_commit(self.settings, stage, tell, liveness)

        again = self._monitored(stage.name, stage.planned, work, stage.done)
        if again:
            self.report(f"{stage.name}, shards begun again", again, again)

    def train(self, stage: str, training: Training, *, done: int) -> None:
        self._monitored(stage, training.steps, lambda liveness: fit(self.settings, training, liveness, done), done)

    def _monitored(self, stage: str, total: int, work: Callable[[Any], T], done: int = 0) -> T:
        self.start_session()
        cluster = self.settings
        # In a Ray of busray's own no machine can be added.
        patience = 0.0 if is_own(cluster) else 3600 * cluster.patience
        return monitored(self.report, stage, total, cluster.hang_seconds, work, done, patience)

    def _resources(self, kind: Kind) -> dict[str, Any]:
        """Of one worker."""
        cluster = self.settings
        cpus = 1 if kind == "core" else cluster.cpus_per_actor
        if kind == "model":
            return {"num_cpus": cpus, "num_gpus": cluster.gpus}
        resources: dict[str, Any] = {"num_cpus": cpus, "num_gpus": 0}
        if cluster.cpu_nodes and address_of(cluster) != "local":
            # A little of it: it only says where, and the CPUs say how many.
            resources["resources"] = {"cpu_node": 0.001}
        return resources

    def _threads(self, kind: Kind) -> int | None:
        """torch's threads; None where torch is not used, since to set them imports it."""
        return None if kind == "core" else self.settings.threads


def _run_task(threads: int | None, liveness: Any, task: Callable[..., T], *arguments: Any) -> T:
    if threads is not None:
        use_threads(threads)
    beat = Heartbeat(liveness)
    beat()
    result = task(beat, *arguments)
    beat.idle()
    return result


def _run_task_of_many(threads: int | None, liveness: Any, task: Callable[..., T], *arguments: Any) -> tuple[None, T]:
    """The first result tells that the task ended well; the second may be large and stays there."""
    return None, _run_task(threads, liveness, task, *arguments)


def _handfuls(items: int, size: int, rows: int) -> list[dict[str, int]]:
    """Rows of Ray Data that name all items: at most MOST_TOGETHER of one bundle of `size`.

    At least so many rows where there are as many items: nobody works long alone at the end. A row
    costs the driver 25 ms, so a million images are not a row a shard.
    """
    together = max(1, min(MOST_TOGETHER, items // rows))
    handfuls: list[dict[str, int]] = []
    for bundle, first in enumerate(range(0, items, size)):
        in_bundle = min(size, items - first)
        for start in range(0, in_bundle, together):
            handfuls.append({"bundle": bundle, "start": start, "end": min(start + together, in_bundle)})
    return handfuls


class _PoolWorker:
    """An actor of the pool: loads once what its work needs, then takes item after item."""

    def __init__(
        self,
        threads: int | None,
        liveness: Any,
        start: Callable[[], Any],
        bundles: Sequence[Any],
        patience: float,
    ) -> None:
        if threads is not None:
            use_threads(threads)
        self.bundles = bundles
        self.site = Site(liveness)
        self.beat = Heartbeat(liveness)
        self.work: Any = None
        self.error: Exception | None = None
        try:  # see cluster/draw.py: a constructor raises nothing
            self.work = self.site.load_here(start, patience)
        except Exception as error:
            self.error = error

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        with carrying_errors():
            if self.error is not None:
                raise self.error
            self.beat()
            # No worker holds all items: of a large corpus they are many.
            items = ray.get(self.bundles[int(row["bundle"])])
            name = f"items {row['bundle']}/{row['start']}"
            self.site.begin_here(name)
            try:
                for item in items[int(row["start"]) : int(row["end"])]:
                    self.work(item, self.beat)
            except Exception as error:
                if is_device_error(error):
                    self.site.end_or_raise(error, name)
                raise
            self.site.finish(name)
            self.beat.idle()
        return row
