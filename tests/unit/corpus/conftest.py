"""An empty store for tests of corpora."""

from pathlib import Path

import pytest

from busray.storage import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))
