"""The whole job on a local Ray and on object storage: what it leaves is what one process leaves."""

import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import ray
from safetensors.numpy import load

from busray.cluster.pool import ray_workers
from busray.model.finetune import CLIP_NORM
from busray.records import Figure
from busray.run.checks import open_run
from busray.run.record import Run
from busray.stages.evaluate import evaluate
from busray.stages.finetune import _training, finetune
from busray.stages.generate import generate
from busray.stages.pipeline import run_all
from busray.storage import Store
from tests.support.adapters import effect
from tests.support.finished import adapters, adapters_folder, data_objects, shorter
from tests.support.runs import quiet
from tests.support.workers import InProcessWorkers

pytestmark = pytest.mark.usefixtures("one_thread")


def on_ray(run: Run) -> Any:
    return ray_workers(run.config.cluster, run.log_file, quiet)


@pytest.mark.slow  # three minutes; faster tests below train, draw and measure on Ray one by one
def test_the_whole_job_on_ray_leaves_what_it_leaves_in_one_process(finished: Run, tmp_path: Path) -> None:
    run = open_run(shorter(tmp_path / "run"), quiet)
    with on_ray(run) as workers:
        run_all(run, workers)
    assert not run.log_file.exists(), "nothing went wrong"
    assert adapters(run).sha256 == adapters(finished).sha256
    assert data_objects(run.store) == data_objects(finished.store)
    assert set(run.store.list("features")) == set(finished.store.list("features"))
    report, same = (json.loads(store.read("report.json")) for store in (run.store, finished.store))
    assert len(report["figures"]) == len(same["figures"])
    for figure, other in zip(report["figures"], same["figures"], strict=True):
        assert figure == {**other, "value": pytest.approx(other["value"], rel=1e-6, abs=1e-9), "interval": ANY}


def test_two_workers_on_object_storage_train_what_one_worker_trains(finished: Run, bucket: str) -> None:
    """The same gradients; but not the same bits of adapters, since Adam turns the rounding of a
    gradient near 0 into a whole step of any sign."""
    run = open_run(shorter(f"{bucket}/two-workers", adapters={"num_workers": 2, "checkpoint_every": 1}), quiet)
    with on_ray(run) as workers:
        two, one = finetune(run, workers), adapters(finished)
    assert two.about["workers"] == [[0, 2]] and one.about["workers"] == [[0, 1]]
    for (step, loss), (same_step, same_loss) in zip(two.about["loss"], one.about["loss"], strict=True):
        assert step == same_step and loss == pytest.approx(same_loss, rel=1e-3)

    alone = _training(finished, "cpu", None).start(world=1)
    alone.accumulate(range(run.config.adapters.batch_size))
    state = load(run.store.read(next(k for k in run.store.list("finetune/checkpoints") if "/00000001-" in k)))
    gradients = {name: p.grad.numpy() for name, p in alone.tuner.parameters.items()}
    norm = np.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
    assert 1e-3 < norm < CLIP_NORM, "a clipped gradient is not what Adam's state shows"
    for name, gradient in gradients.items():  # after one step, the average of Adam is (1 - 0.9) x gradient
        np.testing.assert_allclose(state[f"optimiser/exp_avg/{name}"], 0.1 * gradient, rtol=0, atol=1e-6 * norm)

    change, same_change = effect(run), effect(finished)
    size = np.linalg.norm(same_change)
    assert size > 0.1
    assert np.linalg.norm(change - same_change) < 0.02 * size  # 1e-4 was seen on several kinds of processors


def test_a_run_on_object_storage_with_adopted_adapters_is_the_same_corpus(finished: Run, bucket: str) -> None:
    arms = ["lora+ti", "lora+ti+refine"]
    compared = {"arms": arms, "judge": None, "extractors": ["texture"]}
    changes = {"adapters": {"path": adapters_folder(finished)}, "evaluate": compared}
    run = open_run(shorter(f"{bucket}/adopted", **changes), quiet)
    with on_ray(run) as workers:
        assert finetune(run, workers).sha256 == adapters(finished).sha256
        assert generate(run, workers) == generate(finished, InProcessWorkers())
        figures = evaluate(run, workers)
    local = {key(figure): figure.value for figure in evaluate(finished, InProcessWorkers())}
    assert {"fd-texture", "kd-texture_difference"} <= {figure.metric for figure in figures}
    for figure in figures:
        assert local[key(figure)] == pytest.approx(figure.value, rel=1e-6)


def key(figure: Figure) -> tuple[str, str, str, str, str]:
    return figure.metric, figure.arm, figure.class_name, figure.protocol, figure.extractor


def test_no_secret_of_the_environment_is_in_what_runs_and_ray_wrote(finished: Run, bucket: str) -> None:
    """Records, shards, reports and Ray's session folder (logs of driver, workers and agents) of
    the runs above."""
    context = ray.get_runtime_context()
    folders = [Path(finished.store.url), Path(context.get_temp_dir()) / context.get_session_name()]
    written = {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}
    store = Store(bucket)
    written |= {key: store.read(key) for key in store.list()}
    names = {Path(name).name for name in written}
    assert {"config.json", "run.json", "manifest.parquet", "report.json", "report.html"} <= names
    assert any("/logs/" in name for name in written)
    for secret in (os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]):
        assert "planted" in secret.lower(), "what the fixture of the bucket put there"
        assert [name for name, data in written.items() if secret.encode() in data] == []
