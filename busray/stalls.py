"""Who is at work, who is silent, and when a stage must end since nothing moves.

Pure, but for the clock: cluster/liveness.py has a Ledger in an actor, and looks at it from the
driver with a StallWatch.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from busray.faults import After, Begin, Faults, IsAlive, Load, Place
from busray.records import Stopped

T = TypeVar("T")

STALLED_AFTER = 4
"""Multiples of cluster.hang_seconds without any progress after which the stage ends, if workers
came in that time."""

WAIT_SAID_AFTER, WAIT_SAID_EVERY = 60.0, 600.0
"""Seconds without a worker after which people are told so, and between further times."""
WAIT_SAID_EARLY = 15.0
"""The same seconds in a cluster that others use too: its CPUs may be taken."""

HOPELESS_SECONDS = 30.0
"""How long a worker has to raise its own error before the driver ends a hopeless stage."""

QUIET_SECONDS = 10.0
"""Seconds without any worker at work after which those in avoided places hand back what they hold:
nobody else can take it before the stream has ended."""

Worker = tuple[str, int, str]
"""(node id, process id, which of the things that the process does at once)."""


class Ledger:
    """Counts what the workers of one stage have done, and remembers the last beat of each one at
    work and who failed where."""

    def __init__(self, is_alive: IsAlive) -> None:
        self.is_alive = is_alive
        self.count = 0
        self.moves = 0
        self.last_beat: dict[Worker, float] = {}
        self.faults = Faults()
        self.busy_at = time.monotonic()
        self.joins = 0
        self.pauses: dict[str, str] = {}

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
            self.joins += worker not in self.last_beat
            self.last_beat[worker] = time.monotonic()

    def restarts(self) -> int:
        """Shards begun beyond their first time: the cost of lost workers."""
        return self.faults.starts.total() - len(self.faults.starts)

    def load(self, actor: str, place: Place) -> Load:
        """An actor's process is up: what it does."""
        self.joins += 1
        return self._noted(self.faults.load(actor, place, self.is_alive))

    def loaded(self, actor: str, place: Place) -> None:
        self.pauses.pop(actor, None)
        self.faults.loaded(actor, place)
        self._noted(None)

    def pause(self, actor: str, words: str) -> None:
        """An actor tries later to load its models: what it waits for."""
        self.faults.pause(actor)
        self.pauses[actor] = words

    def begin(self, shard: str, actor: str, place: Place, worker: Worker) -> tuple[Begin, str]:
        """An actor has got a shard: what it does, and why."""
        self.add(0, worker)
        return self._noted(self.faults.begin(shard, actor, place, self.is_alive))

    def finish(self, shard: str) -> None:
        """A shard was drawn and committed."""
        self._noted(self.faults.drawn(shard))

    def is_failing(self, work: str, place: Place, what: str) -> After:
        """An actor says why it will begin a shard, or its loading, again."""
        return self._noted(self.faults.is_failing(work, place, what))

    def cannot_load(self, actor: str, place: Place, what: str) -> After:
        return self._noted(self.faults.cannot_load(actor, place, what))

    def succeed(self) -> None:
        """Earlier commands drew shards of this corpus."""
        self.faults.has_drawn = True

    def avoided(self) -> dict[Place, str]:
        """Places that take no more work, and why."""
        return self.faults.avoided

    def is_quiet(self) -> bool:
        """Whether nobody has been at work for a while."""
        return not self.faults.is_busy and time.monotonic() - self.busy_at > QUIET_SECONDS

    def _noted(self, answer: T) -> T:
        self.busy_at = time.monotonic()
        return answer

    def idle(self, worker: Worker) -> None:
        """Mark the worker idle so that silence is not taken for a hang."""
        self.moves += self.last_beat.pop(worker, None) is not None

    def done(self) -> int:
        return self.count

    def progress(self) -> int:
        """A number that changes whenever a worker gets on with its work."""
        return self.moves

    def state(self) -> "State":
        hopeless = self.faults.hopeless()
        pauses = list(self.pauses.values())
        return State(
            self.moves,
            self.joins,
            len(self.last_beat),
            pauses[0] if pauses else "",
            f"workers fail again and again, at last so: {hopeless.what}" if hopeless else "",
            tuple(self.faults.avoided.values()),
        )

    def stalled(self, seconds: float) -> list[Worker]:
        """Workers at work without a beat for so long; each is named once."""
        now = time.monotonic()
        silent = [worker for worker, last in self.last_beat.items() if now - last > seconds]
        for worker in silent:
            del self.last_beat[worker]
        return silent


