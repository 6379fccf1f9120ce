"""Fixtures of all tests, and how `make test` spreads files over its two processes."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from xdist.scheduler import LoadFileScheduling

from busray.data import prepare
from busray.data.phantom import Probe, write_dataset
from tests.support.paths import SHARED

BUSI = SHARED / "data" / "busi"
RAY_IN_CHAOS = (
    "test_commits",
    "test_drains",
    "test_driver_death",
    "test_faults",
    "test_independent_drivers",
    "test_million",
    "test_nodes",
    "test_secure_defaults",
    "test_signals",
    "test_submit",
)
"""Files in tests/chaos that start Ray; all of tests/integration does."""


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> "TogetherScheduling":
    return TogetherScheduling(config, log)


class TogetherScheduling(LoadFileScheduling):
    """A file at a time goes to a free process, but two groups of files stay together.

    All files that start Ray: there is one Ray at a time on the cores, and its workers are not taken
    for hanging ones. All of tests/unit/data: its session fixtures take up to a minute each.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        if "/integration/" in file or Path(file).stem in RAY_IN_CHAOS:
            return "ray"
        return "data" if "/unit/data/" in file else file


@pytest.fixture(scope="session")
def busi() -> Path:
    """The folder of real images; read only."""
    if not BUSI.is_dir():
        pytest.skip(f"the real images (BUSI) are not here: no folder {BUSI}")
    return BUSI


@pytest.fixture(scope="session")
def one_creator_wins() -> Iterator[None]:
    """Let moto's servers create an object once, as S3 does.

    moto looks for the object and then writes it: of two creators at once both can win.
    """
    from moto.moto_server import threaded_moto_server as server

    lock = threading.Lock()

    class Application(server.DomainDispatcherApplication):
        def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
            with lock if "HTTP_IF_NONE_MATCH" in environ else nullcontext():
                return super().__call__(environ, start_response)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "DomainDispatcherApplication", Application)
        yield


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve simulated images per class of about 128 x 128 pixels, masks beside them; read only."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_dataset(folder, 12, seed=11, size=(128, 128))
    return folder


@pytest.fixture(scope="session", autouse=True)
def phantoms_drawn_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs with the same `dataset.phantoms` get copies of one folder: to draw it takes seconds."""

    @cache
    def drawn(images: int, seed: int, probe: Probe) -> Path:
        folder = tmp_path_factory.mktemp("phantoms")
        write_dataset(folder, images, seed, probe)
        return folder

    def copy(folder: Path, images: int, seed: int, probe: Probe) -> None:
        shutil.copytree(drawn(images, seed, probe), folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "write_dataset", copy)
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240)
