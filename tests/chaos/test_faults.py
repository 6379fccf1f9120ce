"""A bad machine, a bad shard, a busy hub or a time without machines costs little; a bad recipe ends
early. The sampler sleeps; nodes, processes and commits are real."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle

from busray import stalls
from busray.cluster.pool import RayWorkers, ray_workers
from busray.config import Cluster
from busray.corpus.breaker import Breaker
from busray.corpus.commit import committed_shards, read_commit
from busray.records import Shard, Stopped, StoppedForGood
from busray.storage import Store
from busray.workers import Beat, DrawStage
from tests.support import sleeping
from tests.support.nodes import Nodes
from tests.support.sleeping import SleepingCorpus, plan

pytestmark = pytest.mark.slow

for module in (sys.modules[__name__], sleeping):
    cloudpickle.register_pickle_by_value(module)  # workers cannot import a test

LONGEST_WAIT = 300.0  # seconds
ECC = "CUDA error: uncorrectable ECC error encountered"


@dataclass
class Drawn:
    """A stage: its workers, and what it told people."""

    workers: RayWorkers
    told: list[str]

    def draw(self, corpus: SleepingCorpus, shards: list[Shard], **options: Any) -> None:
        self.workers.draw(DrawStage("draw", corpus, shards, planned=sum(shard.count for shard in shards), **options))

    def said(self, words: str) -> bool:
        return any(words in line for line in self.told)


@pytest.fixture
def stage(nodes: Nodes, tmp_path: Path) -> Iterator[Callable[..., Drawn]]:
    def begin(actors: int, **settings: Any) -> Drawn:
        told: list[str] = []

        def report(stage: str, done: int, total: int) -> None:
            if not total:
                told.append(stage)

        # The address makes it a cluster, which can grow; the session of `nodes` is used.
        cluster = Cluster(address=nodes.address, actors=actors, threads=1, **settings)
        manager = ray_workers(cluster, tmp_path / "ray.log", report)
        return Drawn(manager.__enter__(), told)

    yield begin


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


def note(store: Store, folder: str) -> int:
    """Leave a mark in the store; how many there are."""
    store.put_once(f"{folder}/{os.getpid()}-{len(list(store.list(folder)))}", b"mark")
    return len(list(store.list(folder)))


@dataclass(frozen=True)
class DeviceFailsOnce(SleepingCorpus):
    def draw(self, shard: Shard, beat: Beat) -> Any:
        if shard.first == 4 and note(self.store, "failures") == 1:
            raise RuntimeError(ECC)
        return super().draw(shard, beat)


def test_a_device_error_ends_its_process_alone(nodes: Nodes, stage: Callable[..., Drawn], store: Store) -> None:
    nodes.add_node(num_cpus=1)
    drawn = stage(1)
    drawn.draw(DeviceFailsOnce(store, 0.05), plan(6, 2))
    assert committed_shards(store) == plan(6, 2)
    assert len(list(store.list("failures"))) == 2, "begun again, in another process"


@dataclass(frozen=True)
class DeviceFailsWhileMeasuring(SleepingCorpus):
    def commit(self, drawn: Any, beat: Beat) -> Any:
        recorded = super().commit(drawn, beat)
        if recorded.first == 4 and note(self.store, "failures") == 1:
            raise RuntimeError(ECC)
        return recorded


def test_a_device_error_in_a_commit_ends_its_process_alone(
    nodes: Nodes, stage: Callable[..., Drawn], store: Store
) -> None:
    nodes.add_node(num_cpus=1)
    stage(1).draw(DeviceFailsWhileMeasuring(store, 0.05), plan(6, 2))
    assert committed_shards(store) == plan(6, 2)
    assert len({path.name for path in Path(store.url, "workers").iterdir()}) == 2


@dataclass(frozen=True)
class BadNode(SleepingCorpus):
    """On one of the nodes every draw meets a broken device; the other one waits for three of
    them, so that it does not draw everything meanwhile."""

    node: str = ""

    def draw(self, shard: Shard, beat: Beat) -> Any:
        if ray.get_runtime_context().get_node_id() == self.node:
            note(self.store, "failures")
            raise RuntimeError(ECC)
        end = time.monotonic() + LONGEST_WAIT
        while len(list(self.store.list("failures"))) < 3 and time.monotonic() < end:
            time.sleep(0.2)
            beat()
        return super().draw(shard, beat)


def test_a_node_that_fails_again_and_again_gets_no_more_work(
    nodes: Nodes, stage: Callable[..., Drawn], store: Store
) -> None:
    bad = nodes.add_node(num_cpus=1)
    nodes.add_node(num_cpus=1)
    drawn = stage(2)
    drawn.draw(BadNode(store, 0.05, node=bad.node_id), plan(10, 4))
    assert committed_shards(store) == plan(10, 4)
    assert not any(read_commit(store, shard).rejects for shard in plan(10, 4))
    failures = len(list(store.list("failures")))
    print(f"failures on the bad node: {failures}; {drawn.told}")
    assert failures == 3
    assert drawn.said("a machine gets no more work") and drawn.said(ECC)


@dataclass(frozen=True)
class Poison(SleepingCorpus):
    """One shard ends every process that draws it."""

    def draw(self, shard: Shard, beat: Beat) -> Any:
        if shard.first == 4:
            note(self.store, "failures")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().draw(shard, beat)


def test_a_shard_that_kills_its_workers_is_quarantined_with_its_reason(
    nodes: Nodes, stage: Callable[..., Drawn], store: Store
) -> None:
    nodes.add_node(num_cpus=1)
    drawn = stage(1)
    drawn.draw(Poison(store, 0.05), plan(6, 2))
    assert committed_shards(store) == plan(6, 2)
    reasons = {reason for _, reason in read_commit(store, Shard("benign", 4, 2)).rejects}
    assert reasons == {"its workers failed 4 times, at last so: its process died, or hung and was ended"}
    assert len(list(store.list("failures"))) == 4
    assert drawn.said("all images of shard benign/")


class TooMany(OSError):
    """As a model hub's client raises it."""

    def __init__(self) -> None:
        super().__init__("429 Too Many Requests for huggingface.co")
        self.response = type("Response", (), {"status_code": 429})()

    def __reduce__(self) -> Any:
        return TooMany, ()


