# pyright: strict
"""How fast a corpus grows, from the times at which its records were written; what a sample of the
records says of all. Pure arithmetic."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from busray.records import Commit

WINDOW_SECONDS = 600.0
"""Images an hour are counted over the last ten minutes."""


@dataclass(frozen=True)
class Sampled:
    """A sum over all records, from some of them: exact where n is all."""

    value: float
    n: int  # records that were read
    of: int  # records there are

    @property
    def is_exact(self) -> bool:
        return self.n == self.of


def images_per_hour(written: Iterable[tuple[float, int]], now: float, since: float | None = None) -> float:
    """Images of the records of the last WINDOW_SECONDS, as a rate.

    written: (time of a record, its images). since: when the drawing began, if that is later than
    the window's begin.
    """
    begin = now - WINDOW_SECONDS if since is None else max(since, now - WINDOW_SECONDS)
    if begin >= now:
        return 0.0
    images = sum(count for time, count in written if begin < time <= now)
    return images * 3600 / (now - begin)


def hours_left(images: int, per_hour: float) -> float | None:
    """Hours until so many images are drawn; None where nothing is drawn now."""
    if images <= 0:
        return 0.0
    return images / per_hour if per_hour > 0 else None


def quarantined(commits: Iterable[Commit], images: int, records: int) -> Sampled:
    """Quarantined images of a corpus with so many committed images and records.

    By images and not by records: shards differ in size.
    """
    rejects = seen = n = 0
    for commit in commits:
        rejects += len(commit.rejects)
        seen += commit.count
        n += 1
    return Sampled(rejects * images / seen if seen else 0.0, n, records)


def drawing_hours(commits: Iterable[Commit], images: int, records: int) -> Mapping[str, Sampled]:
    """device -> hours that its workers drew, by the records' seconds."""
    seconds: dict[str, float] = {}
    seen = n = 0
    for commit in commits:
        device = commit.execution.device
        seconds[device] = seconds.get(device, 0.0) + commit.seconds
        seen += commit.count
        n += 1
    scale = images / seen / 3600 if seen else 0.0
    return {device: Sampled(seconds[device] * scale, n, records) for device in sorted(seconds)}
