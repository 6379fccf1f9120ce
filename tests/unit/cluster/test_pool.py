"""How a pool's items are handed out, and what is said of a cluster that is joined."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from busray.cluster import pool
from busray.cluster.pool import MOST_BUNDLES, MOST_TOGETHER, ROWS_A_WORKER, _handfuls
from busray.config import Cluster


@pytest.mark.parametrize("items", [1, 2, 63, 64, 65, 1_000, 4_096, 100_001])
@pytest.mark.parametrize("workers", [1, 16])
def test_every_item_is_in_one_row_and_rows_are_enough_for_all_workers(items: int, workers: int) -> None:
    size = -(-items // MOST_BUNDLES)
    rows = _handfuls(items, size, ROWS_A_WORKER * workers)
    named: list[int] = []
    for row in rows:
        assert 0 <= row["start"] < row["end"] <= size
        named += range(row["bundle"] * size + row["start"], row["bundle"] * size + row["end"])
    assert named == list(range(items))
    assert max(row["end"] - row["start"] for row in rows) <= MOST_TOGETHER
    assert len(rows) >= min(items, ROWS_A_WORKER * workers)


def test_of_a_million_images_a_row_is_several_shards_and_a_worker_reads_a_part_of_the_items() -> None:
    shards, workers = 4_000, 16
    size = -(-shards // MOST_BUNDLES)
    assert len(_handfuls(shards, size, ROWS_A_WORKER * workers)) <= shards / 10
    assert size <= shards / 50


def test_a_cluster_that_is_joined_is_named_once_and_a_ray_of_our_own_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "session", lambda *_: nullcontext())
    monkeypatch.setattr(pool, "capacity", lambda: "Ray at 10.0.0.1:6379 has 1 node, with 0 of 2 CPUs free")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    told: list[str] = []

    def report(words: str, done: int, total: int) -> None:
        told.append(words)

    for address in (None, "auto"):
        with pool.ray_workers(Cluster(address=address), tmp_path / "log", report) as ray:
            ray.start_session()
            ray.start_session()
    assert told == [
        "joined by cluster.address: Ray at 10.0.0.1:6379 has 1 node, with 0 of 2 CPUs free. Or leave cluster.address "
        "out for a Ray of busray's own on this machine"
    ]
