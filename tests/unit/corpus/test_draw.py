"""How a shard is drawn stands in its record, and reproduce computes so again."""

from pathlib import Path
from typing import Any

import pytest
import torch

from busray.corpus.draw import DrawJob, ShardDrawer, load_sampler
from busray.model.sample import Sampler
from busray.records import Commit, Computing, Execution, Shard, to_json
from busray.run.checks import open_run
from busray.stages.generate import draw_job, reproduce
from tests.support.runs import quiet, settings

SHARD = Shard("benign", 0, 3)


def job(folder: Path, **sampling: Any) -> DrawJob:
    evaluate = {"arms": ["base"], "judge": None, "geometry": None}
    steps = {"steps": 1, "guidance_scale": 1.0, "batch_size": 2, **sampling}
    return draw_job(open_run(settings(folder, evaluate=evaluate, sampling=steps), quiet), "cpu", "base")


def test_compiled_code_is_loaded_before_and_kept_after_and_reproduce_only_loads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(Sampler, "warm_up", lambda sampler: done.append("compiled"))
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"code", None))
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", lambda data: done.append(f"loaded {data.decode()}"))
    asked = job(tmp_path / "run", compile=True)
    load_sampler(asked)
    assert done == ["compiled"] and not list(asked.run_store.list("compiled"))
    drawer = ShardDrawer(asked)
    (key,) = asked.run_store.list("compiled")
    assert drawer.sampler.computing == Computing("float32", compiled=True)
    ShardDrawer(asked)
    assert done == ["compiled"] * 2 + ["loaded code", "compiled"]
    assert list(asked.run_store.list("compiled")) == [key]


def test_a_record_says_how_its_shard_was_computed_and_reproduce_does_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = Computing("float32", channels_last=True, fused_qkv=True)
    monkeypatch.setattr("busray.corpus.draw.choose", lambda *settings: how)
    asked = job(tmp_path / "run")
    drawer = ShardDrawer(asked)
    drawer.sampler.decode_batch = 1
    commit = asked.commit(drawer(SHARD, lambda n=0: None))
    assert commit.execution.computing == how and commit.execution.decode_batch == 1
    assert Commit.from_json(to_json(commit)) == commit
    monkeypatch.setattr("busray.corpus.draw.choose", lambda *settings: Computing("float32"))
    samplers: list[Sampler] = []
    draw = Sampler.draw
    monkeypatch.setattr(Sampler, "draw", lambda made, specs: samplers.append(made) or draw(made, specs))
    run = open_run(settings(tmp_path / "run", evaluate={"arms": ["base"], "judge": None, "geometry": None},
                            sampling={"steps": 1, "guidance_scale": 1.0, "batch_size": 2}), quiet)  # fmt: skip
    stored, again = reproduce(run, asked.recipe.spec("benign", 2).image_id)
    assert (stored == again).all()
    assert (samplers[0].computing, samplers[0].decode_batch) == (how, 1)


def test_a_record_of_a_plain_cpu_has_the_bytes_that_it_always_had() -> None:
    record = to_json(Execution("cpu", "float32", 2, 1, {}))
    assert b"compiled" not in record and b"decode_batch" not in record and b"channels_last" not in record
