"""An ablation under an output that has more images already."""

import pytest

from busray.corpus.ablation import SubRunPlan
from busray.model.checkpoints import commit_adapters
from busray.run.record import Run
from busray.stages.ablate import draw_sub_run, open_sub_run
from tests.support.corpora import fill, with_settings
from tests.support.workers import InProcessWorkers


@pytest.mark.parametrize("prefix", ["", "points/steps=3"])
def test_every_sub_run_keeps_its_images_where_fewer_are_compared(run: Run, prefix: str) -> None:
    store = run.store.sub(prefix) if prefix else run.store
    fill(store, {"benign": 6, "malignant": 6})
    commit_adapters(store, {}, {"sha256": "a" * 64})
    before = store.read("manifest.parquet")
    fewer = with_settings(run, evaluate={"arms": ["lora+ti", "lora+ti+refine"]}).config
    classes = {name: c.model_copy(update={"images": 4}) for name, c in fewer.classes.items()}
    plan = SubRunPlan(prefix, fewer.model_copy(update={"classes": classes}), {"lora+ti": "lora+ti"})
    sub_run = open_sub_run(run, InProcessWorkers(), plan)
    draw_sub_run(sub_run, [sub_run])
    assert store.read("manifest.parquet") == before


def test_a_sub_runs_progress_is_reported_under_its_own_name(run: Run) -> None:
    reported: list[str] = []
    workers = InProcessWorkers(lambda stage, done, total: reported.append(stage))
    for prefix in ("", "points/steps=3"):
        open_sub_run(run, workers, SubRunPlan(prefix, run.config, {})).workers.report("generate", 0, 1)
    assert reported == ["generate", "points/steps=3: generate"]
