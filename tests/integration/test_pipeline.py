"""The whole job on a local Ray with the embedded base: small, real, and resumable."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from busray.cli import main
from busray.cluster.finetune import finetune
from busray.cluster.generate import generate
from busray.cluster.pipeline import run_all
from busray.cluster.run import Run, open_run
from busray.config import Config, validate
from busray.corpus.commit import read_commits
from busray.records import UserError
from busray.storage import Store


def quiet(stage: str, done: int, total: int) -> None:
    pass


def settings(output: Path | str, **changes: Any) -> Config:
    """A run small enough for a test: two classes, six images each, four sampling steps, six optimiser steps."""
    tree: dict[str, Any] = {
        "output": str(output),
        "dataset": {"phantoms": {"images": 12, "seed": 3}, "val": 0.2, "test": 0.3},
        "classes": {name: {"images": 6, "token": f"<us-{name}>"} for name in ("benign", "malignant")},
        "adapters": {
            "steps": 6,
            "batch_size": 4,
            "checkpoint_every": 3,
            "validate_every": 6,
            "learning_rate": 1e-3,
            "vectors": 2,
        },
        "sampling": {"steps": 4, "guidance_scale": 2.0, "batch_size": 4},
        "refine": {"steps": 4, "strength": 0.5, "guidance_scale": 2.0},
        "corpus": {"shard_size": 4},
    }
    for key, value in changes.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
    return validate(tree)


@pytest.fixture(scope="module", autouse=True)
def local_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Ray for the module; two logical CPUs more than the machine has, for two training workers beside a task."""
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run that the tests below look at (and never change)."""
    run = open_run(settings(tmp_path_factory.mktemp("finished") / "run"), quiet)
    run_all(run)
    return run


def data_objects(store: Store) -> dict[str, bytes]:
    return {key: store.read(key) for key in store.list("data")}


def test_a_run_leaves_every_planned_image_once_with_its_record(finished: Run) -> None:
    commits = read_commits(finished.store)
    assert sum(c.rows + len(c.rejects) for c in commits) == 12
    tables = [pq.read_table(f"{finished.store.url}/{c.object}") for c in commits]
    ids = [image_id for table in tables for image_id in table.column("image_id").to_pylist()]
    assert len(ids) == len(set(ids)) == 12
    prompts = {prompt for table in tables for prompt in table.column("prompt").to_pylist()}
    assert all("<us-" in prompt for prompt in prompts)
    seeds = [seed for table in tables for seed in table.column("seed_txt2img").to_pylist()]
    assert len(set(seeds)) == 12


def test_the_report_has_every_arm_with_its_protocol_and_n(finished: Run) -> None:
    report = json.loads(finished.store.read("report.json"))
    figures = [f for f in report["figures"] if f["protocol"] == "synthetic-only" and f["class"] == "all"]
    for arm in ("base", "lora+ti", "lora+ti+refine"):
        assert {f["metric"] for f in figures if f["arm"] == arm} >= {"fid", "kid"}
    assert all(f["n"] == 12 for f in figures if f["metric"] == "fid")
    assert any(f["protocol"] == "paper-mixture" for f in report["figures"])
    page = finished.store.read("report.html").decode()
    assert "inception-v3-2015" in page
    assert "data:image/png;base64," in page


def test_arms_share_their_seeds_and_are_not_the_same_images(finished: Run) -> None:
    def rows(store: Store) -> dict[tuple[str, int], dict[str, Any]]:
        tables = [pq.read_table(f"{store.url}/{c.object}").to_pylist() for c in read_commits(store)]
        return {(row["class"], row["index"]): row for table in tables for row in table}

    released, base = rows(finished.store), rows(finished.store.sub("arms/base"))
    assert released.keys() == base.keys()
    for key, row in released.items():
        assert row["seed_txt2img"] == base[key]["seed_txt2img"]
        assert row["image_txt2img"]["bytes"] != base[key]["image"]["bytes"]
        assert row["image_txt2img"]["bytes"] != row["image"]["bytes"]


def test_running_again_changes_nothing(finished: Run) -> None:
    before = data_objects(finished.store)
    manifest = finished.store.read("manifest.parquet")
    run = open_run(finished.config, quiet)
    run_all(run)
    assert data_objects(finished.store) == before
    assert finished.store.read("manifest.parquet") == manifest


def test_a_changed_setting_is_refused_with_the_differing_field(finished: Run) -> None:
    changed = settings(finished.config.output, sampling={"steps": 5})
    with pytest.raises(UserError, match=r"sampling\.steps: 4 there, 5 now"):
        open_run(changed, quiet)


def test_one_image_is_made_again_to_the_pixel(finished: Run, capsys: pytest.CaptureFixture) -> None:
    commit = next(c for c in read_commits(finished.store) if c.class_name == "malignant" and c.first == 4)
    image_id = pq.read_table(f"{finished.store.url}/{commit.object}").column("image_id")[1].as_py()
    assert main(["reproduce", finished.config.output, image_id]) == 0
    assert "every pixel matches" in capsys.readouterr().out
    assert main(["reproduce", finished.config.output, "no-such-image"]) == 2


def test_growing_a_corpus_keeps_the_old_shards(finished: Run, tmp_path: Path) -> None:
    os.system(f"cp -r {finished.store.url} {tmp_path / 'run'}")
    config = settings(
        tmp_path / "run", classes={name: {"images": 9, "token": f"<us-{name}>"} for name in finished.config.classes}
    )
    run = open_run(config, quiet)
    before = data_objects(run.store)
    generate(run)
    after = data_objects(run.store)
    assert {key: after[key] for key in before} == before
    assert sum(c.rows for c in read_commits(run.store)) == 18
    with pytest.raises(UserError, match="benign"):
        generate(open_run(settings(tmp_path / "run"), quiet))


def test_a_run_that_lost_its_newest_work_comes_to_the_same_result(finished: Run, tmp_path: Path) -> None:
    os.system(f"cp -r {finished.store.url} {tmp_path / 'run'}")
    store = Store(str(tmp_path / "run"))
    store.delete("adapters.json")
    for key in [*store.list("finetune/checkpoints")]:
        if "/00000006" in key:
            store.delete(key)
    lost = next(key for key in store.list("commits/benign"))
    store.delete(lost)
    run = open_run(settings(tmp_path / "run"), quiet)
    assert finetune(run)["sha256"] == finetune(finished)["sha256"]
    generate(run)
    assert data_objects(store).keys() == data_objects(finished.store).keys()


def test_two_workers_train_what_one_worker_trains(finished: Run, tmp_path: Path) -> None:
    from safetensors.numpy import load

    run = open_run(settings(tmp_path / "two", adapters={"num_workers": 2, **short(finished)}), quiet)
    record = finetune(run)
    one = finetune(finished)
    name = "pytorch_lora_weights.safetensors"
    ours = load(run.store.read(f"{record['folder']}/{name}"))
    theirs = load(finished.store.read(f"{one['folder']}/{name}"))
    assert ours.keys() == theirs.keys()
    for key in ours:
        np.testing.assert_allclose(ours[key], theirs[key], atol=2e-4)
    assert any(np.abs(ours[key]).max() > 1e-3 for key in ours if "lora_B" in key)


def short(run: Run) -> dict[str, Any]:
    return run.config.adapters.model_dump(exclude={"num_workers"})


def test_a_run_on_object_storage_is_the_same_run(
    finished: Run, s3_url: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, options = s3_url
    adapters = finished.store.url + "/" + finetune(finished)["folder"]
    config = settings(f"{url}/run", adapters={"path": adapters})
    run = open_run(config, quiet)
    remote = Run(**{**run.__dict__, "store": Store(f"{url}/run", **options)})
    digest = generate(Run(**{**remote.__dict__, "config": config})) if finetune(remote) else ""
    assert digest == generate(finished)
