"""Corpora of a run whose settings have changed where they may: what is there already is used as
it is."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from busray.corpus.commit import committed_shards
from busray.corpus.draw import DrawnShard
from busray.corpus.encode import Row
from busray.corpus.manifest import published_rows
from busray.corpus.plan import read_segments
from busray.layout import CONFIG
from busray.records import Commit, Computing, ImageSpec, Segment, Shard, StoppedForGood, UserError, to_json
from busray.run.record import Run
from busray.stages import generate as module
from busray.stages.generate import DrawJob, draw_job, generate, generate_together, reproduce
from busray.workers import Beat
from tests.support.corpora import commit_black, fill, with_settings
from tests.support.workers import InProcessWorkers


def test_an_arm_keeps_its_images_where_fewer_are_compared(run: Run) -> None:
    arm = run.store.sub("arms/base")
    fill(arm, {"benign": 6, "malignant": 6})
    before = arm.read("manifest.parquet")
    generate(with_settings(run, evaluate={"images": 4}), InProcessWorkers(), "base")
    assert arm.read("manifest.parquet") == before


def broken(job: DrawJob) -> Any:
    """A worker all of whose images are broken."""

    def draw(shard: Shard, beat: Beat) -> DrawnShard:
        rejects = tuple((spec.image_id, "latents or pixels are not finite") for spec in job.recipe.specs(shard))
        return DrawnShard(shard, (), rejects, (), (), 16, "cpu", 1.0, Computing("float32"))

    return draw


def test_a_recipe_of_broken_images_stops_after_a_shard_of_a_class_and_a_rerun_at_once(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DrawJob, "start", broken)
    wide = with_settings(run, evaluate={"images": 400}, corpus={"shard_size": 16})
    store = run.store.sub("arms/base")
    with pytest.raises(StoppedForGood, match=r"stopped early, 16 of 16 images .* \(such as .*: latents") as stopped:
        generate(wide, InProcessWorkers(), "base")
    assert "give another recipe" in stopped.value.fix
    assert len(committed_shards(store)) == 1, "what is committed stays"
    with pytest.raises(StoppedForGood):
        generate(wide, InProcessWorkers(), "base")
    assert len(committed_shards(store)) == 1


def test_a_broken_corpus_that_is_drawn_to_its_end_is_published(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is saved by stopping then; the exit status says it."""
    monkeypatch.setattr(DrawJob, "start", broken)
    small = with_settings(run, evaluate={"images": 2}, corpus={"shard_size": 16})
    said: list[str] = []
    generate(small, InProcessWorkers(lambda stage, done, total: said.append(stage)), "base")
    assert published_rows(run.store.sub("arms/base"))
    assert any("quarantined" in line for line in said)


def half_an_hour_and_an_hour(job: DrawJob) -> Any:
    """A worker that takes half an hour for a refined image, and an hour for another."""

    def draw(shard: Shard, beat: Beat) -> DrawnShard:
        rows = tuple(Row(spec, np.zeros((8, 8), np.uint8)) for spec in job.recipe.specs(shard))
        seconds = shard.count * (1800.0 if job.refine else 3600.0)
        return DrawnShard(shard, rows, (), (), (), 1, "cuda: one", seconds, Computing("float32"))

    return draw


def test_a_job_that_its_first_shard_shows_to_be_above_the_limit_stops_and_keeps_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve shards of a GPU-hour each, of which six are allowed."""
    monkeypatch.setattr(DrawJob, "start", half_an_hour_and_an_hour)
    settings = {"gpus_per_actor": 1.0, "max_gpu_hours": 6.0}
    limited = with_settings(run, evaluate={"images": 6}, corpus={"shard_size": 1}, cluster=settings)
    arm = run.store.sub("arms/base")
    with pytest.raises(StoppedForGood, match=r"stopped early, the whole job takes 12.0 GPU-hours") as stopped:
        generate(limited, InProcessWorkers(), "base")
    assert "raise cluster.max_gpu_hours" in stopped.value.fix
    assert len(committed_shards(arm)) == 1, "what is committed stays"
    with pytest.raises(StoppedForGood):
        generate(limited, InProcessWorkers(), "base")
    assert len(committed_shards(arm)) == 1, "a rerun knows it from the record, and draws nothing"
    generate(with_settings(limited, cluster={"max_gpu_hours": 12.0}), InProcessWorkers(), "base")
    assert len(committed_shards(arm)) == 12


def test_of_arms_that_are_drawn_together_the_hours_of_the_first_count_for_the_second(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 refined images of an arm and 12 of the corpus make 12 GPU-hours, the arm base 12 more.
    Each alone is within 20."""
    monkeypatch.setattr(DrawJob, "start", half_an_hour_and_an_hour)
    limited = with_settings(
        run,
        evaluate={"images": 6, "arms": ["base", "base+refine"]},
        corpus={"shard_size": 1, "keep_txt2img": False},
        cluster={"gpus_per_actor": 1.0, "max_gpu_hours": 20.0},
    )
    run.store.put_checked(CONFIG, to_json(limited.config.model_dump(mode="json")))
    with pytest.raises(StoppedForGood, match=r"generate base: stopped early, the whole job takes 24.0 GPU-hours"):
        generate_together(limited, InProcessWorkers(), ["base+refine", "base"])
    assert len(committed_shards(run.store.sub("arms/base+refine"))) == 12
    assert len(committed_shards(run.store.sub("arms/base"))) == 1


def test_an_arm_keeps_its_images_where_a_class_is_added_with_fewer(run: Run) -> None:
    arm = run.store.sub("arms/base")
    fill(arm, {"benign": 6})
    commit_black(arm, Shard("malignant", 0, 3))
    fewer = run.config.classes["malignant"].model_copy(update={"images": 3}).model_dump(mode="json")
    generate(with_settings(run, classes={"malignant": fewer}), InProcessWorkers(), "base")
    size = run.config.sampling.batch_size  # of a small plan: a shard is a batch
    assert read_segments(arm) == [Segment("benign", 0, 6, 4), Segment("malignant", 0, 3, size)]
    assert sum(row["rows"] for row in published_rows(arm).values()) == 9


def test_an_image_of_an_arm_that_the_stored_settings_do_not_name_is_made_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as an image of a later --evaluate.arms, or of an ablation's base+refine."""
    draw_job(run, "cpu", "base+refine")
    arm = run.store.sub("arms/base+refine")
    fill(arm, {"malignant": 2})
    asked = []

    def redraw(job: DrawJob, commit: Commit, spec: ImageSpec) -> SimpleNamespace:
        asked.append((job.store.url, job.method, job.refine, commit.shard, spec.index))
        return SimpleNamespace(image=np.full((8, 8), 7, np.uint8))

    monkeypatch.setattr(module, "redraw", redraw)
    stored, redrawn = reproduce(run, "f-malignant-00000001")
    assert asked == [(arm.url, None, run.config.refine, Shard("malignant", 0, 2), 1)]
    assert stored.max() == 0 and redrawn.min() == 7
    with pytest.raises(UserError, match="no such image"):
        reproduce(run, "f-malignant-00000002")
