"""The whole job: what it refuses to measure."""

import pytest

from busray.layout import commit_key
from busray.records import Shard, UserError
from busray.run.record import Run
from busray.stages.pipeline import check_finished
from tests.support.corpora import fill


def test_a_corpus_that_is_not_finished_is_not_measured(run: Run) -> None:
    with pytest.raises(UserError, match=r"benign, malignant: fewer images planned.*run `busray generate` first"):
        check_finished(run)
    fill(run.store, {"benign": 6, "malignant": 6})
    check_finished(run)
    run.store.delete(commit_key(Shard("malignant", 4, 2)))
    with pytest.raises(UserError, match="1 planned shards have no record"):
        check_finished(run)
