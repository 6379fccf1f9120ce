"""What several test files stand on: the real images where they are, a small simulated folder, hand-made images."""

from pathlib import Path

import numpy as np
import pytest

from busray.data.phantom import write_dataset

ROOT = Path(__file__).parents[1]
BUSI = ROOT.parent / "shared" / "data" / "busi"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """How `make test` spreads tests over processes: what starts Ray on one, since two of its heads on a machine meet
    each other's; of the rest a file at a time."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            group = "ray" if "integration" in item.path.parts else str(item.path)
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group").args[0] != "ray")  # the longest first


@pytest.fixture(scope="session")
def busi() -> Path:
    """The folder of real images; read only."""
    if not BUSI.is_dir():
        pytest.skip(f"the real images (BUSI) are not here: no folder {BUSI}")
    return BUSI


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve simulated images a class of about 128 x 128 pixels, masks beside them; read only."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_dataset(folder, 12, seed=11, size=(128, 128))
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240)
