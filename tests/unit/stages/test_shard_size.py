"""Shards are sized in seconds of work. The size is kept with the plan, and it decides no pixel."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from busray import config
from busray.corpus import plan
from busray.corpus.commit import read_commits, read_rows
from busray.corpus.plan import extend_plan, shard_size
from busray.records import Shard
from busray.run.record import Run
from busray.stages import shard_size as module
from busray.stages.generate import generate, generate_together
from busray.stages.shard_size import ShardSizes, recorded_seconds
from busray.storage import Store
from tests.support import corpora
from tests.support.corpora import commit_black, with_settings
from tests.support.workers import InProcessWorkers


def takes(seconds: float) -> Callable[[], float]:
    return lambda: seconds


def must_not_be_asked() -> float:
    raise AssertionError("the speed was measured, though it decides nothing")


@pytest.mark.parametrize(
    ("missing", "actors", "seconds", "size"),
    [
        (10**6, 8, 0.4, 176),  # 75 s are 187.5 images, in whole batches of 16
        (10**6, 8, 60.0, 16),  # never less than a batch
        (10**6, 1000, 0.001, 240),  # a thousand actors get four shards each
        (20_000, 8, 0.01, 624),
    ],
)
def test_a_shard_is_whole_batches_of_so_many_seconds_and_every_actor_gets_some(
    missing: int, actors: int, seconds: float, size: int
) -> None:
    assert shard_size(config.Corpus(), 16, actors, missing, takes(seconds)) == size


def test_a_small_plan_is_cut_into_batches_and_a_size_that_is_set_is_taken_without_a_measurement() -> None:
    assert shard_size(config.Corpus(), 16, 8, 2048, must_not_be_asked) == 16
    assert shard_size(config.Corpus(shard_size=5), 16, 8, 10**6, must_not_be_asked) == 5


def without_size(run: Run, **changes: Any) -> Run:
    return with_settings(run, corpus={"shard_size": None, **changes}, sampling={"steps": 2, "batch_size": 2})


def test_the_measured_size_is_kept_with_the_plan_and_a_rerun_measures_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "SMALL", 0)
    monkeypatch.setattr(plan, "SHARDS_AN_ACTOR", 1)
    probed: list[bool] = []

    def probe(*arguments: Any) -> dict[bool, float]:
        probed.append(True)
        return {False: 10.0, True: 15.0}

    monkeypatch.setattr(module, "probed_seconds", probe)
    images = {"benign": 8, "malignant": 8}

    def planned(seconds: float) -> list[int]:
        sized = ShardSizes(without_size(run, shard_seconds=seconds), InProcessWorkers()).of(refined=False)
        return [segment.shard_size for segment in extend_plan(run.store, images, sized)]

    assert planned(45) == [4, 4]
    assert planned(1000) == [4, 4] and probed == [True]
    images["benign"] = 18
    assert planned(65) == [4, 4, 6] and probed == [True, True]


def test_a_probe_draws_a_batch_and_stores_nothing(run: Run) -> None:
    before = list(run.store.list())
    seconds = module.probed_seconds(without_size(run).config, InProcessWorkers())
    assert seconds.keys() == {False, True} and min(seconds.values()) > 0
    assert list(run.store.list()) == before


def test_records_of_the_run_tell_the_speed_and_those_of_another_device_do_not(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 steps, and with refinement half of 4 more: of the base's records, half as long again."""
    monkeypatch.setattr(corpora, "EXECUTION", replace(corpora.EXECUTION, device="cpu: some kind"))
    assert recorded_seconds(run.config, run.store, "cpu", refined=False) is None
    commit_black(run.store.sub("arms/base"), Shard("benign", 0, 4), seconds=20.0)
    assert recorded_seconds(run.config, run.store, "cuda", refined=False) is None
    assert recorded_seconds(run.config, run.store, "cpu", refined=False) == 5.0
    assert recorded_seconds(run.config, run.store, "cpu", refined=True) == 7.5
    commit_black(run.store.sub("arms/base"), Shard("benign", 4, 4), seconds=0.0)  # quarantined, not drawn
    assert recorded_seconds(run.config, run.store, "cpu", refined=False) == 5.0


def pixels(store: Store) -> dict[tuple[str, int], bytes]:
    found = {}
    for commit in read_commits(store):
        for row in read_rows(store, commit, ["index", "image"]).to_pylist():
            found[commit.class_name, row["index"]] = row["image"]["bytes"]
    return found


def test_pixels_do_not_depend_on_the_size_of_a_shard_of_whole_batches(run: Run) -> None:
    drawn = []
    for size in (2, 4):
        here = run.store.sub(f"size-{size}")
        sized = with_settings(
            run, corpus={"shard_size": size}, sampling={"steps": 1, "batch_size": 2}, evaluate={"images": 4}
        )
        generate(replace(sized, store=here), InProcessWorkers(), "base")
        drawn.append(pixels(here.sub("arms/base")))
    assert len(drawn[0]) == 8 and drawn[0] == drawn[1]


def test_pixels_of_arms_that_are_drawn_together_are_those_of_arms_drawn_alone(run: Run) -> None:
    """One worker loads one set of models after the other."""
    small = with_settings(run, sampling={"steps": 1, "batch_size": 2}, evaluate={"images": 2})
    arms, drawn = ("base", "base+refine"), []
    for name in ("alone", "together"):
        here = replace(small, store=run.store.sub(name))
        if name == "together":
            generate_together(here, InProcessWorkers(), arms)
        for arm in arms:
            generate(here, InProcessWorkers(), arm)
        drawn.append([pixels(here.store.sub(f"arms/{arm}")) for arm in arms])
    assert [len(images) for images in drawn[0]] == [4, 4] and drawn[0] == drawn[1]
