"""The cost model, against cases that are computed by hand."""

import pytest

from busray.config import Cluster
from busray.corpus.cost import (
    Budget,
    Estimate,
    Machine,
    Rate,
    Work,
    actors_that_fit,
    estimate,
    longest_worker,
    shard_warnings,
    total,
    whole_gpu_hours,
    width_warnings,
)
from busray.records import Commit, Execution

RATE = Rate(seconds=2.0, source="a probe", bytes=1000.0)


def work(units: tuple[int, ...], rate: Rate | None = RATE, **changes: object) -> Work:
    fields: dict = {"done": 0, "workers": 2, "gpus": 1.0, "requests": 7, "bytes_an_image": None}
    return Work("corpus", units, rate=rate, **{**fields, **changes})


@pytest.mark.parametrize(
    "units, workers, longest",
    [
        ((10, 10, 10, 10), 2, 20),
        ((10, 10, 10), 2, 20),  # the second worker idles through the third shard
        ((256, 44, 256, 44, 256, 44), 1, 900),
        ((256, 44, 256, 44, 256, 44), 8, 256),
        ((3, 3, 2, 2, 2), 2, 7),  # 3+2+2 and 3+2
        ((5,), 4, 5),
    ],
)
def test_workers_take_the_largest_shard_that_is_left(units: tuple[int, ...], workers: int, longest: int) -> None:
    assert longest_worker(units, workers) == longest


def test_three_shards_of_900_images_on_two_gpus_hold_two_gpus_for_an_hour() -> None:
    """1,800 images x 2 s = 3,600 s; the second GPU idles for half of it and is held."""
    got = estimate(work((900, 900, 900)))
    assert got == Estimate("corpus", 2700, 3, 1800.0, 2.0, 2.0, 2_700_000.0, 7, 3600.0)


def test_actors_beyond_the_shards_are_not_counted() -> None:
    assert estimate(work((900,), workers=50)).gpu_hours == 0.5


def test_half_a_gpu_an_actor_is_half_a_gpu_hour() -> None:
    got = estimate(work((1800,), gpus=0.5))
    assert (got.gpu_hours, got.worker_hours) == (0.5, 1.0)


def test_without_a_rate_times_are_not_known_and_the_rest_is() -> None:
    got = estimate(work((10, 5), rate=None))
    assert (got.images, got.units, got.requests) == (15, 2, 7)
    assert (got.unit_seconds, got.gpu_hours, got.bytes, got.wall_seconds) == (None, None, None, None)
    assert estimate(work((10, 5), rate=None, bytes_an_image=8192.0)).bytes == 15 * 8192


def test_of_a_stage_that_is_not_cut_yet_only_images_and_bytes_are_known() -> None:
    got = estimate(work((10, 5), rate=None, bytes_an_image=100.0, is_cut=False))
    assert (got.images, got.bytes) == (15, 1500.0)
    assert (got.units, got.requests, got.wall_seconds) == (None, None, None)
    sums = total([got, estimate(work((1800,)))])
    assert (sums.requests, sums.units_known) == (7, False)


def test_a_stage_with_nothing_left_takes_nothing_even_without_a_rate() -> None:
    got = estimate(work((), rate=None, requests=0))
    assert (got.images, got.gpu_hours, got.wall_seconds) == (0, 0.0, 0.0)


def test_a_million_images_at_one_a_second_on_a_hundred_gpus() -> None:
    """3,907 shards of 256 (the last 64) on 100 GPUs: 40 rounds at the worst worker, 10,240 s."""
    units = (256,) * 3906 + (64,)
    got = estimate(work(units, rate=Rate(1.0, "records"), workers=100))
    assert got.images == 1_000_000
    assert got.wall_seconds == 40 * 256
    assert got.gpu_hours == pytest.approx(284.4, abs=0.1)  # of 277.8 that are used


def test_totals_and_cost() -> None:
    known = estimate(work((1800,)))  # one GPU-hour
    assert total([known, known], price=2.5).cost == 5.0
    sums = total([known, known])
    assert (sums.gpu_hours, sums.requests, sums.wall_seconds, sums.bytes) == (2.0, 14, 7200.0, 3_600_000.0)
    assert sums.times_known and sums.bytes_known and sums.cost is None


def test_a_total_with_an_unknown_stage_says_so() -> None:
    sums = total([estimate(work((1800,))), estimate(work((5,), rate=None))], price=3.0)
    assert not sums.times_known and not sums.bytes_known
    assert (sums.gpu_hours, sums.cost) == (1.0, 3.0)
    assert total([estimate(work((5,), rate=None))], price=3.0).cost is None


