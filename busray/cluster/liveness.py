"""Progress from workers, and what is done about those that hang.

An actor counts finished items and keeps the time of each worker's last beat. The driver reports
the count to people. It kills a worker that hangs, and Ray gives that work to another worker. It
ends the stage if nothing moves at all.
"""

import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from busray.failures import cause_in_words
from busray.records import Stopped, UserError
from busray.workers import Report

T = TypeVar("T")

POLL_SECONDS = 0.5

STALLED_AFTER = 4
"""Multiples of cluster.hang_seconds without any progress after which the stage ends."""

BEAT_SECONDS = 1.0
"""Least time between two messages of a Heartbeat: many fast workers must not flood the actor."""

Worker = tuple[str, int, str]
"""(node id, process id, which of the things that the process does at once)."""


@ray.remote(num_cpus=0, max_restarts=-1)
class Liveness:
    """Counts what workers have done, and remembers the last beat of each one at work."""

    def __init__(self) -> None:
        self.count = 0
        self.moves = 0
        self.last_beat: dict[Worker, float] = {}
        self.starts: Counter[str] = Counter()

    def add(self, n: int, worker: Worker | None = None, for_all: bool = False) -> None:
        """n more are done; 0 is a beat alone. for_all: the other workers wait for this one."""
        self.set(self.count + n, worker)
        if for_all:
            self.last_beat = dict.fromkeys(self.last_beat, time.monotonic())

    def set(self, count: int, worker: Worker | None = None) -> None:
        """`count` are done in all.

        Progress is a new count, or a further beat of a worker at work. A worker's first beat is
        none: a shard that kills its workers would make progress by killing them.
        """
        self.moves += count != self.count or worker in self.last_beat
        self.count = count
        if worker is not None:
            self.last_beat[worker] = time.monotonic()

    def start(self, what: str, worker: Worker) -> int:
        """How often this piece of work was started, this time included."""
        self.add(0, worker)
        self.starts[what] += 1
        return self.starts[what]

    def restarts(self) -> int:
        """Starts beyond the first, over all pieces of work: the cost of lost workers."""
        return self.starts.total() - len(self.starts)

    def idle(self, worker: Worker) -> None:
        """Mark the worker idle so that silence is not taken for a hang."""
        self.moves += self.last_beat.pop(worker, None) is not None

    def done(self) -> int:
        return self.count

    def progress(self) -> int:
        """A number that changes whenever a worker gets on with its work."""
        return self.moves

    def stalled(self, seconds: float) -> list[Worker]:
        """Workers at work without a beat for so long; each is named once."""
        now = time.monotonic()
        silent = [worker for worker, last in self.last_beat.items() if now - last > seconds]
        for worker in silent:
            del self.last_beat[worker]
        return silent


def this_worker(part: str = "") -> Worker:
    return ray.get_runtime_context().get_node_id(), os.getpid(), part


class Heartbeat:
    """The worker's end of a Liveness: it is called as often as possible while there is work.

    Messages go out at most once in BEAT_SECONDS; counts add up until then, or until idle().
    """

    def __init__(self, liveness: Any, part: str = "") -> None:
        """part: of the things that this process does at once, the one that beats."""
        self.liveness = liveness
        self.worker = this_worker(part)
        self.unsent = 0
        self.last_sent = -math.inf

    def __call__(self, n: int = 0, for_all: bool = False) -> None:
        """n more are done. for_all: the other workers wait for this one, so it beats for them."""
        self.unsent += n
        now = time.monotonic()
        if now - self.last_sent >= BEAT_SECONDS:
            self.liveness.add.remote(self.unsent, self.worker, for_all)
            self.unsent, self.last_sent = 0, now

    def set(self, count: int) -> None:
        """`count` are done in all, by all workers."""
        self.liveness.set.remote(count, self.worker)

    def start(self, what: str) -> int:
        """Start a piece of work; returns how often any worker did so, this time included."""
        return ray.get(self.liveness.start.remote(what, self.worker))

    def idle(self) -> None:
        """The work is done: what was counted is sent, and silence is no hang."""
        self.liveness.add.remote(self.unsent, self.worker)
        self.unsent, self.last_sent = 0, -math.inf
        self.liveness.idle.remote(self.worker)


