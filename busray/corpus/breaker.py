"""The circuit breaker: whether a recipe makes too many images that cannot be used.

It counts commits as they come, and says so as soon as their share of quarantined images is clearly
above what is allowed. Pure: counts in, words out.
"""

import math
from dataclasses import dataclass, field

from busray.records import Commit

FALSE_ALARM = 1e-6
"""Probability of a look at a corpus of just the allowed share that the breaker stops it. There is a
look for each shard, so a corpus of 10,000 shards is stopped wrongly with at most 1 %."""
LEAST_SHARE = 0.001
"""The least share that is tested: where no image at all may be quarantined, the first one is no
reason to stop. The exit status says it at the end."""


def at_least(k: int, n: int, share: float) -> float:
    """P(X >= k) of a binomial X of n trials with this probability each; exact, up to rounding."""
    if k <= 0:
        return 1.0
    if k > n or share <= 0:
        return 0.0
    if share >= 1:
        return 1.0
    # From the first term on by ratios, down from its logarithm: comb(n, k) itself overflows.
    log_term = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    log_term += k * math.log(share) + (n - k) * math.log1p(-share)
    odds, total, ratio = share / (1 - share), 1.0, 1.0
    for i in range(k, n):
        ratio *= (n - i) / (i + 1) * odds
        total += ratio
        if ratio < 1e-17 * total:  # past the mode the terms only fall
            break
    return min(1.0, math.exp(log_term + math.log(total)))


def is_clearly_above(k: int, n: int, share: float) -> bool:
    """Whether k of n are more than a true share of at most this would show by chance."""
    return k > share * n and at_least(k, n, share) < FALSE_ALARM


def most_rejected(allowed: float, attempts: int) -> float:
    """The share of first draws that a class gate may reject for `allowed` to hold.

    An image that the gate rejects with probability r at each draw is quarantined with r^attempts.
    Over images of different r the mean of r^attempts is at least the mean of r to that power
    (Jensen), so more rejected first draws mean more quarantined images than allowed.
    """
    return allowed ** (1 / attempts)


@dataclass
class Tally:
    """Counts over commits."""

    images: int = 0
    quarantined: int = 0
    rejected: int = 0  # first draws that the class gate rejected
    redrawn: int = 0  # draws beyond an image's first

    def add(self, commit: Commit) -> None:
        self.images += commit.count
        self.quarantined += len(commit.rejects)
        self.rejected += len(commit.redrawn)
        self.redrawn += redraws(commit)


def redraws(commit: Commit) -> int:
    """Draws of a shard beyond its images' first ones, that is those after a rejection."""
    # The last rejected draw of an image that is given up was not followed by another one.
    return sum(len(record.rejected) - (record.kept is None) for record in commit.redrawn)


@dataclass
class Breaker:
    """Counts the commits of a corpus. `attempts`: of the class gate, None without one."""

    allowed: float  # corpus.max_quarantined
    attempts: int | None
    seen: Tally = field(default_factory=Tally)
    example: tuple[str, str] | None = None  # (image id, reason)

    def add(self, commit: Commit) -> str | None:
        """Count a commit; why the run should stop, None where it may go on."""
        self.seen.add(commit)
        if commit.rejects and self.example is None:
            self.example = commit.rejects[0]
        return self.why_stop()

    def why_stop(self) -> str | None:
        seen, share = self.seen, max(self.allowed, LEAST_SHARE)
        if is_clearly_above(seen.quarantined, seen.images, share):
            return (
                f"{seen.quarantined} of {seen.images} images were quarantined, clearly more than "
                f"corpus.max_quarantined={self.allowed:g} allows{self._for_example()}"
            )
        if self.attempts is None:
            return None
        most = most_rejected(share, self.attempts)
        if is_clearly_above(seen.rejected, seen.images, most):
            return (
                f"the class gate rejected {seen.rejected} of {seen.images} first draws: with {self.attempts} draws "
                f"an image more are quarantined than corpus.max_quarantined={self.allowed:g} allows"
                f"{self._for_example()}"
            )
        return None

    def _for_example(self) -> str:
        return "" if self.example is None else f" (such as {self.example[0]}: {self.example[1]})"

    def words(self) -> str:
        """The counts for progress; empty where there is nothing to say."""
        parts = []
        if self.seen.quarantined:
            parts.append(f"{self.seen.quarantined} quarantined")
        if self.seen.redrawn:
            parts.append(f"{self.seen.redrawn} drawn again for the class gate")
        return ", ".join(parts)