def test_the_whole_jobs_gpu_hours_count_drawn_images_too() -> None:
    assert whole_gpu_hours([work((900,), done=900), work((), done=1800)]) == 2.0
    assert whole_gpu_hours([work((900,)), work((1,), rate=None)]) is None
    assert whole_gpu_hours([work((900,)), work((), rate=None)]) == 0.5
    assert whole_gpu_hours([work((900,), gpus=0.0)]) == 0.0


# ---- the limit


def shard_of(seconds: float, count: int = 100) -> Commit:
    execution = Execution("cuda: one", "float16", 8, 1, {})
    return Commit("benign", 0, count, "data/x", "d", 1, count, (), execution, seconds)


def test_a_budget_holds_until_the_shards_show_that_it_does_not() -> None:
    """36,000 images: at 1 s each 10 GPU-hours, at 1.2 s 12."""
    budget = Budget(limit=11.5, images=36_000, gpus=1.0)
    assert budget.add(shard_of(100.0)) is None
    assert budget.add(shard_of(120.0)) is None  # 1.1 s in the mean: 11.0
    why = budget.add(shard_of(140.0))  # 1.2 s: 12.0
    assert why is not None and "takes 12.0 GPU-hours by the 300 images drawn so far" in why
    assert "cluster.max_gpu_hours=11.5" in why


def test_a_shard_that_was_quarantined_undrawn_tells_no_rate() -> None:
    budget = Budget(limit=9.0, images=36_000, gpus=1.0)
    assert budget.add(shard_of(0.0)) is None and budget.seen == 0
    assert budget.add(shard_of(100.0)) is not None  # 10 GPU-hours, not 5


def test_a_budget_counts_other_arms_and_parts_of_a_gpu() -> None:
    assert Budget(limit=6.0, images=36_000, gpus=0.5, hours=1.0).add(shard_of(100.0)) is None  # 1 + 5
    assert Budget(limit=5.9, images=36_000, gpus=0.5, hours=1.0).add(shard_of(100.0)) is not None


# ---- warnings


def cluster(**changes: object) -> Cluster:
    return Cluster.model_validate({"actors": 8, "gpus_per_actor": 1, "cpus_per_actor": 4, "threads": 4, **changes})


@pytest.mark.parametrize(
    "machine, changes, actors",
    [
        (Machine(96, 8), {}, 8),
        (Machine(16, 8), {}, 4),  # CPUs for four
        (Machine(64, 0), {}, 0),
        (Machine(2, 0), {"gpus_per_actor": 0, "cpus_per_actor": 1}, 2),
        (Machine(8, 1), {"gpus_per_actor": 0.5, "cpus_per_actor": 1}, 2),
    ],
)
def test_how_many_actors_a_node_takes(machine: Machine, changes: dict, actors: int) -> None:
    assert actors_that_fit(machine, cluster(**changes)) == actors


def test_gpus_that_no_cpu_is_left_for_are_named() -> None:
    (wide, idle) = width_warnings(cluster(), [Machine(16, 8)], "the cluster", [])
    assert "the cluster has 16 CPUs and 8 GPUs, which take 4 of cluster.actors=8 actors" in wide
    assert "4 GPU shares stay idle" in idle


def test_more_threads_than_cpus_and_more_actors_than_shards_are_named() -> None:
    few = estimate(work((10, 10, 10)))
    (threads, shards) = width_warnings(cluster(threads=8), [Machine(96, 8)], "the cluster", [few])
    assert "cluster.threads=8 is above cluster.cpus_per_actor=4" in threads
    assert "no stage has more than 3 shards" in shards


def test_a_fitting_cluster_gets_no_warning() -> None:
    assert width_warnings(cluster(), [Machine(96, 8)], "the cluster", [estimate(work((10,) * 9))]) == []
    uncut = estimate(work((10,), rate=None, is_cut=False))
    assert width_warnings(cluster(), [Machine(96, 8)], "the cluster", [uncut]) == []


def test_a_shard_longer_than_a_spot_notice_is_named() -> None:
    assert shard_warnings([estimate(work((60,)))]) == []  # exactly two minutes
    (line,) = shard_warnings([estimate(work((60,))), estimate(work((150,))), estimate(work((5,), rate=None))])
    assert "a shard of corpus takes 5.0 minutes" in line
