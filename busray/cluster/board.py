"""Progress from workers: an actor counts, a thread of the driver reads it and tells people."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError

from busray.cluster.session import Tell

POLL_SECONDS = 0.5


@ray.remote(num_cpus=0, max_restarts=-1)
class Board:
    """Counts what workers have done."""

    def __init__(self) -> None:
        self.done = 0

    def add(self, n: int) -> None:
        self.done += n

    def put(self, n: int) -> None:
        self.done = n

    def read(self) -> int:
        return self.done


@contextmanager
def watched(tell: Tell, stage: str, total: int, done: int = 0) -> Iterator[Any]:
    """A Board whose count, on top of `done`, is told every half second for the length of the block."""
    board: Any = Board.remote()
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