@dataclass(frozen=True)
class BusyHub(SleepingCorpus):
    """A worker dies at its second shard; two loads after the first one are refused."""

    def start(self) -> Any:
        if 1 < note(self.store, "loads") < 4:
            raise TooMany
        return super().start()

    def draw(self, shard: Shard, beat: Beat) -> Any:
        if shard.first == 2 and note(self.store, "deaths") == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().draw(shard, beat)


def test_a_hub_that_refuses_a_restarted_worker_twice_is_asked_again(
    nodes: Nodes, stage: Callable[..., Drawn], store: Store
) -> None:
    nodes.add_node(num_cpus=1)
    stage(1).draw(BusyHub(store, 0.05), plan(6, 2))
    assert committed_shards(store) == plan(6, 2)
    assert len(list(store.list("loads"))) == 4


@dataclass(frozen=True)
class CannotLoad(SleepingCorpus):
    def start(self) -> Any:
        note(self.store, "loads")
        raise OSError(28, "No space left on device", "/tmp/weights")


def test_what_fails_on_every_machine_ends_the_stage_with_its_innermost_cause(
    nodes: Nodes, stage: Callable[..., Drawn], store: Store
) -> None:
    nodes.add_node(num_cpus=1)
    with pytest.raises(Stopped, match=r"^draw: (on node .*)?/tmp/weights: No space left on device$"):
        stage(1).draw(CannotLoad(store), plan(6, 2))
    assert len(list(store.list("loads"))) == 3


@dataclass(frozen=True)
class BrokenRecipe(SleepingCorpus):
    def commit(self, drawn: Any, beat: Beat) -> Any:
        shard, rows = drawn
        return self.record(shard, (), [(row.spec.image_id, "latents or pixels are not finite") for row in rows])


def test_a_recipe_of_broken_images_stops_after_its_canaries(
    nodes: Nodes, stage: Callable[..., Drawn], store: Store
) -> None:
    nodes.add_node(num_cpus=4)
    shards = [Shard(name, first, 16) for first in range(0, 320, 16) for name in ("benign", "malignant")]
    breaker = Breaker(0.01, None)

    def seen(commit: Any) -> None:
        why = breaker.add(commit)
        if why:
            raise StoppedForGood(why)

    drawn = stage(4)
    with pytest.raises(StoppedForGood, match="not finite"):
        drawn.draw(BrokenRecipe(store, 0.01), shards, first=shards[:2], seen=seen)
    committed = committed_shards(store)
    print(f"{len(committed)} of {len(shards)} shards were drawn")
    assert set(committed) <= set(shards[:2])
    assert drawn.said("one shard of each class comes first")


def test_a_time_without_any_machine_is_waited_out_and_said(
    nodes: Nodes, stage: Callable[..., Drawn], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stalls, "WAIT_SAID_EARLY", 3.0)
    drawn = stage(1, hang_seconds=60, patience=0.2)
    with ThreadPoolExecutor(1) as pool:  # Ray starts nodes in main threads only
        running = pool.submit(drawn.draw, SleepingCorpus(store, 0.05), plan(4, 2))
        end = time.monotonic() + LONGEST_WAIT
        while not drawn.said("waits, ") and not running.done() and time.monotonic() < end:
            time.sleep(0.5)
        nodes.add_node(num_cpus=1)
        running.result()
    assert committed_shards(store) == plan(4, 2)
    address = ray.get_runtime_context().gcs_address
    assert drawn.said("waits, ") and drawn.said(f"no worker came; Ray at {address} has 1 node,")


def test_patience_ends(
    nodes: Nodes, stage: Callable[..., Drawn], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stalls, "STALLED_AFTER", 1)
    with pytest.raises(Stopped, match=r"draw: nothing moved for 18 s: no worker came; Ray at \S+ has 1 node,"):
        stage(1, hang_seconds=5, patience=0.005).draw(SleepingCorpus(store), plan(4, 2))