class WorkError(Exception):
    """Carries the error of a worker in a Ray Data stream, unchanged.

    Ray Data appends advice on its own settings to the message of whatever a worker raises.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


@contextmanager
def carrying_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise WorkError(error) from error


def monitored(
    report: Report, stage: str, total: int, hang_seconds: float, work: Callable[[Any], T], done: int = 0
) -> T:
    """work(liveness), with its progress reported and its hanging workers killed.

    `total` and `done`: items of the whole stage, and those of them that were done before.
    Raises UserError for a mistake that a worker found, and Stopped for any other failure on Ray or
    where there is no progress for STALLED_AFTER times hang_seconds.
    """
    with _reported(report, stage, total, done) as liveness:
        try:
            return _killing_what_hangs(liveness, stage, hang_seconds, lambda: work(liveness))
        except RayError as error:
            cause = getattr(error, "cause", None) or error  # what the worker raised, if it did
            cause = cause.error if isinstance(cause, WorkError) else cause
            if isinstance(cause, UserError):
                raise cause from error
            raise Stopped(f"{stage}: {cause_in_words(error)}") from error


@contextmanager
def _reported(report: Report, stage: str, total: int, done: int) -> Iterator[Any]:
    """A Liveness whose count, on top of `done`, is reported while the block runs."""
    # On the driver's node, since the workers' nodes come and go.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    liveness: Any = Liveness.options(scheduling_strategy=here).remote()
    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(POLL_SECONDS):
            try:
                report(stage, min(done + int(ray.get(liveness.done.remote(), timeout=10)), total), total)
            except RayError:
                continue  # a lost Liveness costs progress lines, never the work

    report(stage, done, total)
    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield liveness
        stop.set()
        thread.join()
        report(stage, total, total)
    finally:
        stop.set()
        ray.kill(liveness)


def _killing_what_hangs(liveness: Any, stage: str, hang_seconds: float, work: Callable[[], T]) -> T:
    """work() in a thread of its own: a Ray stream that never ends could not be left otherwise."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((work(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    progress, moved_at, looked_at = -1, time.monotonic(), time.monotonic()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        now = time.monotonic()
        if now - looked_at < min(hang_seconds / 10, 10):
            continue
        looked_at = now
        latest, stalled = _look(liveness, hang_seconds, progress)
        if latest != progress:
            progress, moved_at = latest, now
        elif now - moved_at > STALLED_AFTER * hang_seconds:
            raise Stopped(f"{stage}: nothing moved for {STALLED_AFTER * hang_seconds:.0f} s")
        for node, pid, _ in stalled:
            _kill(node, pid)
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def _look(liveness: Any, hang_seconds: float, progress: int) -> tuple[int, list[Worker]]:
    """(progress, workers that hang); nothing new while the actor restarts, or where Ray is gone."""
    try:
        answers = [liveness.progress.remote(), liveness.stalled.remote(hang_seconds)]
        latest, stalled = ray.get(answers, timeout=30)
    except RayError:
        return progress, []
    return latest, stalled


def _kill(node: str, pid: int) -> None:
    """End a worker on its own node; Ray starts another one, which does its task again."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    try:
        ray.get(_kill_here.options(scheduling_strategy=there).remote(pid), timeout=60)
    except (RayError, OSError):
        return  # the node is gone, and its workers with it


@ray.remote(num_cpus=0, max_retries=0)
def _kill_here(pid: int) -> None:
    import signal
    from pathlib import Path

    title = Path(f"/proc/{pid}/cmdline")
    if title.exists() and title.read_bytes().startswith(b"ray::"):  # the pid may be reused by now
        os.kill(pid, signal.SIGKILL)  # a stopped process answers to no gentler signal
