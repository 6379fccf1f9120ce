# pyright: strict
"""What a job costs before it is started: a model of pure arithmetic. It never makes up a rate.

A stage is a list of units (shards, blocks of features) that equal workers take one after the other.
A worker holds its GPUs until the stage ends, so idle ends are paid for too. Not in the model: nodes
that start, models that load, work that is lost with a node.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from busray import config
from busray.records import Commit

SPOT_NOTICE_SECONDS = 120.0
"""AWS warns so long before it takes a spot machine; Google and Azure give 30 s."""

SHARD_REQUESTS = 7
"""Store requests of one shard: is it there, data, digest, record, reading it back."""
BLOCK_REQUESTS = 4
"""Store requests of one block of features: the shard is read; digest and features are put."""


@dataclass(frozen=True)
class Rate:
    """How long one worker takes for an image, and how large the stored image is."""

    seconds: float
    source: str  # how it is known: a probe, or records, and on which device
    bytes: float | None = None


@dataclass(frozen=True)
class Work:
    """One stage's work that is left to do."""

    name: str  # `corpus`, `arm base`, `features inception`
    units: tuple[int, ...]  # images of each shard or block
    done: int  # images that are done already
    workers: int
    gpus: float  # of each worker
    rate: Rate | None  # None where nobody knows it
    requests: int
    bytes_an_image: float | None = None  # where it is known without a rate
    is_cut: bool = True  # False: the shards' size follows from a rate that is not known

    @property
    def images(self) -> int:
        return sum(self.units)


@dataclass(frozen=True)
class Estimate:
    """What a stage takes; None where it follows from a rate that is not known."""

    name: str
    images: int
    units: int | None
    unit_seconds: float | None  # of the largest one
    worker_hours: float | None  # that workers are held, all together
    gpu_hours: float | None
    bytes: float | None
    requests: int | None
    wall_seconds: float | None


@dataclass(frozen=True)
class Total:
    """Sums over the stages. Of what is not known for all of them: over the others, `at least`."""

    worker_hours: float
    gpu_hours: float
    bytes: float
    requests: int
    wall_seconds: float
    times_known: bool  # hours and wall time of every stage
    bytes_known: bool
    units_known: bool  # shards and requests of every stage
    cost: float | None  # GPU-hours x price; None without a price, and where no rate is known


@dataclass(frozen=True)
class Machine:
    """What a node offers."""

    cpus: float
    gpus: float


def estimate(work: Work) -> Estimate:
    rate, size = work.rate, work.bytes_an_image
    if size is None and rate is not None:
        size = rate.bytes
    wall = hours = unit = None
    if not work.units:
        wall = hours = unit = 0.0
    elif rate is not None and work.is_cut:
        wall = rate.seconds * longest_worker(work.units, work.workers)
        hours = wall * min(work.workers, len(work.units)) / 3600
        unit = rate.seconds * max(work.units)
    return Estimate(
        name=work.name,
        images=work.images,
        units=len(work.units) if work.is_cut else None,
        unit_seconds=unit,
        worker_hours=hours,
        gpu_hours=None if hours is None else hours * work.gpus,
        bytes=None if size is None else size * work.images,
        requests=work.requests if work.is_cut else None,
        wall_seconds=wall,
    )


def longest_worker(units: Iterable[int], workers: int) -> int:
    """Images of the worker that is done last, where each takes the largest unit that is left."""
    loads = [0] * workers
    for unit in sorted(units, reverse=True):
        heapq.heapreplace(loads, loads[0] + unit)
    return max(loads)


def total(estimates: Sequence[Estimate], price: float | None = None) -> Total:
    """price: of a GPU-hour, in any currency."""
    hours = sum(one.gpu_hours or 0.0 for one in estimates)
    known = all(one.gpu_hours is not None for one in estimates)
    return Total(
        worker_hours=sum(one.worker_hours or 0.0 for one in estimates),
        gpu_hours=hours,
        bytes=sum(one.bytes or 0.0 for one in estimates),
        requests=sum(one.requests or 0 for one in estimates),
        wall_seconds=sum(one.wall_seconds or 0.0 for one in estimates),
        times_known=known,
        bytes_known=all(one.bytes is not None for one in estimates),
        units_known=all(one.units is not None for one in estimates),
        cost=None if price is None or (hours == 0 and not known) else hours * price,
    )


