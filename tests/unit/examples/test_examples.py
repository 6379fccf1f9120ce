"""The examples of README run as they are, on a corpus that busray wrote."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from busray.stages.export import export_run
from busray.storage import Store
from tests.support.paths import ROOT
from tests.support.released import RELEASED, finish
from tests.support.runs import quiet


def printed(example: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, ROOT / "examples" / example, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]
    return done.stdout


@pytest.mark.slow  # a process that imports torch and torchvision
def test_six_lines_of_pytorch_read_an_export(tmp_path: Path) -> None:
    run = finish(Store(str(tmp_path / "run")))
    export_run(run.store, run.config, Store(str(tmp_path / "corpus")), "imagefolder", 0, quiet)
    text = printed("read_with_pytorch.py", tmp_path / "corpus")
    assert text.startswith("(8, 1, 16, 16) [")
    assert sum(text.count(f"'{name}'") for name in ("benign", "malignant", "normal")) == RELEASED


@pytest.mark.skipif(find_spec("datasets") is None, reason="datasets is not installed; `make readers` has it")
def test_six_lines_of_datasets_read_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    finish(Store(str(tmp_path / "run")))
    assert "(16, 16) benign ultrasound" in printed("read_with_datasets.py", tmp_path / "run")


def test_an_example_is_six_lines() -> None:
    for file in (ROOT / "examples").glob("read_with_*.py"):
        lines = [line for line in file.read_text().splitlines()[1:] if line and not line.startswith(("import", "from"))]
        assert len(lines) <= 6, file.name
