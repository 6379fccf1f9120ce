"""Nodes and workers are lost, stopped and added while a run draws, trains and measures: its result
stays the same.

Several raylets on this machine stand in for nodes (tests/support/nodes.py); a node is lost by
SIGKILL to all that is its.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import ray
from ray.train import ScalingConfig

from busray.cluster.pool import ray_workers
from busray.config_file import load_config
from busray.corpus.commit import read_commits
from busray.corpus.verify import verify
from busray.data.phantom import write_dataset
from busray.model.checkpoints import newest_checkpoint
from busray.run.checks import open_run
from busray.run.record import Run
from busray.stages.evaluate import evaluate
from busray.stages.finetune import finetune
from busray.stages.generate import generate
from busray.storage import Store
from busray.workers import Report
from tests.support.adapters import effect
from tests.support.drivers import copied, write_config
from tests.support.nodes import Nodes
from tests.support.paths import ROOT
from tests.support.runs import quiet
from tests.support.workers import InProcessWorkers

sys.path.insert(0, str(ROOT / "deploy"))
from spot_watcher import drain_command

pytestmark = pytest.mark.slow

T = TypeVar("T")
ACTOR = {"num_cpus": 2}
"""A node for one sampling actor and the commits beside it."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with adapters, its corpus and its features, made on one local worker that nothing
    happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_dataset(folder / "images", 12, seed=5, size=(96, 96))
    shutil.rmtree(folder / "images" / "normal")
    write_config(folder / "chaos.yaml", folder / "images", **SLOW)
    run = opened(folder, folder / "run")
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        with on_ray(run) as workers:
            finetune(run, workers)
            generate(run, workers)
            generate(run, workers, "base")
            evaluate(run, workers)
    finally:
        ray.shutdown()
    return run


SLOW = {
    "sampling": {"steps": 6},
    "corpus": {"shard_size": 2},
    "adapters": {"steps": 36},
    "cluster": {"threads": 1, "actors": 3},
}
"""Long enough for something to happen in between."""


def opened(folder: Path, output: Path | str, *flags: str) -> Run:
    return open_run(load_config(folder / "chaos.yaml", [f"--output={output}", *flags]), quiet)


def on_ray(run: Run, report: Report = quiet) -> Any:
    return ray_workers(run.config.cluster, run.log_file, report)


def begun(trained: Run, output: Path, *leave_out: str) -> Store:
    """A copy of the undisturbed run without the objects whose keys begin so."""
    store = copied(trained.store, Store(str(output)))
    for key in list(store.list()):
        if key.startswith(leave_out):
            store.delete(key)
    return store


class Trigger:
    """What a run reports its progress to: `come` is set when a stage has come so far."""

    def __init__(self, stage: str, done: int) -> None:
        self.stage, self.done = stage, done
        self.come = threading.Event()
        self.again = 0
        """Shards begun again, as the run reported."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage == f"{self.stage}, shards begun again":
            self.again = done
        if stage == self.stage and self.done <= done < total:
            self.come.set()

    def during(self, work: Callable[[], T], action: Callable[[], object]) -> T:
        """work() in a thread, action() here when the stage has come so far: Ray starts nodes in
        main threads only."""
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(work)
            while not self.come.wait(0.1):
                assert not running.done(), f"{self.stage} was over before anything could happen: {running.result()}"
            action()
            return running.result()


def working(class_part: str) -> list[tuple[str, int]]:
    """(node id, process id) of the living actors whose class name has this part."""
    actors = ray._private.state.actors().values()
    return [
        (a["Address"]["NodeID"], a["Pid"])
        for a in actors
        if class_part in a["ActorClassName"] and a["State"] == "ALIVE"
    ]


def node_of(nodes: Nodes, class_part: str) -> Any:
    """A node on which such an actor works."""
    at_work = {node for node, _ in working(class_part)}
    return next(n for n in nodes.worker_nodes if n.node_id in at_work)


def lose(nodes: Nodes, class_part: str) -> None:
    """SIGKILL to everything of a node on which such an actor works."""
    nodes.remove_node(node_of(nodes, class_part), allow_graceful=False)


def drain_and_lose(nodes: Nodes, class_part: str, seconds: int) -> None:
    """What a spot notice brings: the watcher's command, and the machine gone at its deadline."""
    node = node_of(nodes, class_part)
    command = drain_command(nodes.address, node.node_id, "spot notice", seconds)
    subprocess.run([Path(sys.executable).parent / "ray", *command[1:]], check=True)
    time.sleep(seconds)
    nodes.remove_node(node, allow_graceful=False)