class Budget:
    """The GPU-hours of a job against a limit, by the rate of the shards that come in.

    images: all that are drawn at this rate. hours: GPU-hours of those drawn at another one, as far
    as it is known. gpus: of each worker.
    """

    def __init__(self, limit: float, images: int, gpus: float, hours: float = 0.0) -> None:
        self.limit, self.images, self.gpus, self.hours = limit, images, gpus, hours
        self.seconds, self.seen = 0.0, 0

    def add(self, commit: Commit) -> str | None:
        """Why the work must end after this shard; None where it need not."""
        if not commit.seconds:  # quarantined without being drawn
            return None
        self.seconds += commit.seconds
        self.seen += commit.count
        hours = self.hours + self.images * self.seconds / self.seen * self.gpus / 3600
        if hours <= self.limit:
            return None
        return (
            f"the whole job takes {hours:,.1f} GPU-hours by the {self.seen:,} images drawn so far, and "
            f"cluster.max_gpu_hours={self.limit:,.1f} are allowed"
        )


def whole_gpu_hours(works: Iterable[Work]) -> float | None:
    """GPU-hours of all images, drawn ones too, at today's rates; None where a rate is not known."""
    hours = 0.0
    for work in works:
        if work.rate is None and (work.units or work.done):
            return None
        if work.rate is not None:
            hours += (work.images + work.done) * work.rate.seconds * work.gpus / 3600
    return hours


# ---- warnings


def actors_that_fit(machine: Machine, settings: config.Cluster) -> int:
    """Actors for which a node has CPUs and GPUs."""
    fits: list[float] = []
    if settings.cpus_per_actor:
        fits.append(machine.cpus / settings.cpus_per_actor)
    if settings.gpus:
        fits.append(machine.gpus / settings.gpus)
    return int(min(fits, default=settings.actors))


def shard_warnings(drawing: Sequence[Estimate]) -> list[str]:
    """Of shards that take longer than a spot machine's notice."""
    long = [one for one in drawing if (one.unit_seconds or 0.0) > SPOT_NOTICE_SECONDS]
    if not long:
        return []
    worst = max(long, key=lambda one: one.unit_seconds or 0.0)
    minutes = (worst.unit_seconds or 0.0) / 60
    return [
        f"a shard of {worst.name} takes {minutes:.1f} minutes, and a spot machine is taken "
        f"{SPOT_NOTICE_SECONDS / 60:.0f} minutes after its notice: what a shard has drawn is then drawn again; "
        "smaller shards lose less"
    ]


def width_warnings(
    settings: config.Cluster, machines: Sequence[Machine], where: str, drawing: Sequence[Estimate]
) -> list[str]:
    """Of actors that would wait or idle. where: whose machines these are, for the message."""
    width, lines = settings.actors, list[str]()
    fits = sum(actors_that_fit(machine, settings) for machine in machines)
    if machines and fits < width:
        cpus, gpus = sum(machine.cpus for machine in machines), sum(machine.gpus for machine in machines)
        lines.append(
            f"{where} has {cpus:g} CPUs and {gpus:g} GPUs, which take {fits} of cluster.actors={width} actors "
            f"(cpus_per_actor={settings.cpus_per_actor:g}, gpus_per_actor={settings.gpus:g}): "
            "the others wait"
        )
    if settings.gpus:
        for machine in machines:
            by_gpus = int(machine.gpus / settings.gpus)
            taken = actors_that_fit(machine, settings)
            if taken < by_gpus:
                lines.append(
                    f"a node with {machine.gpus:g} GPUs has {machine.cpus:g} CPUs, which take {taken} actors of "
                    f"cluster.cpus_per_actor={settings.cpus_per_actor:g}: {by_gpus - taken} GPU shares stay idle"
                )
                break  # the nodes of a cluster are of few kinds
    if settings.cpus_per_actor and settings.threads > settings.cpus_per_actor:
        lines.append(
            f"cluster.threads={settings.threads} is above cluster.cpus_per_actor={settings.cpus_per_actor:g}: "
            "actors on one node share CPUs, so each is slower than alone"
        )
    most = max((one.units or 0 for one in drawing), default=0)
    if 0 < most < width and all(one.units is not None for one in drawing):
        lines.append(
            f"no stage has more than {most} shards, so at most {most} of cluster.actors={width} actors draw at once"
        )
    return lines
