"""The order in which a config names its classes is no input: classifiers are found again, and columns stay theirs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from busray.config_file import validate
from busray.evidence.study_design import Arm
from busray.layout import CONFIG, study_key
from busray.records import SourceImage, to_json
from busray.run.checks import open_run
from busray.run.record import Run
from busray.stages.classifiers import classifier_record
from busray.stages.study import Job, Task, _outcome
from busray.vision.classifier import Training

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
    return open_run(validate(tree), lambda *_: None, needs_inception=False)


def test_the_classifier_of_a_run_is_found_by_its_stored_config(
    tmp_path: Path, phantom_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = opened(tmp_path / "run", phantom_folder)
    asked: list[str] = []
    monkeypatch.setattr(type(run.store), "read_or_none", lambda _, key: asked.append(key))
    classifier_record(run, "cnn")
    monkeypatch.undo()
    stored = validate(json.loads(run.store.read(CONFIG)))  # as `busray reproduce` opens it
    again = open_run(stored, lambda *_: None, needs_inception=False)
    monkeypatch.setattr(type(run.store), "read_or_none", lambda _, key: asked.append(key))
    classifier_record(again, "cnn")
    assert len(asked) == 2 and asked[0] == asked[1]


@pytest.mark.parametrize("now", [WRITTEN, ("malignant", "benign", "normal")])
def test_a_trainings_columns_are_read_by_the_classes_in_its_record(
    tmp_path: Path, phantom_folder: Path, now: tuple[str, ...]
) -> None:
    run = opened(tmp_path / "run", phantom_folder, now)
    arm, training = Arm("real", ()), Training("cnn", 10, 4, (0.01,))
    job = Job(run.store, "0" * 64, training, tuple(run.config.classes), 1, 1)
    for number, order in enumerate((WRITTEN, tuple(sorted(WRITTEN)))):
        record = {
            "arm": arm.name,
            "fed": [],
            "classes": order,
            "probabilities": {"test": [perfect(image, order) for image in run.dataset.test]},
            "seconds": 1.0,
        }
        run.store.put_once(study_key(job.identity, arm.name, number), to_json(record))
    outcome = _outcome(run, job, [Task(arm, 0), Task(arm, 1)], None)
    guessed = outcome.probabilities["test"][arm.name].argmax(2)
    assert guessed.shape == (2, len(run.dataset.test))
    np.testing.assert_array_equal(guessed, [outcome.labels["test"]] * 2)


def perfect(image: SourceImage, order: tuple[str, ...]) -> list[float]:
    return [float(image.class_name == name) for name in order]
