"""Progress from workers, and what is done about those that fall silent.

An actor counts and keeps each worker's last sign of life; the driver tells people, kills a worker that hangs so that
Ray gives its shard to another, and ends the command where nothing moves at all.
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

from busray.cluster.session import Tell
from busray.records import Stopped, UserError

T = TypeVar("T")


POLL_SECONDS = 0.5


PATIENCE = 4
"""Hanging limits without any sign of work after which the command ends."""


BEAT_SECONDS = 1.0
"""The least time between two beats of a Pulse, so that many fast workers do not flood the actor."""


Worker = tuple[str, int]
"""(node id, process id)."""


@ray.remote(num_cpus=0, max_restarts=-1)
class Board:
    """Counts what workers have done and remembers when each at work was last heard of."""

    def __init__(self) -> None:
        self.done = 0
        self.moves = 0
        self.heard: dict[Worker, float] = {}
        self.begun: Counter[str] = Counter()

    def add(self, n: int, worker: Worker | None = None, for_all: bool = False) -> None:
        """n more are done; 0 is a heartbeat. for_all: the others at work wait for this worker, so it beats for them."""
        self.put(self.done + n, worker)
        if for_all:
            self.heard = dict.fromkeys(self.heard, time.monotonic())

    def put(self, n: int, worker: Worker | None = None) -> None:
        """So many are done in all.

        A new count is a move, and so is a beat of a worker that is at work. A first beat is none: it may be of a
        worker that will hang or die there, as those before it did whose work it was given.
        """
        self.moves += n != self.done or worker in self.heard
        self.done = n
        if worker is not None:
            self.heard[worker] = time.monotonic()

    def begin(self, what: str, worker: Worker) -> int:
        """How often this piece of work was begun, this time included."""
        self.add(0, worker)
        self.begun[what] += 1
        return self.begun[what]

    def again(self) -> int:
        """Beginnings beyond the first, over all pieces of work: what lost and hanging workers cost."""
        return self.begun.total() - len(self.begun)

    def rest(self, worker: Worker) -> None:
        """The worker has done its work and nothing to do now: its silence means nothing."""
        self.moves += self.heard.pop(worker, None) is not None

    def read(self) -> int:
        return self.done

    def moved(self) -> int:
        """A number that stands still only while no worker gets on with its work."""
        return self.moves

    def silent(self, seconds: float) -> list[Worker]:
        """Workers at work and not heard of for so long; each is named once."""
        late = [worker for worker, at in self.heard.items() if time.monotonic() - at > seconds]
        for worker in late:
            del self.heard[worker]
        return late


def this_worker() -> Worker:
    return ray.get_runtime_context().get_node_id(), os.getpid()


class Pulse:
    """What a worker calls as often as it can, to be heard of while it works and to count what it has done.

    The board is told at most once in BEAT_SECONDS; counts add up until then, or until the worker rests.
    """

    def __init__(self, board: Any) -> None:
        self.board = board
        self.me = this_worker()
        self.untold = 0
        self.told = -math.inf

    def __call__(self, n: int = 0, for_all: bool = False) -> None:
        """for_all: as of Board.add."""
        self.untold += n
        now = time.monotonic()
        if now - self.told >= BEAT_SECONDS:
            self.board.add.remote(self.untold, self.me, for_all)
            self.untold, self.told = 0, now

    def rest(self) -> None:
        """The work is done."""
        self.board.add.remote(self.untold, self.me)
        self.untold, self.told = 0, -math.inf
        self.board.rest.remote(self.me)


@contextmanager
def watched(tell: Tell, stage: str, total: int, done: int = 0) -> Iterator[Any]:
    """A Board whose count, on top of `done`, is told every half second for the length of the block."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    board: Any = Board.options(scheduling_strategy=here).remote()  # workers' nodes come and go, the driver's stays
    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(POLL_SECONDS):
            try:
                tell(stage, min(done + int(ray.get(board.read.remote(), timeout=10)), total), total)
            except RayError:
                continue  # a lost board costs progress lines, never the work

    tell(stage, done, total)
    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield board
        stop.set()
        thread.join()
        tell(stage, total, total)
    finally:
        stop.set()
        ray.kill(board)


def supervised(board: Any, stage: str, hang_seconds: float, work: Callable[[], T]) -> T:
    """work(), with its hanging workers killed; Stopped where nothing moves for PATIENCE times hang_seconds: no worker
    comes to work, or those that do are not heard of again.

    work runs in a thread of its own, since a stream that never ends could not be left otherwise; it must not need the
    main thread.
    """
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((work(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    seen, moved, looked = -1, time.monotonic(), time.monotonic()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        now = time.monotonic()
        if now - looked < min(hang_seconds / 10, 10):
            continue
        looked = now
        moves, late = _look(board, hang_seconds, seen)
        if moves != seen:
            seen, moved = moves, now
        elif now - moved > PATIENCE * hang_seconds:
            raise Stopped(f"{stage}: nothing moved for {PATIENCE * hang_seconds:.0f} s")
        for node, pid in late:
            _kill(node, pid)
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def _look(board: Any, hang_seconds: float, seen: int) -> tuple[int, list[Worker]]:
    """The board's moves and who is silent; nothing new where the board is being restarted, or Ray is gone."""
    try:
        moves, late = ray.get([board.moved.remote(), board.silent.remote(hang_seconds)], timeout=30)
    except RayError:
        return seen, []
    return moves, late


@ray.remote(num_cpus=0, max_retries=0)
def _end(pid: int) -> None:
    import signal
    from pathlib import Path

    title = Path(f"/proc/{pid}/cmdline")
    if title.exists() and title.read_bytes().startswith(b"ray::"):  # the number may be another process's by now
        os.kill(pid, signal.SIGKILL)  # a stopped process answers no gentler way


def _kill(node: str, pid: int) -> None:
    """End a worker on its own node; Ray starts another and repeats its task. A node that is gone took it along."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    try:
        ray.get(_end.options(scheduling_strategy=there).remote(pid), timeout=60)
    except (RayError, OSError):
        return


def stopped(stage: str, error: BaseException) -> BaseException:
    """What a failed stage ends with: a mistake found in a worker like one found here, all else as Stopped."""
    cause = getattr(error, "cause", None) or error  # Ray wraps a worker's error in the whole traceback
    return cause if isinstance(cause, UserError) else Stopped(f"{stage}: {brief(cause)}")


def brief(error: BaseException) -> str:
    """The last line of an error that may carry a worker's whole traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
