"""The Workers on a local Ray keep what busray.workers promises."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from busray.cluster.pool import RayWorkers, ray_workers
from busray.config import Cluster
from busray.records import Shard, Stopped, UserError
from busray.workers import Beat, DrawStage

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test


Progress = list[tuple[str, int, int]]


@pytest.fixture
def progress() -> Progress:
    return []


@pytest.fixture
def workers(progress: Progress, tmp_path: Path) -> Iterator[RayWorkers]:
    def report(stage: str, done: int, total: int) -> None:
        progress.append((stage, done, total))

    with ray_workers(Cluster(actors=2, threads=3), tmp_path / "ray.log", report) as workers:
        yield workers


def add_up(beat: Beat, *values: Any) -> int:
    import torch

    beat(1)
    assert torch.get_num_threads() == 3, "of the settings, not Ray's"
    return sum(int(np.sum(value if isinstance(value, int) else value.get())) for value in values)


def test_a_call_reads_what_was_shared_and_reports_under_its_label(workers: RayWorkers, progress: Progress) -> None:
    ones = workers.share(np.ones(1000))
    assert workers.labelled("points/a").call("add", 1, add_up, 5, ones) == 1005
    assert progress[0] == ("points/a: add", 0, 1) and progress[-1] == ("points/a: add", 1, 1)


def test_a_call_of_all_gives_shared_results_in_order_and_goes_on_from_what_is_done(
    workers: RayWorkers, progress: Progress
) -> None:
    results = workers.call_all("add", 7, add_up, [1, 2, 3], 10, done=4)
    assert [result.get() for result in results] == [11, 12, 13]
    assert workers.call("add again", 1, add_up, *results) == 36, "a result is an argument"
    assert progress[0] == ("add", 4, 7)


@pytest.mark.parametrize(("error", "raised"), [(UserError("a field"), UserError), (ValueError("odd"), Stopped)])
def test_an_error_in_a_worker_is_the_users_mistake_or_stops_the_stage(
    workers: RayWorkers, error: Exception, raised: type[Exception]
) -> None:
    def fail(*arguments: Any) -> None:
        raise error

    def start() -> Any:
        return fail

    message = "^a field$" if raised is UserError else "^a stage: ValueError: odd$"
    with pytest.raises(raised, match=message):
        workers.call("a stage", 1, fail)
    with pytest.raises(raised, match=message):
        workers.call_all("a stage", 2, fail, [1, 2])
    with pytest.raises(raised, match=message):
        workers.map("a stage", 1, start, [1], "core")


def test_a_map_over_one_core_each_does_every_item_and_loads_no_torch(workers: RayWorkers, tmp_path: Path) -> None:
    shared = workers.share("value")

    def start() -> Any:
        import sys

        def note(item: int, beat: Beat) -> None:
            beat(1)
            (tmp_path / f"{item}").write_text(f"{shared.get()} {'torch' in sys.modules}")

        return note

    workers.map("notes", 5, start, range(5), "core")
    assert [(tmp_path / f"{item}").read_text() for item in range(5)] == ["value False"] * 5


def test_a_map_over_more_items_than_are_handed_out_together_does_each_once(
    workers: RayWorkers, progress: Progress, tmp_path: Path
) -> None:
    """Items hold references, as real images do; a worker never gets all items."""
    shared = workers.share("value")
    items = [(number, shared) for number in range(150)]

    def start() -> Any:
        def note(item: tuple[int, Any], beat: Beat) -> None:
            beat(1)
            with open(tmp_path / f"{item[0]}", "a") as file:
                file.write(item[1].get())

        return note

    workers.map("notes", len(items), start, items, "core")
    assert {path.name: path.read_text() for path in tmp_path.glob("[0-9]*")} == {str(n): "value" for n in range(150)}
    assert progress[-1] == ("notes", 150, 150)


class Plan:
    """Shards of which some are committed; a commit leaves a file with what was drawn."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def labels(self) -> dict[str, str]:
        return {"arm": "none", "device": "none"}

    def is_committed(self, shard: Shard) -> bool:
        return (self.folder / shard.name).exists()

    def start(self) -> Any:
        def draw(shard: Shard, beat: Beat) -> tuple[Shard, np.ndarray, None]:
            beat(shard.count)
            return shard, np.full((shard.count, 300, 300), shard.first, np.uint8), None

        return draw

    def commit(self, drawn: Any, beat: Beat) -> None:
        shard, pixels, _ = drawn
        (self.folder / shard.name).write_text(f"{pixels.shape} {pixels.max()}")


def test_a_stream_draws_and_commits_every_shard_that_has_no_commit(
    workers: RayWorkers, progress: Progress, tmp_path: Path
) -> None:
    shards = [Shard("benign", first, 2) for first in range(0, 8, 2)]
    (tmp_path / shards[1].name).write_text("by another driver")
    workers.draw(DrawStage("draw", Plan(tmp_path), shards, planned=10))
    left = [(tmp_path / shard.name).read_text() for shard in shards]
    assert left == ["(2, 300, 300) 0", "by another driver", "(2, 300, 300) 4", "(2, 300, 300) 6"]
    assert progress[0] == ("draw", 2, 10) and progress[-1] == ("draw", 10, 10)
