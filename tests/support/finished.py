"""One small finished run, made once for all processes of a test session; its settings and parts."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from busray.config import Config
from busray.model.checkpoints import read_adapters
from busray.records import AdaptersRecord
from busray.run.checks import open_run
from busray.run.record import Run
from busray.stages import classifiers
from busray.stages.pipeline import run_all
from busray.storage import Store
from tests.support.runs import quiet, settings
from tests.support.workers import InProcessWorkers

CLASSIFIER_STEPS = 40
"""Of the class gate and the judge: what they say of a few images is not what tests look at."""
SHORTER = {
    "base": {"size": 64},
    "adapters": {"steps": 4, "checkpoint_every": 2, "validate_every": 4},
    "sampling": {"steps": 2},
    "refine": {"steps": 2},
}


def shorter(output: Path | str, **changes: Any) -> Config:
    """Settings of the finished run: those of `settings` with fewer steps and a quarter of the
    pixels."""
    merged = {name: {**steps, **changes.pop(name, {})} for name, steps in SHORTER.items()}
    return settings(output, **merged, **changes)


def finished_copy(shared: Path, folder: Path) -> Run:
    """A copy in `folder` of the finished run in `shared`, which the first process to come makes."""
    with FileLock(shared / "finished.lock"):
        if not (shared / "finished").exists():
            making = shared / "making"
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # as workers on Ray have
            run_all(open_run(shorter(making / "run"), quiet), InProcessWorkers())
            torch.set_num_threads(threads)
            making.rename(shared / "finished")
    shutil.copytree(shared / "finished" / "run", folder)
    return open_run(shorter(folder), quiet)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Run:
    """A finished run that tests look at (and never change)."""
    own = tmp_path_factory.getbasetemp()
    shared = own if worker_id == "master" else own.parent  # of all processes of pytest-xdist
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifiers, "STEPS", CLASSIFIER_STEPS)
        return finished_copy(shared, tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def one_thread() -> Any:
    """As workers on Ray have: what is made in this process must be the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def adapters(run: Run) -> AdaptersRecord:
    record = read_adapters(run.store)
    assert record is not None
    return record


def adapters_folder(run: Run) -> str:
    """The local folder of a run's adapters."""
    return f"{run.store.url}/{adapters(run).folder}"


def data_objects(store: Store) -> dict[str, bytes]:
    return {key: store.read(key) for key in store.list("data")}
