"""Drawing by a Ray job against the same code in this process.

Counted is the time from the first commit to the last, with a shard of 30 s of work between them: a
worker's start is a question of its own (start.py).
"""

import atexit
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.speed.contest import Contest, Seconds
from benchmarks.speed.runs import BATCH, small_run
from busray.corpus.commit import read_commits, read_rows
from busray.corpus.draw import DrawJob
from busray.records import Shard
from busray.stages.generate import draw_job
from busray.storage import Store
from busray.workers import DrawStage

ARM = "base+refine"
SHARD_SECONDS = 30


def questions() -> list[Contest]:
    at_exit = ExitStack()
    atexit.register(at_exit.close)
    folder = Path(at_exit.enter_context(tempfile.TemporaryDirectory()))
    run = small_run(folder / "run", 8 * BATCH)
    job = draw_job(run, "cpu", ARM)
    workers = _ray_workers(at_exit, run)
    first = Shard("benign", 0, BATCH)
    shards = [first, Shard("benign", BATCH, _images_of(job, first))]
    images = sum(shard.count for shard in shards)
    drawn: dict[str, Store] = {}

    def ours() -> Seconds:
        drawn["ray"] = Store(tempfile.mkdtemp(dir=folder))
        times: list[float] = []
        placed = replace(job, store=drawn["ray"])

        def seen(commit: Any) -> None:
            times.append(time.perf_counter())

        workers.draw(DrawStage("draw", placed, shards, images, seen=seen))
        return Seconds(times[-1] - times[0])

    def rival() -> Seconds:
        drawn["here"] = Store(tempfile.mkdtemp(dir=folder))
        return Seconds(draw_here(replace(job, store=drawn["here"]), shards))

    def same() -> str:
        ours()
        rival()
        for commit, other in zip(read_commits(drawn["ray"]), read_commits(drawn["here"]), strict=True):
            columns = ["image_id", "image"]
            mine, theirs = read_rows(drawn["ray"], commit, columns), read_rows(drawn["here"], other, columns)
            assert mine.equals(theirs)
        return "pixels identical"

    question = f"Ray job, a shard of {SHARD_SECONDS} s ({images - BATCH} images of 64 px), at most 1.10 x"
    contest = Contest(question, "on Ray", "in process", ours, rival, 1 / 1.1, same, by_cpu=False)
    return [replace(contest, profile_of_ours=_no_profile)]


def _no_profile() -> list[str]:
    return ["Not profiled: the work is done in processes of Ray."]


def draw_here(job: DrawJob, shards: list[Shard]) -> float:
    """Seconds from the first commit to the last."""
    import torch

    torch.set_num_threads(job.threads)
    draw, times = job.start(), []
    for shard in shards:
        job.commit(draw(shard, lambda n=0: None))
        times.append(time.perf_counter())
    return times[-1] - times[0]


def _images_of(job: DrawJob, shard: Shard) -> int:
    """Images that take SHARD_SECONDS, in whole batches."""
    draw: Callable[..., Any] = job.start()
    draw(shard, lambda n=0: None)
    began = time.perf_counter()
    draw(shard, lambda n=0: None)
    batches = SHARD_SECONDS / (time.perf_counter() - began)
    return BATCH * max(1, round(batches))


def _ray_workers(at_exit: ExitStack, run: Any) -> Any:
    from busray.cluster.pool import ray_workers

    return at_exit.enter_context(ray_workers(run.config.cluster, run.log_file, lambda stage, done, total: None))
