"""The released corpus and the arms are drawn by one pool of workers, and each is a corpus of its
own all the same."""

from typing import Any, ClassVar

import pytest

from busray.corpus.commit import committed_shards
from busray.corpus.manifest import published_rows
from busray.layout import MANIFEST, arm_prefix
from busray.records import Commit, Stopped
from busray.run.record import Run, read_timings
from busray.stages import generate as module
from busray.stages.generate import generate_together
from busray.workers import Beat, DrawStage
from tests.support.sleeping import SleepingCorpus
from tests.support.workers import InProcessWorkers

ARMS = (None, "base", "lora+ti")


class Job(SleepingCorpus):
    """What draw_job makes, without models."""

    refine = None
    gate = None
    broken = ""
    loads: ClassVar[list[str]] = []

    def start(self) -> Any:
        self.loads.append(self.store.url)
        return self.draw

    def commit(self, drawn: Any, beat: Beat) -> Commit:
        if self.broken and self.store.url.endswith(self.broken):
            raise OSError("the disk is full")
        return super().commit(drawn, beat)


@pytest.fixture(autouse=True)
def jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw_job(run: Run, device: str, arm: str | None, *rest: Any) -> Job:
        return Job(run.store.sub(arm_prefix(arm)) if arm else run.store)

    monkeypatch.setattr(module, "draw_job", draw_job)
    monkeypatch.setattr(Job, "loads", [])


class Seen(InProcessWorkers):
    def __init__(self) -> None:
        self.reports: list[tuple[str, int, int]] = []
        self.pools = 0
        super().__init__(lambda *report: self.reports.append(report))

    def draw(self, stage: DrawStage) -> None:
        self.pools += 1
        super().draw(stage)


def stores(run: Run) -> list[Any]:
    return [run.store.sub(arm_prefix(arm)) if arm else run.store for arm in ARMS]


def test_one_pool_draws_all_corpora_and_loads_the_models_of_each_once(run: Run) -> None:
    workers = Seen()
    generate_together(run, workers, ARMS)
    assert workers.pools == 1
    assert Job.loads == [store.url for store in stores(run)]
    for store in stores(run):
        assert sum(shard.count for shard in committed_shards(store)) == 12
        assert sum(row["count"] for row in published_rows(store).values()) == 12


def test_progress_and_times_are_those_of_each_corpus(run: Run) -> None:
    workers = Seen()
    generate_together(run, workers, ARMS)
    for name in ("corpus", "base", "lora+ti"):
        done = [done for stage, done, total in workers.reports if (stage, total) == (f"generate {name}", 12)]
        assert done == sorted(done) and (done[0], done[-1]) == (0, 12), name
    assert read_timings(run.store).keys() == {"generate", "generate base", "generate lora+ti"}


def test_what_is_drawn_is_published_though_a_later_corpus_fails_and_a_rerun_draws_the_rest(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Job, "broken", "lora+ti")
    with pytest.raises(Stopped, match="the disk is full"):
        generate_together(run, Seen(), ARMS)
    assert [store.exists(MANIFEST) for store in stores(run)] == [True, True, False]
    monkeypatch.setattr(Job, "broken", "")
    monkeypatch.setattr(Job, "loads", [])
    again = Seen()
    generate_together(run, again, ARMS)
    assert Job.loads == [stores(run)[2].url] and again.pools == 1
    assert [store.exists(MANIFEST) for store in stores(run)] == [True, True, True]
    done = Seen()
    generate_together(run, done, ARMS)
    assert done.pools == 0
