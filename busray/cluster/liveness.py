"""Progress from workers, and what is done about those that hang or fail.

An actor keeps the Ledger of a stage (stalls.py). The driver reports the count to people. It kills a
worker that hangs, and Ray gives that work to another worker. It waits for workers for as long as
there are none, and ends the stage if workers come and nothing moves.
"""

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from busray.failures import cause_in_words, is_device_error, is_transient
from busray.faults import Begin, Place
from busray.records import Stopped, StoppedForGood, UserError
from busray.stalls import Ledger, StallWatch, Worker
from busray.storage import retry_delays
from busray.workers import Report

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 5.0, 300.0
"""Seconds before models are loaded again, at first and later."""
QUIET_POLL_SECONDS = 2.0

POLL_SECONDS = 0.5

BEAT_SECONDS = 1.0
"""Least time between two messages of a Heartbeat: many fast workers must not flood the actor."""


@ray.remote(num_cpus=0, max_restarts=-1)
class Liveness(Ledger):
    """The Ledger of a stage, in an actor."""

    def __init__(self) -> None:
        super().__init__(_is_alive)


def _is_alive(node: str) -> bool:
    return any(each["NodeID"] == node and each["Alive"] for each in ray.nodes())


def _address() -> str:
    """Of this node."""
    return ray.util.get_node_ip_address()


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

    def idle(self) -> None:
        """The work is done: what was counted is sent, and silence is no hang."""
        self.liveness.add.remote(self.unsent, self.worker)
        self.unsent, self.last_sent = 0, -math.inf
        self.liveness.idle.remote(self.worker)


class Site:
    """An actor and its place: the worker's end of a Liveness's faults."""

    def __init__(self, liveness: Any) -> None:
        context = ray.get_runtime_context()
        self.liveness = liveness
        self.actor: str = context.get_actor_id() or str(os.getpid())
        self.place: Place = (context.get_node_id(), tuple(map(str, ray.get_gpu_ids())))
        self.worker = this_worker()

    def load(self, start: Callable[[], T], patience: float) -> T | None:
        """start(), tried again for as long as that can help; None where this place is avoided.

        What a busy hub or store answers is tried again with growing pauses for `patience` seconds.
        A broken device ends this process, and Ray starts another one. Raises what does not pass.
        """
        began, pauses = time.monotonic(), retry_delays(FIRST_PAUSE, LONGEST_PAUSE)
        while True:
            if ray.get(self.liveness.load.remote(self.actor, self.place)) == "wait":
                return None
            try:
                loaded = start()
            except (UserError, StoppedForGood):
                raise
            except Exception as error:
                if is_transient(error) and time.monotonic() - began < patience:
                    pause = next(pauses)
                    words = f"{self.words(error)}; it tries again in {pause:.0f} s"
                    ray.get(self.liveness.pause.remote(self.actor, words))
                elif is_device_error(error):
                    self.end_or_raise(error, self.actor)
                elif ray.get(self.liveness.cannot_load.remote(self.actor, self.place, self.words(error))) == "raise":
                    raise
                else:
                    pause = next(pauses)
            else:
                ray.get(self.liveness.loaded.remote(self.actor, self.place))
                return loaded
            time.sleep(pause)

    def begin(self, shard: str) -> tuple[Begin, str]:
        """What to do with a shard, and why."""
        return ray.get(self.liveness.begin.remote(shard, self.actor, self.place, self.worker))

    def load_here(self, start: Callable[[], T], patience: float) -> T:
        """load(), for an actor whose work cannot be handed back."""
        loaded = self.load(start, patience)
        if loaded is None:
            self.wait_until_quiet()
            raise Stopped(f"a machine failed again and again, and its work is left (node {_address()})")
        return loaded

    def begin_here(self, what: str) -> None:
        """begin(), for work that cannot be handed back: it is tried here until it must be given up,
        which raises Stopped."""
        order, why = self.begin(what)
        if order == "leave":
            order, why = self.begin(what)
        if order != "draw":
            raise Stopped(f"{what}: {why}")

    def finish(self, shard: str) -> None:
        ray.get(self.liveness.finish.remote(shard))

    def raise_or_again(self, error: Exception, work: str) -> None:
        """Return where the work that failed may be begun again, else raise."""
        if ray.get(self.liveness.is_failing.remote(work, self.place, self.words(error))) == "raise":
            raise error

    def end_or_raise(self, error: Exception, work: str) -> NoReturn:
        """End this process, whose device is broken: Ray starts it again. Raise where that is no
        help."""
        self.raise_or_again(error, work)
        os._exit(1)

    def wait_until_quiet(self) -> None:
        """Hold what this actor has until no other worker has anything to do."""
        while not ray.get(self.liveness.is_quiet.remote()):
            time.sleep(QUIET_POLL_SECONDS)

    def words(self, error: Exception) -> str:
        """An error's innermost cause and where it is."""
        gpus = f", GPU {' and '.join(self.place[1])}" if self.place[1] else ""
        return f"{cause_in_words(error)} (node {_address()}{gpus})"


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
    report: Report,
    stage: str,
    total: int,
    hang_seconds: float,
    work: Callable[[Any], T],
    done: int = 0,
    patience: float = 0.0,
) -> T:
    """work(liveness), with its progress reported and its hanging workers killed.

    `total` and `done`: items of the whole stage, and those of them that were done before.
    Raises UserError for a mistake that a worker found, and Stopped for any other failure on Ray or
    where there is no progress for STALLED_AFTER times hang_seconds; where no worker came in that
    time, for `patience` seconds, if they are more.
    """

    def tell(words: str) -> None:
        report(f"{stage}: {words}", 0, 0)

    with _reported(report, stage, total, done) as liveness:
        watch = StallWatch(stage, hang_seconds, patience, tell, capacity)
        try:
            return _watched(watch, liveness, lambda: work(liveness))
        except RayError as error:
            cause = getattr(error, "cause", None) or error  # what the worker raised, if it did
            cause = cause.error if isinstance(cause, WorkError) else cause
            if isinstance(cause, (UserError, StoppedForGood)):
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


def _watched(watch: StallWatch, liveness: Any, work: Callable[[], T]) -> T:
    """work() in a thread of its own: a Ray stream that never ends could not be left otherwise."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((work(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    looked_at = time.monotonic()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        if time.monotonic() - looked_at < min(watch.hang_seconds / 10, 10):
            continue
        looked_at = time.monotonic()
        state = _ask(liveness.state.remote())
        watch.look(state, looked_at)
        for node, pid, _ in _ask(liveness.stalled.remote(watch.hang_seconds)) or []:
            _kill(node, pid)
    result, error = outcome[0]
    if error is not None:
        raise error
    watch.tell_avoided(_ask(liveness.state.remote()))
    return result


def _ask(answer: Any) -> Any:
    """What a Liveness answers; None while it restarts, or where Ray is gone."""
    try:
        return ray.get(answer, timeout=30)
    except RayError:
        return None


def capacity() -> str:
    """What the Ray of this process has, and what of it is free."""
    has, free = ray.cluster_resources(), ray.available_resources()
    nodes = sum(each["Alive"] for each in ray.nodes())
    parts = []
    for kind in ("CPU", "GPU"):
        if kind in has:
            parts.append(f"{free.get(kind, 0):g} of {has[kind]:g} {kind}s")
    where = ray.get_runtime_context().gcs_address
    return f"Ray at {where} has {nodes} node{'s' * (nodes != 1)}, with {' and '.join(parts) or 'no CPU'} free"


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
