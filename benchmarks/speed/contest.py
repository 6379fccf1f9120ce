"""One question of speed: ours and a rival in turn, so that a busy machine slows both alike."""

import atexit
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.speed import profiles

REPEATS = 5


class Seconds(float):
    """What a call measured itself, where not all of its work counts."""


@dataclass(frozen=True)
class Contest:
    """Two ways to do one piece of work. Each call does all of it."""

    question: str
    ours_name: str
    rival_name: str
    ours: Callable[[], object]
    rival: Callable[[], object]
    goal: float | None
    """Least time of the rival over ours; None: the ratio is only stated."""
    same: Callable[[], str]
    """Compares the two results; says how far they differ. AssertionError where that is too far."""
    by_cpu: bool = True
    """Whether the CPU seconds of this process and of those that it waited for are those of the
    work."""
    profile_of_ours: Callable[[], list[str]] | None = None
    """Lines of Markdown; None: `ours` is profiled in this process."""

    def profile(self) -> list[str]:
        """Where our time goes."""
        return self.profile_of_ours() if self.profile_of_ours else profiles.profile(self.ours)


@dataclass(frozen=True)
class Limit:
    """A piece of work without a rival, whose time has a limit or is only stated."""

    question: str
    work: Callable[[], object]
    most: float | None
    """In the unit; None: no goal."""
    unit: str = "s"


@dataclass(frozen=True)
class Skipped:
    """A question that this machine cannot answer."""

    question: str
    reason: str


Question = Contest | Limit | Skipped


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
    cpu_ratio: float | None
    """A busy machine changes it least. None where CPU seconds are not those of the work."""

    @property
    def ratio(self) -> float:
        return self.rival.median / self.ours.median

    @property
    def met(self) -> bool:
        return self.contest.goal is None or self.ratio >= self.contest.goal


def run(contest: Contest, repeats: int = REPEATS) -> Outcome:
    """Compare the results, which also warms both up, then time them in turn."""
    same = contest.same()
    ours, rival, our_cpu, rival_cpu = [], [], [], []
    for _ in range(repeats):
        for work, wall, cpu in ((contest.ours, ours, our_cpu), (contest.rival, rival, rival_cpu)):
            began = _cpu_seconds()
            wall.append(seconds_of(work))
            cpu.append(_cpu_seconds() - began)
    cpu_ratio = statistics.median(rival_cpu) / max(statistics.median(our_cpu), 1e-9) if contest.by_cpu else None
    return Outcome(contest, Times.of(ours), Times.of(rival), same, cpu_ratio)


def seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    result = work()
    return float(result) if isinstance(result, Seconds) else time.perf_counter() - started


def scratch_folder() -> Path:
    """A new folder, which is removed when this process ends."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return Path(folder.name)


def _cpu_seconds() -> float:
    """Of this process, all threads, and of processes that it waited for."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


HEADER = "| question | ours | rival | rival / ours | by CPU | goal | met | results |\n|---|---|---|--:|--:|--:|---|---|"


def row(outcome: Outcome) -> str:
    """A line of the table under HEADER: medians, with the least and most of the repeats."""
    contest, goal, met = outcome.contest, "", ""
    if contest.goal is not None:
        goal = f"{contest.goal:.2g}" if contest.goal < 1 else f"{contest.goal:g}"
        met = "yes" if outcome.met else f"no, by {1 - outcome.ratio / contest.goal:.0%}"
    cells = [
        contest.question,
        f"{contest.ours_name}: {outcome.ours}",
        f"{contest.rival_name}: {outcome.rival}",
        f"{outcome.ratio:.2f}",
        "" if outcome.cpu_ratio is None else f"{outcome.cpu_ratio:.2f}",
        goal,
        met,
        outcome.same,
    ]
    return f"| {' | '.join(cells)} |"


def limit_row(limit: Limit, times: Times) -> str:
    """A line of the same table for work without a rival."""
    if limit.most is None:
        goal, met = "", ""
    else:
        goal = f"{limit.most:g} {limit.unit}"
        met = "yes" if times.median <= limit.most else f"no, by {times.median / limit.most - 1:.0%}"
    shown = times if limit.unit == "s" else f"{times.median:.3g} [{times.low:.3g}, {times.high:.3g}] {limit.unit}"
    return f"| {limit.question} | busray: {shown} | | | | {goal} | {met} | |"


def skipped_row(skipped: Skipped) -> str:
    return f"| {skipped.question} | not measured: {skipped.reason} | | | | | | |"
