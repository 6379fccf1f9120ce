"""What several test files stand on: the real images where they are, a small simulated folder, hand-made images."""

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from xdist.scheduler import LoadFileScheduling

from busray.data.phantom import write_dataset
from tests.support.paths import SHARED

BUSI = SHARED / "data" / "busi"
RAY_IN_CHAOS = ("test_driver_death", "test_million", "test_nodes", "test_secure_defaults", "test_submit")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> "RayOnOneProcess":
    return RayOnOneProcess(config, log)


class RayOnOneProcess(LoadFileScheduling):
    """How `make test` spreads tests over processes: a file at a time, but all that start Ray one after the other on one
    process, so that one Ray at a time shares the cores: its tests of what hangs have time limits."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return "ray" if "/integration/" in file or Path(file).stem in RAY_IN_CHAOS else file


@pytest.fixture(scope="session")
def busi() -> Path:
    """The folder of real images; read only."""
    if not BUSI.is_dir():
        pytest.skip(f"the real images (BUSI) are not here: no folder {BUSI}")
    return BUSI


@pytest.fixture(scope="session")
def one_creator_wins() -> Iterator[None]:
    """For every moto server: it looks whether an object is there and then writes it, so that of creators at once two
    can win; S3 lets one."""
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
    """Twelve simulated images a class of about 128 x 128 pixels, masks beside them; read only."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_dataset(folder, 12, seed=11, size=(128, 128))
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240)
