"""A classifier is found again in whatever order a config names the classes."""

import json
from pathlib import Path
from typing import Any

import pytest

from busray.config_file import validate
from busray.layout import CONFIG
from busray.run.checks import open_run
from busray.run.record import Run
from busray.stages.classifiers import classifier_record

WRITTEN = ("normal", "benign", "malignant")


def opened(output: Path, folder: Path, names: tuple[str, ...] = WRITTEN) -> Run:
    tree: dict[str, Any] = {
        "output": str(output),
        "dataset": {"path": str(folder), "test": 0.3},
        "classes": {name: {"images": 4} for name in names},
        "base": {"size": 64},
        "corpus": {"gate": {"architecture": "cnn"}},
        "evaluate": {"judge": None},
        "study": {"primary": {"metric": "accuracy", "arm": "mixed@0.5"}},
    }
    return open_run(validate(tree), lambda *_: None, measures=False)


def test_the_classifier_of_a_run_is_found_by_its_stored_config(
    tmp_path: Path, phantom_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = opened(tmp_path / "run", phantom_folder)
    asked: list[str] = []
    monkeypatch.setattr(type(run.store), "read_record_or_none", lambda _, key, parse: asked.append(key))
    classifier_record(run, "cnn")
    monkeypatch.undo()
    stored = validate(json.loads(run.store.read(CONFIG)))  # as `busray reproduce` opens it
    again = open_run(stored, lambda *_: None, measures=False)
    monkeypatch.setattr(type(run.store), "read_record_or_none", lambda _, key, parse: asked.append(key))
    classifier_record(again, "cnn")
    assert len(asked) == 2 and asked[0] == asked[1]
