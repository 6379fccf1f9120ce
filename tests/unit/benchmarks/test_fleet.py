"""The simulated fleet (benchmarks/fleet.py) gives what can be computed for simple ones."""

import math
from dataclasses import replace

import pytest

from benchmarks.fleet import HOUR, Fleet, Simulation

PLAIN = Fleet(
    work=1e6, shard=100, workers=1, losses=0, startup=0, replacement=0, detection=0, overhead=0, driver=0, spread=0
)
"""Machines that draw and do nothing else."""


def test_without_losses_the_paid_time_is_the_work() -> None:
    bill = Simulation(PLAIN, seed=1).run()
    assert bill.paid == bill.useful == bill.wall == pytest.approx(PLAIN.work)
    assert bill.waste == 0 and bill.deaths == 0


def test_a_death_costs_half_a_shard_where_deaths_are_rare() -> None:
    fleet = replace(PLAIN, work=4e7, losses=0.02 / PLAIN.shard * HOUR)  # a death in 50 shards
    bill = Simulation(fleet, seed=1).run()
    assert bill.deaths_at_work > 5000
    assert bill.lost / bill.deaths_at_work == pytest.approx(fleet.shard / 2, rel=0.02)


def test_the_time_of_a_shard_is_that_of_a_task_that_restarts() -> None:
    """(exp(rate x length) - 1) / rate, the mean time of a task that each failure starts afresh."""
    rate = 1 / PLAIN.shard  # a death in the length of a shard
    fleet = replace(PLAIN, work=2e6, losses=rate * HOUR)
    bill = Simulation(fleet, seed=1).run()
    assert bill.paid / fleet.shards == pytest.approx(math.expm1(rate * fleet.shard) / rate, rel=0.03)


def test_a_notice_as_long_as_a_shard_loses_no_work() -> None:
    fleet = replace(PLAIN, workers=10, losses=5, notice=PLAIN.shard)
    bill = Simulation(fleet, seed=1).run()
    assert bill.deaths > 0 and bill.lost == 0 and bill.useful == pytest.approx(fleet.work)
    without = Simulation(replace(fleet, notice=0), seed=1).run()
    assert without.lost > 0


def test_all_machines_are_paid_until_the_last_shard() -> None:
    fleet = replace(PLAIN, work=1100, workers=10, startup=40)  # eleven shards for ten machines
    bill = Simulation(fleet, seed=1).run()
    assert bill.wall == 240 and bill.paid == 10 * 240
    assert bill.startup == 10 * 40 and bill.idle == 9 * 100


def test_a_driver_serves_one_shard_after_the_other() -> None:
    fleet = replace(PLAIN, work=10_000, workers=50, driver=10)  # 100 shards, 10 s of the driver each
    bill = Simulation(fleet, seed=1).run()
    assert bill.wall == pytest.approx(100 * 10 + fleet.shard)
    assert bill.driver == 1000
