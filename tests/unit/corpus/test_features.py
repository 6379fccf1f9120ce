"""Features that are computed where a shard is drawn are those of the separate stage."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from busray.corpus.arms import arm_sources
from busray.corpus.draw import DrawnShard
from busray.corpus.encode import Row
from busray.corpus.features import inline_features
from busray.records import Computing, Shard
from busray.run.checks import open_run
from busray.run.record import Run
from busray.stages import features as stage
from busray.stages.generate import draw_job
from tests.support.runs import quiet, settings
from tests.support.workers import InProcessWorkers

ARM = "base+refine"
SHARDS = [Shard("benign", 0, 3), Shard("malignant", 0, 3)]


class WatchedWorkers(InProcessWorkers):
    """Keeps what its pools were given."""

    def __init__(self) -> None:
        super().__init__()
        self.pools: list[list[Any]] = []

    def map(self, stage: str, total: int, start: Any, items: Any, kind: Any) -> None:
        self.pools.append(list(items))
        super().map(stage, total, start, items, kind)


def run_with(folder: Path, *, inline: bool) -> Run:
    evaluate = {"arms": ["base", ARM], "inline": inline, "batch_size": 2, "judge": None, "geometry": None}
    return open_run(settings(folder, evaluate=evaluate), quiet)


def commit_shards(run: Run) -> None:
    """What a worker does with shards that it has drawn; the pixels are noise."""
    job = draw_job(run, "cpu", ARM)
    for number, shard in enumerate(SHARDS):
        rng, rows = np.random.default_rng(number), []
        for spec in job.recipe.specs(shard):
            image, txt2img = rng.integers(0, 256, (2, 128, 128), np.uint8)
            rows.append(Row(spec, image, txt2img))
        rejects = ((rows[0].spec.image_id, "not finite"),)
        job.commit(
            DrawnShard(shard, tuple(rows[1:]), rejects, (), (), 4, "cpu", 1.0, Computing("float32")), lambda n=0: None
        )


def stored_features(run: Run) -> dict[str, bytes]:
    keys = [key for key in run.store.list() if "features/" in key]
    return {key: run.store.read(key) for key in keys}


def test_inline_features_are_the_bytes_of_the_separate_stage_which_then_has_nothing_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "_missing_real", lambda *_: [])  # real images are measured there only
    inline, separate = run_with(tmp_path / "inline", inline=True), run_with(tmp_path / "separate", inline=False)
    commit_shards(inline)
    commit_shards(separate)
    assert not stored_features(separate)
    at_once = stored_features(inline)
    assert len({key for key in at_once if key.endswith(".npy")}) == 2 * len(SHARDS) * len(inline.extractors)
    for run in (inline, separate):
        workers = WatchedWorkers()
        stage.extract_missing(run, workers, [arm_sources(run.config)])
        drawn = [item for pool in workers.pools for item in pool]
        if run is inline:
            assert not drawn
        else:  # each column of a shard is read once for all extractors
            assert len(drawn) == 2 * len(SHARDS)
            assert all(set(item) == set(run.extractors) for item in drawn)
    assert stored_features(inline) == stored_features(separate)
    assert at_once.items() <= stored_features(separate).items()


def test_only_images_that_figures_look_at_are_measured_or_all_of_a_whole_corpus(tmp_path: Path) -> None:
    run = run_with(tmp_path, inline=True)
    evaluate = run.config.evaluate.model_copy(update={"images": 2, "arms": ("base", "lora+ti", "lora+ti+refine")})
    config = run.config.model_copy(update={"evaluate": evaluate})

    def measured(**changes: Any) -> Any:
        changed = config.model_copy(update={"evaluate": evaluate.model_copy(update=changes)})
        found = inline_features(changed, run.dataset, run.extractors, None)
        return found and {column: dict(images) for column, images in found.columns.items()}

    compared, all_images = {"benign": 2, "malignant": 2}, {"benign": 6, "malignant": 6}
    assert measured() == {"image_txt2img": compared, "image": compared}
    assert measured(whole_corpus=True) == {"image_txt2img": compared, "image": all_images}
    assert measured(inline=False) is None
    assert measured(arms=("base",)) is None
    (base,) = [inline_features(config, run.dataset, run.extractors, "base")]
    assert base is not None and dict(base.columns) == {"image": compared}


def test_a_shard_that_lost_a_row_is_left_to_the_separate_stage(
    tmp_path: Path,
) -> None:
    run = run_with(tmp_path, inline=True)
    job = draw_job(run, "cpu", ARM)
    specs = job.recipe.specs(SHARDS[0])
    black = np.zeros((128, 128), np.uint8)
    rows = tuple(Row(spec, black, black) for spec in specs)
    broken = replace(rows[0], spec=replace(specs[0], prompt="\ud800"))
    commit = job.commit(DrawnShard(SHARDS[0], (broken, *rows[1:]), (), (), (), 4, "cpu", 1.0, Computing("float32")))
    assert commit.rows == 2 and not stored_features(run)
