"""The examples do what they say, on a run of an older busray and, slowly, on the embedded base."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.paths import ROOT
from tests.support.pinned_run import unpack


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(unpack(tmp_path_factory.mktemp("pinned")).url)


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_own_metric_compares_every_class_of_the_corpus_with_real_images(finished: Path) -> None:
    (real,) = finished.glob("phantoms-*")
    means = example("own_metric").main(finished, real)
    assert set(means) == {"benign", "malignant"}
    assert all(synthetic > 0 and true > 0 for synthetic, true in means.values())


def test_own_prompts_are_a_valid_config_with_the_old_adapters(finished: Path, tmp_path: Path) -> None:
    import busray

    module = example("own_prompts")
    config = busray.read_config(module.new_config(finished, tmp_path / "new"))
    assert config.classes["benign"].prompts == tuple(module.PROMPTS["benign"])
    assert config.adapters.path and (Path(config.adapters.path) / "adapter.json").is_file()
    assert config.output == str(tmp_path / "new")


def test_a_classifier_learns_from_the_corpus(finished: Path) -> None:
    network, losses = example("train_classifier").main(finished, epochs=8)
    assert losses[-1] < losses[0]
    assert sum(p.numel() for p in network.parameters()) > 1000


def cells() -> list[str]:
    notebook = json.loads((ROOT / "examples" / "busray.ipynb").read_text())
    assert notebook["nbformat"] == 4
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebooks_cells_are_python_and_hold_no_output() -> None:
    notebook = json.loads((ROOT / "examples" / "busray.ipynb").read_text())
    for source in cells():
        compile(source, "cell", "exec")
    assert all(cell["outputs"] == [] for cell in notebook["cells"] if cell["cell_type"] == "code")


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom_on_the_embedded_base() -> None:
    import shutil

    first, *others = cells()
    names: dict[str, Any] = {}
    exec(first, names)
    names["SETTINGS"] = {"adapters.steps": 4, "images": 4, "sampling.steps": 2}
    try:
        for source in others:
            exec(source, names)
        assert all(not result.problems for result in names["results"].values())
        assert len(names["rows"]) == 12 and names["sheet"].getbbox() is not None
    finally:
        shutil.rmtree(names["FOLDER"])
