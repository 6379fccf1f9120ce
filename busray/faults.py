"""Who failed where: what to do with a shard whose workers die, and with a place that fails.

Pure: a Liveness actor keeps one and tells it what happens. A place is a node with its GPUs, or a
node alone where workers have none. Either the shard or the place is to blame for a failure, and one
failure does not tell which. So a shard that failed twice in a place is handed back, to be drawn
elsewhere, while the place takes other shards.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Place = tuple[str, tuple[str, ...]]
"""(node id, GPU ids); the GPUs are empty where a worker has none."""

TRIES = 2
"""Deaths of a shard's workers, one after the other, after which the shard is handed back."""
DEATHS_OF_A_SHARD = 4
"""Deaths of its workers, in places that are not avoided, after which a shard is quarantined."""
MOST_STARTS = 20
"""Times a shard is begun in all. A lost node is no fault of the shard that was drawn on it, but a
shard can also lose its nodes."""
FAILURES_OF_A_PLACE = 3
"""Failures without success between them after which a place is avoided, if they are not all of one
shard."""
FAILURES_IN_A_ROW = 12
"""Failures without success between them, of all places together, after which nothing helps; where
there are more places, as many as there are places."""

Begin = Literal["draw", "leave", "hold", "quarantine", "raise"]
"""What a worker does with a shard: draw it, hand it back, hand it back once nobody has other work,
record it as quarantined, or end the stage."""
Load = Literal["load", "wait"]
"""What a new worker does: load its models, or wait, since its place is avoided."""
After = Literal["again", "raise"]
"""What follows a failure: another try, or the end of the stage."""
IsAlive = Callable[[str], bool]
"""Whether a node is in the cluster."""

DIED = "its process died, or hung and was ended"
LOADING = ""
"""Stands for a shard where models were loaded."""


@dataclass(frozen=True)
class Death:
    """A failure of a worker."""

    place: Place
    what: str  # in words


@dataclass
class Faults:
    """The failures of one stage's workers. Actors keep their names when they are started again."""

    places: set[Place] = field(default_factory=set[Place])
    """Those where workers came up."""
    avoided: dict[Place, str] = field(default_factory=dict[Place, str])
    """Place that failed again and again -> its last failure."""
    starts: Counter[str] = field(default_factory=Counter[str])
    """Shard -> how often it was begun."""
    has_drawn: bool = False
    """Whether any shard was drawn. Before that no shard is quarantined: all may fail alike."""
    in_a_row: int = 0
    last: Death | None = None
    _at_work: dict[str, tuple[str, Place]] = field(default_factory=dict[str, tuple[str, Place]])
    """Shard that is drawn -> (actor, its place)."""
    _loading: dict[str, Place] = field(default_factory=dict[str, Place])
    """Actor that loads its models -> its place."""
    _said: dict[str, str] = field(default_factory=dict[str, str])
    """Shard, or actor that loads, -> the error with which it ended."""
    _deaths: dict[str, list[Death]] = field(default_factory=lambda: defaultdict[str, list[Death]](list))
    """Shard -> its workers' deaths."""
    _left_at: dict[str, int] = field(default_factory=dict[str, int])
    """Shard -> its deaths when it was handed back."""
    _failed: dict[Place, list[str]] = field(default_factory=lambda: defaultdict[Place, list[str]](list))
    """Place -> what failed there since it last succeeded: shards, or LOADING."""

    @property
    def is_busy(self) -> bool:
        """Whether any worker draws or loads."""
        return bool(self._at_work or self._loading)

    def load(self, actor: str, place: Place, is_alive: IsAlive) -> Load:
        """An actor's process is up: what it does."""
        before = self._loading.pop(actor, None)
        if before is not None and is_alive(before[0]):
            self._failure(LOADING, before, self._said.pop(actor, DIED))
        # A shard before the last one was drawn, and its commit was in progress: it is not to blame.
        mine = [shard for shard, (other, _) in self._at_work.items() if other == actor]
        for shard in mine[:-1]:
            del self._at_work[shard]
        for shard in mine[-1:]:
            self._bury(shard, is_alive)
        self.places.add(place)
        if place in self.avoided:
            return "wait"
        self._loading[actor] = place
        return "load"

    def loaded(self, actor: str, place: Place) -> None:
        """An actor has its models."""
        self._loading.pop(actor, None)
        if not any(self._failed[place]):  # only to load failed there, and now it did not
            self._failed[place].clear()

    def pause(self, actor: str) -> None:
        """An actor tries later to load its models, which is no failure."""
        self._loading.pop(actor, None)

    def begin(self, shard: str, actor: str, place: Place, is_alive: IsAlive) -> tuple[Begin, str]:
        """An actor has got a shard: what it does, and why."""
        self._bury(shard, is_alive)
        if place in self.avoided:
            return "hold", self.avoided[place]
        charged = [death for death in self._deaths[shard] if death.place not in self.avoided]
        give_up: Begin = "quarantine" if self.has_drawn else "raise"
        if len(charged) >= DEATHS_OF_A_SHARD:
            return give_up, f"its workers failed {len(charged)} times, at last so: {charged[-1].what}"
        if self.starts[shard] >= MOST_STARTS:
            return give_up, f"it was begun {MOST_STARTS} times, and its workers or their nodes were lost"
        if len(charged) - self._left_at.get(shard, 0) >= TRIES:
            self._left_at[shard] = len(charged)
            return "leave", charged[-1].what
        self.starts[shard] += 1
        self._at_work[shard] = (actor, place)
        return "draw", ""

    def _bury(self, shard: str, is_alive: IsAlive) -> None:
        """A shard that begins is still at work: whoever drew it failed."""
        if shard not in self._at_work:
            return
        _, place = self._at_work.pop(shard)
        what = self._said.pop(shard, DIED)
        if is_alive(place[0]):
            self._deaths[shard].append(Death(place, what))
            self._failure(shard, place, what)

    def drawn(self, shard: str) -> None:
        """A shard was drawn and committed."""
        if shard in self._at_work:
            _, place = self._at_work.pop(shard)
            self._failed[place].clear()
        self.in_a_row, self.has_drawn = 0, True

    def is_failing(self, work: str, place: Place, what: str) -> After:
        """An actor says why its work fails, a shard or, by the actor's name, loading; counted when
        that begins again."""
        self._said[work] = what
        self.last = Death(place, what)
        return "raise" if self.in_a_row + 1 >= self._most_in_a_row() else "again"

    def cannot_load(self, actor: str, place: Place, what: str) -> After:
        """An actor could not load its models. Before another try it calls load again."""
        self._loading.pop(actor, None)
        self._failure(LOADING, place, what)
        return "raise" if self.hopeless() else "again"

    def _failure(self, what_failed: str, place: Place, what: str) -> None:
        self.in_a_row += 1
        self.last = Death(place, what)
        failed = self._failed[place]
        failed.append(what_failed)
        is_not_of_a_shard = what_failed == LOADING or len(set(failed)) > 1
        others = self.places - self.avoided.keys() - {place}
        # The last place is not avoided for its shards: they end by being quarantined.
        if len(failed) >= FAILURES_OF_A_PLACE and is_not_of_a_shard and (others or what_failed == LOADING):
            self.avoided[place] = what

    def _most_in_a_row(self) -> int:
        return max(FAILURES_IN_A_ROW, len(self.places))

    def hopeless(self) -> Death | None:
        """The last failure, where so many came in a row, or in all places, that nothing helps."""
        no_place_is_left = bool(self.places) and self.places <= self.avoided.keys()
        return self.last if no_place_is_left or self.in_a_row >= self._most_in_a_row() else None
