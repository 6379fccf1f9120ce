"""A simulated fleet with spot losses: what the length of a shard costs. Prints tables of scale.md.

    python benchmarks/fleet.py

Discrete events (simpy), no GPU and no Ray. Workers take shards from one queue. A worker that is
lost gives its shard back; another machine comes in its place and starts up. Every machine is paid
until the last shard is committed, since the pool keeps its width.
"""

import argparse
import itertools
import math
import random
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import simpy

HOUR = 3600.0
GPU_SECONDS_PER_IMAGE = 0.4212
"""117 GPU-hours for a million images of SD v1.5: computed in docs/how-to/stable-diffusion.md, not
measured."""
REQUESTS_PER_SHARD = 8
"""Of an object store: benchmarks/control_plane.py counts them."""
SHARD_SECONDS = (10, 20, 30, 60, 75, 90, 120, 300, 600, 1800)


@dataclass(frozen=True, slots=True)
class Fleet:
    """A fleet and its work. Times are seconds."""

    work: float  # of drawing in all, on a machine of the usual speed
    shard: float  # of drawing a shard, on such a machine
    workers: int = 1000
    losses: float = 0.05  # the expected ones of a machine in an hour
    notice: float = 0.0  # before a loss; no shard is begun after it
    startup: float = 300.0  # from a machine's arrival until it can draw
    replacement: float = 120.0  # from a loss until another machine arrives; not paid
    detection: float = 30.0  # from a loss without notice until its shard is in the queue again
    overhead: float = 0.5  # a machine's idle time a shard: look-up and hand-over to the commit
    driver: float = 0.025  # the driver's time a shard; it serves one shard after the other
    spread: float = 0.1  # a machine takes up to this share more or less time, uniformly

    @property
    def shards(self) -> int:
        return max(1, round(self.work / self.shard))


@dataclass(slots=True)
class Bill:
    """What a run took: seconds of all machines together, except `wall` and `driver`."""

    wall: float = 0.0
    paid: float = 0.0
    useful: float = 0.0  # drawing of shards that were committed
    startup: float = 0.0
    lost: float = 0.0  # drawing of shards that were not committed
    overhead: float = 0.0  # look-ups, hand-overs, waiting for the driver
    driver: float = 0.0  # the driver's own work
    deaths: int = 0
    deaths_at_work: int = 0  # those that lost a shard

    @property
    def waste(self) -> float:
        """The share of the paid time in which no committed shard was drawn."""
        return 1 - self.useful / self.paid

    @property
    def idle(self) -> float:
        """Waiting for the last shard, or for the end after a notice."""
        return self.paid - self.useful - self.startup - self.lost - self.overhead


class Simulation:
    """One run of a fleet."""

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self.fleet = fleet
        self.rng = random.Random(seed)
        self.env = simpy.Environment()
        self.bill = Bill()
        self.queued = self.open = fleet.shards  # not begun; not committed
        self.queue_grew = self.env.event()
        self.finished = self.env.event()
        self.driver_free = 0.0  # when the driver has served all who asked so far
        self.alive: dict[int, tuple[float, float]] = {}  # place -> (arrived, ready) of its machine

    def run(self) -> Bill:
        """The run's bill, once the last shard is committed."""
        for place in range(self.fleet.workers):
            self.env.process(self.machines(place))
        self.env.run(self.finished)
        now, bill = self.env.now, self.bill
        bill.wall = now
        for arrived, ready in self.alive.values():
            bill.paid += now - arrived
            bill.startup += min(now, ready) - arrived
        return bill

    def machines(self, place: int) -> Generator[Any, Any, None]:
        """One place of the fleet: machine after machine."""
        fleet, bill = self.fleet, self.bill
        while True:
            arrived = self.env.now
            ready = arrived + fleet.startup
            death = arrived + (self.rng.expovariate(fleet.losses / HOUR) if fleet.losses else math.inf)
            self.alive[place] = arrived, ready
            yield self.env.timeout(min(ready, death) - arrived)
            if death > ready:
                yield from self.drawing(death)
            del self.alive[place]
            bill.deaths += 1
            bill.paid += death - arrived
            bill.startup += min(death, ready) - arrived
            yield self.env.timeout(fleet.replacement)

    def drawing(self, death: float) -> Generator[Any, Any, None]:
        """A machine that draws shard after shard until it dies."""
        fleet, bill, env = self.fleet, self.bill, self.env
        takes = fleet.shard * self.rng.uniform(1 - fleet.spread, 1 + fleet.spread)
        last_begin = death - fleet.notice
        while env.now < last_begin:
            if not self.queued:
                # Until a lost shard is back. Nothing else can give this machine work.
                yield self.queue_grew | env.timeout(last_begin - env.now)
                continue
            self.queued -= 1
            stall = self.served_by_driver() + fleet.overhead
            until_death = death - env.now
            if stall + takes > until_death:
                yield env.timeout(until_death)
                bill.overhead += min(stall, until_death)
                bill.lost += max(0.0, until_death - stall)
                bill.deaths_at_work += 1
                env.process(self.give_back())
                return
            yield env.timeout(stall + takes)
            bill.overhead += stall
            bill.useful += takes
            self.open -= 1
            if not self.open:
                self.finished.succeed()
        yield env.timeout(max(0.0, death - env.now))

    def served_by_driver(self) -> float:
        """Seconds until the driver has handed out a shard: it is a queue of one server."""
        self.driver_free = max(self.env.now, self.driver_free) + self.fleet.driver
        self.bill.driver += self.fleet.driver
        return self.driver_free - self.env.now

    def give_back(self) -> Generator[Any, Any, None]:
        """A lost shard comes back into the queue: after a notice at once."""
        yield self.env.timeout(0 if self.fleet.notice else self.fleet.detection)
        self.queued += 1
        self.queue_grew.succeed()
        self.queue_grew = self.env.event()


