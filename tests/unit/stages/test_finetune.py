"""Training is started again after failures, and ends where they repeat without progress."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from busray.layout import ADAPTERS
from busray.model.checkpoints import Checkpoint, TrainingLog, commit_adapters, put_checkpoint
from busray.records import Stopped, UserError
from busray.stages.finetune import MAX_FAILURES, _train
from busray.storage import Store
from busray.workers import TrainingFailed


class FailingWorkers:
    """Workers whose trainings do one action after the other: a step to keep, an error, or None
    for the end."""

    def __init__(self, store: Store, *actions: int | Exception | None) -> None:
        self.store, self.actions = store, list(actions)
        self.done: list[int] = []

    def train(self, stage: str, training: Any, *, done: int) -> None:
        self.done.append(done)
        action = self.actions.pop(0)
        if action is None:
            commit_adapters(self.store, {}, {"sha256": "a" * 64})
        elif isinstance(action, Exception):
            raise action
        else:
            put_checkpoint(self.store, Checkpoint(action, bytes([action]), TrainingLog()))
            raise TrainingFailed("a node was lost")


def train(workers: FailingWorkers) -> None:
    _train(workers.store, workers, SimpleNamespace())  # pyright: ignore[reportArgumentType]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


def test_any_number_of_failures_that_each_bring_a_checkpoint_do_not_end_training(store: Store) -> None:
    workers = FailingWorkers(store, *range(1, 8), None)
    train(workers)
    assert workers.done == list(range(8)) and store.exists(ADAPTERS)


def test_failures_in_a_row_without_a_new_checkpoint_end_training_with_the_last_cause(store: Store) -> None:
    failure = TrainingFailed("out of memory")
    workers = FailingWorkers(store, failure, failure, 3, *[failure] * MAX_FAILURES)
    with pytest.raises(Stopped, match=f"{MAX_FAILURES} failures in a row without a new checkpoint.*out of memory"):
        train(workers)
    assert workers.actions == [] and workers.done == [0, 0, 0, 3, 3, 3]


def test_a_users_mistake_ends_training_at_once(store: Store) -> None:
    with pytest.raises(UserError, match="a field"):
        train(FailingWorkers(store, UserError("a field")))
