"""What Prometheus reads at a node's metrics port while a corpus is drawn."""

import re
import time
import urllib.request
from pathlib import Path

import ray

from busray.cluster.pool import RayWorkers, ray_workers
from busray.config import Cluster
from busray.storage import Store
from busray.workers import DrawStage
from tests.support.runs import quiet
from tests.support.sleeping import SleepingCorpus, plan

SECONDS = 120.0
"""Limit for the numbers to arrive: Ray's workers send them every second here, else every ten."""


def exported(name: str) -> dict[str, float]:
    """class -> value of the drawing "asleep", summed over the nodes and workers."""
    values: dict[str, float] = {}
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        text = urllib.request.urlopen(url, timeout=30).read().decode()
        for tags, value in re.findall(rf"^{name}{{(.*)}} (\S+)$", text, re.MULTILINE):
            if 'arm="asleep"' in tags and 'device="sleep"' in tags:
                of_class = re.findall(r'class="(\w+)"', tags)[0]
                values[of_class] = values.get(of_class, 0.0) + float(value)
    return values


def test_the_nodes_metrics_port_has_what_was_drawn_committed_and_how_long_it_took(tmp_path: Path) -> None:
    shards = plan(6, 5)
    corpus = SleepingCorpus(Store(str(tmp_path)), seconds=0.2, arm="asleep")
    cluster = Cluster(actors=1, threads=1)
    with ray_workers(cluster, tmp_path / "ray.log", quiet) as workers:
        assert isinstance(workers, RayWorkers)
        workers.draw(DrawStage("draw", corpus, shards, planned=30))
    until = time.monotonic() + SECONDS
    while not exported("ray_busray_committed_images_total") and time.monotonic() < until:
        time.sleep(1)
    committed = exported("ray_busray_committed_images_total")["benign"]
    assert 0 < committed <= 30  # an actor's last second may be lost with it
    assert committed <= exported("ray_busray_drawn_images_total")["benign"] <= 30
    shards_seen = exported("ray_busray_shard_seconds_count")["benign"]
    assert 0 < shards_seen <= 6
    assert exported("ray_busray_shard_seconds_sum")["benign"] >= 1.0 * shards_seen
    assert exported("ray_busray_store_seconds_count")["benign"] > 0
    assert 0 < exported("ray_busray_busy_share")["benign"] <= 1
    assert exported("ray_busray_quarantined_images_total") == {}
