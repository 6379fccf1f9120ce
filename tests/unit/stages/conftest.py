"""A checked run, for tests that commit corpora to it themselves."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from busray.config_file import validate
from busray.run.checks import open_run
from busray.run.record import Run
from busray.storage import Store
from tests.support.finished import finished, one_thread
from tests.support.runs import quiet

__all__ = ["finished", "one_thread"]


@pytest.fixture(scope="session")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A data set of images of 64 x 64 pixels, checked once; read only."""
    tree: dict[str, Any] = {
        "output": str(tmp_path_factory.mktemp("checked") / "run"),
        "dataset": {"phantoms": {"images": 12, "seed": 3}},
        "classes": {name: {"images": 6, "token": f"<us-{name}>"} for name in ("benign", "malignant")},
        "base": {"size": 64},
        "sampling": {"steps": 2, "batch_size": 2},
        "refine": {"steps": 2, "strength": 0.5},
        "evaluate": {"arms": ["base"]},
        "cluster": {"threads": 1},
    }
    return open_run(validate(tree), quiet, measures=False)


@pytest.fixture
def run(checked: Run, tmp_path: Path) -> Run:
    """The checked data set with a store of its own."""
    return replace(checked, store=Store(str(tmp_path / "run")))
