"""One question of speed: ours and a rival in turn, so that a busy machine slows both alike."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

REPEATS = 5


@dataclass(frozen=True)
class Contest:
    """Two ways to do one piece of work. Each call does all of it."""

    question: str
    ours_name: str
    rival_name: str
    ours: Callable[[], object]
    rival: Callable[[], object]
    goal: float
    """Least time of the rival over ours."""
    same: Callable[[], str]
    """Compares the two results; says how far they differ. AssertionError where that is too far."""


@dataclass(frozen=True)
class Times:
    """Wall seconds of the repeats."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(seconds: list[float]) -> "Times":
        return Times(statistics.median(seconds), min(seconds), max(seconds))

    def __str__(self) -> str:
        scale, unit = (1.0, "s") if self.median >= 1 else (1e3, "ms")
        return f"{self.median * scale:.4g} [{self.low * scale:.4g}, {self.high * scale:.4g}] {unit}"


@dataclass(frozen=True)
class Outcome:
    contest: Contest
    ours: Times
    rival: Times
    same: str

    @property
    def ratio(self) -> float:
        return self.rival.median / self.ours.median

    @property
    def met(self) -> bool:
        return self.ratio >= self.contest.goal


def run(contest: Contest, repeats: int = REPEATS) -> Outcome:
    """Compare the results, which also warms both up, then time them in turn."""
    same = contest.same()
    ours, rival = [], []
    for _ in range(repeats):
        ours.append(_seconds(contest.ours))
        rival.append(_seconds(contest.rival))
    return Outcome(contest, Times.of(ours), Times.of(rival), same)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


HEADER = "| question | ours | rival | rival / ours | goal | met | results |\n|---|---|---|--:|--:|---|---|"


def row(outcome: Outcome) -> str:
    """A line of the table under HEADER: medians, with the least and most of the repeats."""
    contest = outcome.contest
    cells = [
        contest.question,
        f"{contest.ours_name}: {outcome.ours}",
        f"{contest.rival_name}: {outcome.rival}",
        f"{outcome.ratio:.2f}",
        f"{contest.goal:g}",
        "yes" if outcome.met else "no",
        outcome.same,
    ]
    return f"| {' | '.join(cells)} |"