@dataclass(frozen=True)
class State:
    """What a driver wants to know of its workers."""

    progress: int  # see Ledger.progress
    joins: int  # workers that came, counted
    at_work: int  # those that beat
    waits_for: str  # what keeps a worker from loading its models; empty for nothing
    hopeless: str  # why no worker can go on; empty where one can
    avoided: tuple[str, ...]  # the last failure of each place that takes no more work


class StallWatch:
    """Decides when a stage must end since nothing moves, and says what it waits for."""

    def __init__(
        self,
        stage: str,
        hang_seconds: float,
        patience: float,
        tell: Callable[[str], None],
        capacity: Callable[[], str],
    ) -> None:
        """patience: seconds to wait for workers. capacity: says what room there is for any."""
        self.stage, self.hang_seconds, self.tell, self.capacity = stage, hang_seconds, tell, capacity
        self.most_silent = STALLED_AFTER * hang_seconds
        self.said_after = WAIT_SAID_EARLY if patience else WAIT_SAID_AFTER
        self.patience = max(patience, self.most_silent)
        self.moved_at = self.said_at = time.monotonic()
        self.joined_at, self.alone_until, self.hopeless_at = -math.inf, -math.inf, math.inf
        self.state = State(-1, 0, 0, "", "", ())

    def look(self, state: State | None, now: float) -> None:
        """Raise Stopped where the stage must end. state: None where it is not known now."""
        state = state or self.state
        if state.progress != self.state.progress:
            self.moved_at = self.said_at = now
        if state.joins > self.state.joins:
            self.joined_at = now
        self.tell_avoided(state)
        self.hopeless_at = min(self.hopeless_at, now) if state.hopeless else math.inf
        self.state = state
        if now - self.hopeless_at > HOPELESS_SECONDS:
            raise Stopped(f"{self.stage}: {state.hopeless}")
        silent = now - self.moved_at
        nobody_came = not state.at_work and now - self.joined_at > 2 * self.hang_seconds
        if nobody_came or state.waits_for:
            limit, self.alone_until = self.patience, now
        else:  # a worker that comes after hours has its time from then on
            limit = self.most_silent
        since = self.moved_at if limit == self.patience else max(self.moved_at, self.alone_until)
        if now - since > limit:
            raise Stopped(f"{self.stage}: nothing moved for {limit:.0f} s{self._why(nobody_came)}")
        # Ever more seldom.
        pause = max(self.said_after, min(WAIT_SAID_EVERY, silent / 2))
        if not state.at_work and now - self.said_at > pause:
            self.said_at = now
            waited = f"{silent:.0f} s" if silent < 60 else f"{silent / 60:.0f} min"
            self.tell(f"waits, {waited} of at most {self.patience / 60:.0f} min{self._why(True)}")

    def tell_avoided(self, state: State | None) -> None:
        """Say which places are avoided that were not before."""
        for words in state.avoided[len(self.state.avoided) :] if state else ():
            self.tell(f"a machine gets no more work of this stage: {words}")

    def _why(self, nobody_came: bool) -> str:
        if self.state.waits_for:
            return f": {self.state.waits_for}"
        if not nobody_came:
            return ": workers came, but got on with nothing"
        return f": no worker came; {self.capacity()}"
