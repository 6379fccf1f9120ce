"""How much independent drivers of one output draw twice: a simulation of discrete events.

    python benchmarks/independent_drivers.py

Each driver takes shards in a random order of its own, leaves out what is committed when it comes to
it, and draws a shard in 0.8 to 1.2 units of time. So two drivers draw one shard where the second
begins it before the first has committed it.
"""

import heapq
from random import Random

FLEETS = ((4, 60), (16, 4_000), (16, 10_000), (64, 4_000), (64, 10_000))


def simulate(drivers: int, shards: int, seed: int = 0) -> tuple[int, float]:
    """(shards drawn a second time, end of the last driver over that of drivers who never meet)."""
    random = Random(seed)
    orders = [random.sample(range(shards), shards) for _ in range(drivers)]
    places, committed, drawn, now = [0] * drivers, [False] * shards, 0, 0.0
    events: list[tuple[float, int, int | None]] = [(random.random(), driver, None) for driver in range(drivers)]
    heapq.heapify(events)
    while events:
        now, driver, finished = heapq.heappop(events)
        if finished is not None:
            committed[finished] = True
        order = orders[driver]
        while places[driver] < shards and committed[order[places[driver]]]:
            places[driver] += 1
        if places[driver] < shards:
            shard = order[places[driver]]
            places[driver] += 1
            drawn += 1
            heapq.heappush(events, (now + random.uniform(0.8, 1.2), driver, shard))
    return drawn - shards, now * drivers / shards


def main() -> None:
    print("| drivers | shards | drawn twice | share | time, 1 = none drawn twice |")
    print("|---:|---:|---:|---:|---:|")
    for drivers, shards in FLEETS:
        twice, longer = simulate(drivers, shards)
        print(f"| {drivers} | {shards:,} | {twice:,} | {twice / shards:.1%} | {longer:.2f} |")


if __name__ == "__main__":
    main()
