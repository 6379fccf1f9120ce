"""Shards are durable as soon as they are drawn: on actors that hold every CPU, with a small object
store, whatever happens to the job. The sampler sleeps; the commits are real."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from busray import stalls
from busray.cluster.own import own_ray
from busray.cluster.pool import RayWorkers, ray_workers
from busray.config import Cluster
from busray.corpus.commit import committed_shards
from busray.records import Shard, Stopped
from busray.storage import Store
from busray.together import Together, placed
from busray.workers import Beat, DrawStage
from tests.support import sleeping
from tests.support.paths import ROOT
from tests.support.runs import quiet
from tests.support.sleeping import SleepingCorpus, plan

pytestmark = pytest.mark.slow

for module in (sys.modules[__name__], sleeping):
    ray.cloudpickle.register_pickle_by_value(module)  # workers cannot import a test

SMALL_STORE = 80 * 2**20
"""Bytes of an object store: little more than the least that Ray takes."""
PATIENCE = 120.0
"""Seconds until what must happen beside something else is taken not to happen."""


@contextmanager
def workers_on_two_cpus(log: Path, actors: int, hang_seconds: float = 60, **options: Any) -> Iterator[RayWorkers]:
    """Actors that hold both CPUs of this Ray."""
    cluster = Cluster(actors=actors, cpus_per_actor=2 / actors, threads=1, hang_seconds=hang_seconds)
    with ExitStack() as stack:
        stack.enter_context(own_ray(num_cpus=2, **options))
        yield stack.enter_context(ray_workers(cluster, log, quiet))


def wait_until(true: Callable[[], bool], what: str, beat: Callable[[], object] = lambda: None) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(what)
        beat()
        time.sleep(0.05)


def count(store: Store, folder: str) -> int:
    return len(list(store.list(folder)))


@dataclass(frozen=True)
class CommitsBesideDraws(SleepingCorpus):
    """Only so many draws begin before the first commit."""

    draws: int = 0

    def draw(self, shard: Shard, beat: Beat) -> Any:
        self.store.put_once(f"begun/{shard.name}", b"begun")
        if count(self.store, "begun") > self.draws:
            wait_until(lambda: count(self.store, "commits") > 0, f"no commit beside {self.draws} draws", beat)
        return super().draw(shard, beat)


@pytest.mark.parametrize(
    ("side", "options"), [(8, {}), (3500, {"object_store_memory": SMALL_STORE})], ids=["tiny", "larger-than-the-store"]
)
def test_shards_are_committed_while_others_are_drawn_on_actors_that_take_every_cpu(
    tmp_path: Path, side: int, options: dict[str, Any]
) -> None:
    """4 x 3500 x 3500 bytes are 47 MiB: two such shards do not fit into the small object store."""
    store, shards = Store(str(tmp_path / "run")), plan(8, 4)
    corpus = CommitsBesideDraws(store, side=side, draws=4)
    with workers_on_two_cpus(tmp_path / "ray.log", 2, **options) as workers:
        workers.draw(DrawStage("draw", corpus, shards, planned=32))
    assert committed_shards(store) == shards


@dataclass(frozen=True)
class DrawsBesideCommits(SleepingCorpus):
    """A commit ends only when the next draw has begun."""

    def draw(self, shard: Shard, beat: Beat) -> Any:
        self.store.put_once(f"begun/{shard.name}", b"begun")
        return super().draw(shard, beat)

    def commit(self, drawn: Any, beat: Beat) -> None:
        last = min(6, count(self.store, "commits") + 2)
        wait_until(lambda: count(self.store, "begun") >= last, "the next draw waited for a commit")
        super().commit(drawn, beat)


def test_an_actor_draws_its_next_shard_while_it_commits_the_one_before(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    with workers_on_two_cpus(tmp_path / "ray.log", 1) as workers:
        workers.draw(DrawStage("draw", DrawsBesideCommits(store), plan(6, 2), planned=12))
    assert committed_shards(store) == plan(6, 2)


@dataclass(frozen=True)
class FullDisk(SleepingCorpus):
    def commit(self, drawn: Any, beat: Beat) -> None:
        if count(self.store, "commits") == 2:
            raise OSError(28, "No space left on device")
        super().commit(drawn, beat)


def test_a_commit_that_fails_ends_the_stage_and_loses_no_other(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    with (
        workers_on_two_cpus(tmp_path / "ray.log", 1) as workers,
        pytest.raises(Stopped, match=r"draw: .*No space left on device"),
    ):
        workers.draw(DrawStage("draw", FullDisk(store), plan(6, 2), planned=12))
    assert len(committed_shards(store)) == 2


@dataclass(frozen=True)
class FirstCommitHangs(SleepingCorpus):
    """The first commit of all never ends; the draw beside it beats until the worker is replaced."""

    def draw(self, shard: Shard, beat: Beat) -> Any:
        if count(self.store, "hanging"):
            mine = f"hanging/{os.getpid()}"
            wait_until(lambda: not self.store.exists(mine), "a commit that hangs was left alone", beat)
        return super().draw(shard, beat)

    def commit(self, drawn: Any, beat: Beat) -> None:
        if not count(self.store, "hanging"):
            self.store.put_once(f"hanging/{os.getpid()}", b"hanging")
            time.sleep(10 * PATIENCE)
        super().commit(drawn, beat)


def test_a_commit_that_hangs_is_seen_beside_a_draw_that_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stalls, "STALLED_AFTER", 30)  # a new actor may take long to start
    store = Store(str(tmp_path / "run"))
    with workers_on_two_cpus(tmp_path / "ray.log", 1, hang_seconds=10) as workers:
        workers.draw(DrawStage("draw", FirstCommitHangs(store), plan(5, 2), planned=10))
    assert committed_shards(store) == plan(5, 2)
    assert count(store, "hanging") == 1


def test_corpora_that_are_drawn_together_share_their_workers(tmp_path: Path) -> None:
    corpora = [SleepingCorpus(Store(str(tmp_path / name))) for name in ("a", "b")]
    shards = [*placed(plan(8, 2), 0), *placed(plan(8, 2), 1)]
    seen: list[tuple[int, Shard]] = []
    with workers_on_two_cpus(tmp_path / "ray.log", 2) as workers:
        together = Together(tuple(corpora))
        workers.draw(
            DrawStage("draw", together, shards, 32, seen=lambda commit: seen.append((commit[0], commit[1].shard)))
        )
    assert [committed_shards(corpus.store) for corpus in corpora] == [plan(8, 2)] * 2
    first, second = ({*corpus.store.list("workers")} for corpus in corpora)
    assert 1 <= len(second) <= 2 and second <= first, "other processes, which had to start"
    assert {*seen} == {(shard.corpus, shard.plain) for shard in shards}


def test_a_killed_job_keeps_all_but_the_shards_in_flight(tmp_path: Path) -> None:
    store, actors, shards = Store(str(tmp_path)), 2, 40
    arguments = [str(tmp_path), f"--shards={shards}", "--images=2", "--seconds=0.2", f"--actors={actors}", "--cpus=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    job = subprocess.Popen([sys.executable, "-m", "tests.support.sleeping", *arguments], env=environment, cwd=ROOT)
    try:
        wait_until(lambda: count(store, "drawn") >= shards / 2, "half of the shards were not drawn in time")
    finally:
        its = psutil.Process(job.pid).children(recursive=True)
        job.send_signal(signal.SIGKILL)
        job.wait()
        psutil.wait_procs(its, timeout=60)
    drawn, committed = count(store, "drawn"), len(committed_shards(store))
    print(f"killed: {drawn} shards drawn, {committed} committed")
    assert shards / 2 <= drawn < shards, "the job was over before it was killed"
    assert committed >= drawn - 2 * actors, "more than was in flight: an actor commits two shards at most"
