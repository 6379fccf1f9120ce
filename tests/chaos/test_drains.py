"""A node that is drained finishes what its actor has and gets nothing new: a spot notice costs no
shard, and a rebalance recommendation is no more than that. The sampler sleeps."""

import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

from busray import config
from busray.cluster.draw import CALLS
from busray.cluster.pool import ray_workers
from busray.corpus.commit import committed_shards
from busray.records import Shard
from busray.storage import Store
from busray.workers import Beat, DrawStage
from tests.support import sleeping
from tests.support.nodes import Nodes
from tests.support.paths import ROOT
from tests.support.sleeping import SleepingCorpus, plan

sys.path.insert(0, str(ROOT / "deploy"))
from spot_watcher import drain_command

pytestmark = pytest.mark.slow

for module in (sys.modules[__name__], sleeping):
    ray.cloudpickle.register_pickle_by_value(module)  # workers cannot import a test

SHARDS = 16
IMAGE_SECONDS = 0.5
LONGEST_WAIT = 300.0  # seconds
LATE = 1
"""Shards that the driver may hand out before it hears of a drain: it looks once a second."""


@dataclass(frozen=True)
class Noted(SleepingCorpus):
    """Notes on which node a shard is begun; the first one is drawn when both nodes have begun."""

    def draw(self, shard: Shard, beat: Beat) -> Any:
        node = ray.get_runtime_context().get_node_id()
        self.store.put_once(f"begun/{node}/{shard.name}", b"begun")
        # On a busy machine a node may start so late that the other one would have drawn everything.
        end = time.monotonic() + LONGEST_WAIT
        while len(self.begun()) < 2 and time.monotonic() < end:
            time.sleep(0.2)
            beat()
        return super().draw(shard, beat)

    def begun(self) -> dict[str, int]:
        """node -> shards begun there."""
        nodes = [key.split("/")[1] for key in self.store.list("begun")]
        return {node: nodes.count(node) for node in nodes}


@pytest.fixture
def two_nodes(nodes: Nodes) -> Nodes:
    """Of one actor each."""
    for _ in range(2):
        nodes.add_node(num_cpus=1)
    return nodes


class Job(threading.Thread):
    """Draws the corpus, and notes what was reported."""

    def __init__(self, corpus: Noted, log: Path) -> None:
        super().__init__(daemon=True)
        self.corpus, self.log = corpus, log
        self.again, self.error = 0, None
        self.start()

    def run(self) -> None:
        def report(stage: str, done: int, total: int) -> None:
            if stage == "draw, shards begun again":
                self.again = done

        try:
            with ray_workers(config.Cluster(actors=2, threads=1), self.log, report) as workers:
                workers.draw(DrawStage("draw", self.corpus, plan(SHARDS, 4), planned=4 * SHARDS))
        except BaseException as error:
            self.error = error

    def until_both_nodes_drew(self) -> str:
        """A node that draws, once both have committed something."""
        while self.is_alive():
            begun = self.corpus.begun()
            if len(begun) == 2 and min(begun.values()) > CALLS:
                return next(iter(begun))
            time.sleep(0.1)
        raise AssertionError(f"the job was over before anything could happen: {self.error}")


def drain(nodes: Nodes, node: str, seconds: int | None) -> None:
    command = drain_command(nodes.address, node, "a test", seconds)
    subprocess.run([Path(sys.executable).parent / "ray", *command[1:]], check=True)


@pytest.mark.parametrize("seconds", [None, 60], ids=["rebalance", "notice"])
def test_a_drained_node_finishes_its_shards_and_gets_no_new_ones(
    two_nodes: Nodes, tmp_path: Path, seconds: int | None
) -> None:
    """With a deadline the machine goes when it has come."""
    corpus = Noted(Store(str(tmp_path / "run")), seconds=IMAGE_SECONDS)
    job = Job(corpus, tmp_path / "ray.log")
    node = job.until_both_nodes_drew()
    drain(two_nodes, node, seconds)
    before = corpus.begun()[node]
    if seconds is not None:
        time.sleep(seconds)
        machine = next(m for m in two_nodes.worker_nodes if m.node_id == node)
        two_nodes.remove_node(machine, allow_graceful=False)
    job.join(600)
    assert not job.is_alive() and job.error is None, job.error
    assert committed_shards(corpus.store) == plan(SHARDS, 4)
    assert job.again == 0, "a shard in flight was lost"
    assert corpus.begun()[node] <= before + CALLS + LATE, "the drained node got new work"
    print(f"drained with {before} of {SHARDS} shards begun there, {corpus.begun()[node]} in all")
