"""The questions of a GPU, answered at a tiny size on a CPU, and what the page says of an answer."""

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.speed import gpu
from benchmarks.speed.contest import Contest, Limit, Seconds, Times, limit_row, row, run
from busray.run.record import Run
from busray.workers import DrawStage


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return gpu.gpu_run(tmp_path_factory.mktemp("gpu"), gpu.TINY)


def answered(questions: list[Any]) -> list[str]:
    """The rows of the page, after one repeat."""
    return [row(run(question, repeats=1)) for question in questions]


def test_sampling_is_compared_with_diffusers_and_with_matrix_products(tiny: Run) -> None:
    one, batched, share = answered(gpu.sampling(tiny, gpu.TINY))
    assert "diffusers one at a time" in one and "same batch" in batched
    assert "share of the matmul rate" in share and "TFLOP an image" in share


def test_a_job_with_inline_features_is_compared_with_the_bare_loop(tiny: Run) -> None:
    stores = []

    def draw(stage: DrawStage) -> None:
        drawing: Any = stage.drawing
        stores.append(drawing.store)
        work = drawing.start()
        for shard in stage.shards:
            stage.seen(drawing.commit(work(shard, lambda n=0: None), lambda n=0: None))

    (line,) = answered(gpu.job(tiny, gpu.TINY, draw))
    assert "bare loop of batches" in line
    assert sum(key.startswith("features/") for key in stores[0].list()) == 2


def test_a_training_step_is_compared_with_matrix_products(tiny: Run) -> None:
    (line,) = answered(gpu.training(tiny, gpu.TINY))
    assert "TFLOP a sample" in line


def test_a_missed_goal_says_by_how_much() -> None:
    def contest(goal: float | None) -> Contest:
        return Contest("q", "ours", "theirs", lambda: Seconds(2), lambda: Seconds(3), goal, lambda: "equal")

    assert " 1.5 | yes | equal |" in row(run(contest(1.5)))
    assert " 2 | no, by 25% | equal |" in row(run(contest(2.0)))
    assert " 1.50 |  |  |  | equal |" in row(replace(run(contest(None)), cpu_ratio=None))
    limit = Limit("q", lambda: None, 10)
    assert "| 10 s | yes |" in limit_row(limit, Times(9, 8, 11))
    assert "| 10 s | no, by 20% |" in limit_row(limit, Times(12, 8, 13))