def test_nodes_lost_while_drawing_cost_at_most_what_was_in_flight_and_new_ones_are_used(
    trained: Run, nodes: Nodes, tmp_path: Path
) -> None:
    for _ in range(2):
        nodes.add_node(**ACTOR)
    seen: set[str] = set()

    def happen() -> None:
        seen.update(node for node, _ in working("MapWorker"))
        lose(nodes, "MapWorker")
        for _ in range(2):
            nodes.add_node(**ACTOR)
        until(lambda: len(seen | {node for node, _ in working("MapWorker")}) >= 3, 120)
        seen.update(node for node, _ in working("MapWorker"))

    trigger = Trigger("generate corpus", 1)
    store = begun(trained, tmp_path / "run", "commits/", "data/", "manifest")
    run = opened(folder_of(trained), store.url, "--classes.benign.images=30", "--classes.malignant.images=30")
    with on_ray(run, trigger) as workers:
        trigger.during(lambda: generate(run, workers), happen)
    verdict = verify(run.store)
    assert verdict.problems == () and verdict.planned == verdict.committed == 60
    assert len(seen) >= 3, "the nodes added later drew nothing"
    old = {c.shard: c.digest for c in read_commits(trained.store)}
    new = {c.shard: c.digest for c in read_commits(run.store)}
    assert {shard: new[shard] for shard in old} == old, "a shard drawn again is not the same"
    assert trigger.again <= 2, "more than the actor's own shard and the next one that waited for it"
    print(f"shards begun again: {trigger.again}")


def folder_of(run: Run) -> Path:
    return Path(run.store.url).parent


def until(true: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.2)


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_sampling_worker_that_dies_or_hangs_is_replaced_and_its_shard_drawn_again(
    trained: Run, nodes: Nodes, tmp_path: Path, sign: signal.Signals
) -> None:
    nodes.add_node(num_cpus=3)
    trigger = Trigger("generate corpus", 1)
    store = begun(trained, tmp_path / "run", "commits/", "data/", "manifest")
    run = opened(folder_of(trained), store.url, "--cluster.hang_seconds=30", "--cluster.actors=1")
    with on_ray(run, trigger) as workers:
        digest = trigger.during(lambda: generate(run, workers), lambda: os.kill(working("MapWorker")[0][1], sign))
    assert digest == verify(trained.store).digest == verify(run.store).digest
    assert trigger.again <= 1
    print(f"shards begun again: {trigger.again}")


def test_a_drained_node_that_goes_at_its_deadline_loses_nothing(trained: Run, nodes: Nodes, tmp_path: Path) -> None:
    for _ in range(2):
        nodes.add_node(**ACTOR)
    trigger = Trigger("generate corpus", 1)
    store = begun(trained, tmp_path / "run", "commits/", "data/", "manifest")
    run = opened(folder_of(trained), store.url)
    with on_ray(run, trigger) as workers:
        digest = trigger.during(lambda: generate(run, workers), lambda: drain_and_lose(nodes, "MapWorker", 10))
    assert digest == verify(trained.store).digest == verify(run.store).digest
    print(f"shards begun again: {trigger.again}")


def test_a_node_lost_while_measuring_changes_no_figure(trained: Run, nodes: Nodes, tmp_path: Path) -> None:
    for _ in range(2):
        nodes.add_node(**ACTOR)
    trigger = Trigger("features", 1)
    store = begun(trained, tmp_path / "run", "features/")
    run = opened(folder_of(trained), store.url, "--evaluate.batch_size=1")
    with on_ray(run, trigger) as workers:
        figures = trigger.during(lambda: evaluate(run, workers), lambda: lose(nodes, "MapWorker"))
    undisturbed = evaluate(trained, InProcessWorkers())
    for figure, same in zip(figures, undisturbed, strict=True):
        assert figure.value == pytest.approx(same.value, rel=1e-6, abs=1e-6)


def test_training_goes_on_with_the_workers_that_are_left_and_with_those_that_come(
    trained: Run, nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers, one after a node is lost, two again; the global batch and so the adapters
    stay the same."""
    often = partial(ScalingConfig, elastic_resize_monitor_interval_s=5)  # of Ray's 60 s, which the training lasts
    monkeypatch.setattr("busray.cluster.train.ScalingConfig", often)
    for _ in range(2):
        nodes.add_node(num_cpus=1)
    trigger = Trigger("finetune", 3)
    store = begun(
        trained, tmp_path / "run", "adapters", "finetune/checkpoints", "commits/", "data/", "run.json", "arms/"
    )
    run = opened(folder_of(trained), store.url, "--adapters.num_workers=[1,2]")

    def alone() -> bool:
        newest = newest_checkpoint(run.store)
        return newest is not None and newest.log.workers[-1][1] == 1

    def happen() -> None:
        lose(nodes, "RayTrainWorker")
        until(alone, 180)
        nodes.add_node(num_cpus=1)

    with on_ray(run, trigger) as workers:
        record = trigger.during(lambda: finetune(run, workers), happen)
    assert record.about["step"] == SLOW["adapters"]["steps"]
    assert [n for _, n in record.about["workers"]] == [2, 1, 2], record.about["workers"]
    starts = [step for step, _ in record.about["workers"]]
    assert starts[0] < starts[1] < starts[2], "each start took up the checkpoint of the one before"
    change, same_change = effect(run), effect(trained)
    assert np.linalg.norm(change - same_change) < 0.05 * np.linalg.norm(same_change)