def waste(fleet: Fleet, seeds: Sequence[int]) -> float:
    """The wasted share, as a mean over runs."""
    return sum(Simulation(fleet, seed).run().waste for seed in seeds) / len(seeds)


def row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def table(title: str, heads: Sequence[str], rows: Iterator[Sequence[object]]) -> None:
    """Print a Markdown table, each row when it is known."""
    print(f"\n{title}\n", flush=True)
    print(row(heads))
    print(row(["---:"] * len(heads)), flush=True)
    for cells in rows:
        print(row(cells), flush=True)


def waste_rows(fleets: dict[str, Fleet], lengths: Sequence[float], seeds: Sequence[int]) -> Iterator[list[str]]:
    """Waste of each fleet at each length of a shard; last, the length that wastes least."""
    found: dict[str, dict[float, float]] = {name: {} for name in fleets}
    for length in lengths:
        cells = [f"{length:g}"]
        for name, fleet in fleets.items():
            share = found[name][length] = waste(replace(fleet, shard=length), seeds)
            cells.append(f"{share:.1%}")
        yield cells
    yield ["least at", *(f"{min(shares, key=lambda length: shares[length]):g} s" for shares in found.values())]


def bill_rows(fleet: Fleet, lengths: Sequence[float], seed: int) -> Iterator[list[str]]:
    """Where the paid time went, by the length of a shard."""
    for length in lengths:
        bill = Simulation(replace(fleet, shard=length), seed).run()
        shards = replace(fleet, shard=length).shards
        parts = [bill.startup, bill.lost, bill.overhead, bill.idle]
        yield [
            f"{length:g}",
            f"{shards:,}",
            f"{bill.paid / HOUR:,.0f}",
            f"{bill.wall / 60:.1f}",
            *(f"{part / bill.paid:.1%}" for part in parts),
            str(bill.deaths),
            f"{bill.driver / bill.wall:.0%}",
            f"{shards * REQUESTS_PER_SHARD:,}",
            f"{shards * REQUESTS_PER_SHARD / bill.wall:,.0f}",
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="runs that each share is a mean of")
    args = parser.parse_args()
    seeds = range(1, args.seeds + 1)
    million = Fleet(work=1e6 * GPU_SECONDS_PER_IMAGE, shard=60)
    ten = replace(million, work=1e7 * GPU_SECONDS_PER_IMAGE)
    runs = {"10^6": million, "10^7": ten}

    fleets: dict[str, Fleet] = {}
    for (images, fleet), losses in itertools.product(runs.items(), (0.01, 0.05, 0.2)):
        fleets[f"{images}, {losses:.0%} an hour"] = replace(fleet, losses=losses)
    for images, fleet in runs.items():
        fleets[f"{images}, 20%, 120 s notice"] = replace(fleet, losses=0.2, notice=120)
    fleets["10^6 by 100 machines, 5%"] = replace(million, workers=100)
    table("Wasted share of the GPU time:", ["shard s", *fleets], waste_rows(fleets, SHARD_SECONDS, seeds))

    heads = ["shard s", "shards", "GPU-hours", "wall min", "start-up", "lost", "overhead", "idle", "deaths"]
    heads += ["driver busy", "requests", "requests a s"]
    for images, fleet in runs.items():
        rows = bill_rows(replace(fleet, losses=0.2), SHARD_SECONDS, seeds[0])
        table(f"Where it goes, {images} images, 20 % lost an hour without notice:", heads, rows)

    fleets = {f"start-up {startup} s": replace(ten, startup=startup) for startup in (60, 300, 600)}
    fleets |= {f"overhead {seconds:g} s": replace(ten, overhead=seconds) for seconds in (0, 2, 5)}
    fleets |= {f"driver {1000 * seconds:g} ms": replace(ten, driver=seconds) for seconds in (0.005, 0.05)}
    title = "Wasted share, 10^7 images, 5 % lost an hour without notice, one thing changed:"
    table(title, ["shard s", *fleets], waste_rows(fleets, SHARD_SECONDS, seeds))


if __name__ == "__main__":
    main()
