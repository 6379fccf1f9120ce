"""Corpora that are drawn together: each keeps its own records, and a worker has one set of models
at a time."""

from pathlib import Path
from typing import Any

import pytest

from busray.corpus.commit import committed_shards
from busray.records import Shard
from busray.storage import Store
from busray.together import Together, placed
from tests.support.sleeping import SleepingCorpus, plan

loads: list[str] = []


class Loaded(SleepingCorpus):
    def start(self) -> Any:
        loads.append(self.store.url)
        return super().start()


def still(n: int = 0) -> None:
    """A beat that nobody hears."""


@pytest.fixture
def stores(tmp_path: Path) -> list[Store]:
    loads.clear()
    return [Store(str(tmp_path / name)) for name in ("a", "b")]


def test_each_corpus_gets_its_own_shards_and_a_worker_loads_its_models_when_its_turn_comes(
    stores: list[Store],
) -> None:
    together = Together(tuple(map(Loaded, stores)))
    shards = [*placed(plan(3, 2), 0), *placed(plan(2, 2), 1)]
    draw = together.start()
    for shard in shards:
        assert not together.is_committed(shard)
        corpus, commit = together.commit(draw(shard, still), still)
        assert (corpus, commit.shard) == (shard.corpus, shard.plain)
        assert together.is_committed(shard)
    assert [committed_shards(store) for store in stores] == [plan(3, 2), plan(2, 2)]
    assert loads == [store.url for store in stores]
    assert len({(shard.class_name, shard.name) for shard in shards}) == 5, "they are told apart"


def test_models_that_could_not_be_loaded_are_loaded_at_the_next_shard(
    stores: list[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = Together(tuple(map(Loaded, stores)))
    draw = together.start()
    second = placed([Shard("benign", 0, 2)], 1)[0]
    with monkeypatch.context() as broken:
        broken.setattr(Loaded, "start", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            draw(second, still)
    first = placed([Shard("benign", 0, 2)], 0)[0]
    for shard in (second, first):
        assert together.commit(draw(shard, still), still)[0] == shard.corpus
