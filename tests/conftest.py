"""What several test files stand on: the real images where they are, a small simulated folder, hand-made images."""

from pathlib import Path

import numpy as np
import pytest

from busray.data.phantom import write_dataset

ROOT = Path(__file__).parents[1]
BUSI = ROOT.parent / "shared" / "data" / "busi"


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
