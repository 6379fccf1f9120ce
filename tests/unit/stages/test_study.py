"""The downstream study of a finished run: declared, small, resumable, and closed to leaks."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from busray.cli import main
from busray.config import Config
from busray.config_file import validate
from busray.data.phantom import write_dataset
from busray.evidence.study_design import Arm
from busray.layout import study_key
from busray.records import Figure, SourceImage, UserError, to_json
from busray.run.checks import open_run
from busray.run.record import Run
from busray.stages import study as module
from busray.stages.finetune import finetune
from busray.stages.generate import generate
from busray.stages.study import ArmSeed, StudyJob, _declare, _outcome, study
from busray.storage import Store
from busray.vision.classifier import Training
from tests.support.runs import quiet
from tests.support.workers import InProcessWorkers

ARMS = ["real", "synthetic@0.5", "mixed@0.5", "pretrained@0.5", "real+classical", "real+balanced", "real+repeated@0.5"]
SEEDS = 2


def settings(output: Path, **changes: Any) -> Config:
    """Two classes of twelve real and four synthetic images; trainings of ten steps."""
    tree: dict[str, Any] = {
        "output": str(output),
        "base": {"size": 64},
        "dataset": {"phantoms": {"images": 12, "seed": 3}, "val": 0.2, "test": 0.3},
        "classes": {name: {"images": 4, "token": f"<us-{name}>"} for name in ("benign", "malignant")},
        "adapters": {"steps": 2, "batch_size": 2, "checkpoint_every": 2, "validate_every": 2},
        "sampling": {"steps": 2, "guidance_scale": 2.0, "batch_size": 4},
        "refine": None,
        "corpus": {"shard_size": 3},
        "evaluate": {"arms": ["base", "lora+ti"]},
        "study": {
            "primary": {"metric": "macro_f1", "arm": "mixed@0.5"},
            "ratios": [0.5],
            "seeds": SEEDS,
            "steps": 10,
            "batch_size": 4,
        },
        "cluster": {"threads": 1},
    }
    for key, value in changes.items():
        tree[key] = {**tree[key], **value}
    return validate(tree)


def opened(output: Path, **changes: Any) -> Run:
    return open_run(settings(output, **changes), quiet, measures=False)


def run_study(run: Run) -> tuple[list[Figure], list[str]]:
    return study(run, InProcessWorkers())


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with adapters and a corpus; read only."""
    output = tmp_path_factory.mktemp("drawn") / "run"
    run = opened(output)
    finetune(run, InProcessWorkers())
    generate(run, InProcessWorkers())
    return output


@pytest.fixture(scope="module")
def studied(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Figure], list[str]]:
    """That run with its study; read only."""
    output = tmp_path_factory.mktemp("studied") / "run"
    shutil.copytree(drawn, output)
    return output, *run_study(opened(output))


@pytest.fixture
def copy(studied: tuple[Path, list[Figure], list[str]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(studied[0], tmp_path / "run"))


def records(output: Path) -> dict[str, Any]:
    files = sorted(path for path in (output / "study").glob("*/*.json") if path.name != "identity.json")
    return {path.stem: json.loads(path.read_bytes()) for path in files}


def no_training(*arguments: Any) -> None:
    raise AssertionError("a training was started")


def test_every_training_is_a_record_with_what_it_was_fed_and_all_it_tried(studied: Any) -> None:
    found = records(studied[0])
    assert sorted(found) == sorted(f"{arm}-{i:02d}" for arm in ARMS for i in range(SEEDS))
    mixed, real = found["mixed@0.5-00"], found["real-00"]
    assert mixed["fed"][0]["synthetic"] > 0 and mixed["fed"][0]["real"] == real["fed"][0]["real"]
    assert found["synthetic@0.5-00"]["fed"][0]["real"] == 0
    assert mixed["seed"] == real["seed"] != found["real-01"]["seed"]
    assert all(record["trials"][-1]["step"] == 10 and len(record["trials"]) == 10 for record in found.values())
    assert mixed["probabilities"]["test"] != real["probabilities"]["test"]


def test_figures_are_the_records_and_stand_in_the_csv_with_all_their_fields(studied: Any) -> None:
    output, figures, _ = studied
    run = opened(output)
    labels = [list(run.config.classes).index(image.class_name) for image in run.dataset.test]
    right = [
        np.mean(np.argmax(records(output)[f"real-{i:02d}"]["probabilities"]["test"], axis=1) == labels)
        for i in range(SEEDS)
    ]
    (accuracy,) = [f for f in figures if (f.metric, f.arm, f.class_name) == ("accuracy", "real", "all")]
    assert accuracy.value == pytest.approx(np.mean(right))
    assert (accuracy.reference, accuracy.protocol, accuracy.extractor) == ("test", "single-split", "cnn")
    rows = list(csv.DictReader(io.StringIO((output / "study.csv").read_text())))
    fields = figures[0].to_dict().keys() - {"interval"} | {"interval_low", "interval_high"}
    assert len(rows) == len(figures) and rows[0].keys() == fields
    assert float(rows[0]["value"]) == figures[0].value


def test_one_comparison_is_primary_and_all_others_are_corrected(studied: Any) -> None:
    _, figures, sentences = studied
    primary = [f for f in figures if f.metric.endswith("_p_value")]
    found = [(f.metric, f.arm, f.against) for f in primary]
    assert found == [("macro_f1_difference_p_value", "mixed@0.5", "real")]
    per_arm = 3 + 2  # accuracy, macro F1, AUC; recall of two classes
    assert sum(f.metric.endswith("_p_holm") for f in figures) == (len(ARMS) - 1) * per_arm - 1
    assert not any(f.metric == "recall_detectable" for f in figures)  # a class has fewer than 6 test images
    assert "Primary comparison" in sentences[0] and any(s.startswith("Single split") for s in sentences)


def test_a_rerun_trains_nothing_and_says_the_same(copy: Path, studied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_train", no_training)
    figures, sentences = run_study(opened(copy))
    assert (figures, sentences) == studied[1:]


def test_a_lost_training_alone_is_done_again_and_comes_out_the_same(copy: Path, studied: Any) -> None:
    (lost,) = (copy / "study").glob("*/mixed@0.5-01.json")
    before = json.loads(lost.read_bytes())
    kept = {path: path.stat().st_mtime_ns for path in (copy / "study").glob("*/*.json") if path != lost}
    lost.unlink()
    assert run_study(opened(copy)) == studied[1:]
    after = json.loads(lost.read_bytes())
    assert {**after, "seconds": 0} == {**before, "seconds": 0}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_the_primary_cannot_change_once_it_was_declared(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_train", no_training)
    with pytest.raises(UserError, match=r"study.primary.metric: 'macro_f1' there, 'auc' now"):
        run_study(opened(copy, study={"primary": {"metric": "auc", "arm": "mixed@0.5"}}))


@pytest.fixture
def two_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies train these alone."""
    two = [arm for arm in module.study_arms([0.5], False) if arm.name in ("real", "mixed@0.5")]
    monkeypatch.setattr(module, "study_arms", lambda ratios, gated: two)


def test_every_configuration_tried_is_listed(copy: Path, two_arms: None) -> None:
    run_study(opened(copy, study={"steps": 20, "seeds": 2}))
    tried = json.loads((copy / "study.json").read_bytes())["tried"]
    assert sorted((t["training"]["steps"], t["trainings"]) for t in tried) == [(10, 14), (20, 4)]


def test_an_external_set_of_one_class_is_tested_on_and_never_trained_on(
    copy: Path, two_arms: None, tmp_path: Path
) -> None:
    write_dataset(tmp_path / "elsewhere", 4, seed=77)
    shutil.rmtree(tmp_path / "elsewhere" / "malignant")
    figures, _ = run_study(opened(copy, study={"external": str(tmp_path / "elsewhere"), "ratios": [0.5]}))
    outside = [f for f in figures if f.reference == "external"]
    assert {f.class_name for f in outside} == {"all", "benign"} and not any(f.metric == "auc" for f in outside)
    assert next(f for f in outside if f.metric == "accuracy").n_reference == 4
    inside = {
        (f.metric, f.arm, f.against, f.class_name): f.value
        for f in figures
        if f.reference == "test" and "p_" not in f.metric
    }
    old = {
        (f.metric, f.arm, f.against, f.class_name): f.value for f in run_study(opened(copy))[0] if "p_" not in f.metric
    }
    assert inside == old


# ---- mistakes and leaks ----


@pytest.fixture
def untouched(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run without a study, in which no training may start."""
    monkeypatch.setattr(module, "_train", no_training)
    return Path(shutil.copytree(drawn, tmp_path / "untouched"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"primary": None}, "study.primary: declare"),
        ({"primary": {"metric": "auc", "arm": "mixed@3"}}, "study.primary.arm: no arm 'mixed@3'"),
        ({"primary": {"metric": "auc", "arm": "real"}}, "the same arm"),
        ({"ratios": [0.5, 5]}, "study.ratios: 5 needs"),
        ({"external": "/no/such/folder"}, "no folder /no/such/folder"),
    ],
)
def test_a_mistake_ends_before_anything_is_trained_or_written(untouched: Path, changes: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        run_study(opened(untouched, study=changes))
    assert not (untouched / "study").exists()


def test_planted_leaks_are_refused(untouched: Path) -> None:
    run = opened(untouched)
    held, taken = run.dataset.test[0].file, run.dataset.train[0].file
    check = json.loads((untouched / "check.json").read_bytes())
    linked = {**check, "near_duplicates": [*check["near_duplicates"], [held, taken]]}
    run.store.replace_checked("check.json", to_json(linked))
    with pytest.raises(UserError, match="near-duplicates in common"):
        run_study(run)
    run.store.replace_checked("check.json", to_json(check))
    adapters = json.loads((untouched / "adapters.json").read_bytes())
    run.store.replace_checked("adapters.json", to_json({**adapters, "dataset_hash": "0" * 64}))
    with pytest.raises(UserError, match="carries the split hash 0000"):
        run_study(run)


def test_an_external_set_of_our_own_images_is_refused(untouched: Path) -> None:
    (folder,) = untouched.glob("phantoms-*")
    with pytest.raises(UserError, match="is, or is nearly, the data set's"):
        run_study(opened(untouched, study={"external": str(folder)}))


def test_a_run_without_a_corpus_is_told_what_to_do_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_train", no_training)
    config = tmp_path / "config.yaml"
    tree = settings(tmp_path / "run").model_dump(mode="json")
    config.write_text(json.dumps(tree))  # JSON is YAML
    assert main(["study", str(config)]) == 2
    assert "run `busray run` or `busray generate` first" in capsys.readouterr().err


# ---- the declaration ----


IDENTITY = "i" * 64
PRIMARY = {"metric": "macro_f1", "arm": "mixed@0.5", "against": "real"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


def declare(store: Store, **changes: Any) -> None:
    study = {"primary": PRIMARY, "ratios": [0.5, 1.0], "seeds": 5, **changes}
    config = validate({"dataset": {"phantoms": {}}, "classes": {"benign": {"images": 4}}, "study": study})
    _declare(store, config.study, {}, IDENTITY)


def train(store: Store) -> None:
    store.put_once(study_key(IDENTITY, "real", 0), to_json({}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seeds": 10}, "study.seeds: 5 there, 10 now"),
        ({"ratios": [0.5]}, r"study.ratios: \[0.5, 1.0\] there, \[0.5\] now"),
        ({"ratios": [0.5, 1.0, 2.0]}, r"study.ratios: \[0.5, 1.0\] there, \[0.5, 1.0, 2.0\] now"),
        ({"primary": {**PRIMARY, "metric": "auc"}}, "study.primary.metric: 'macro_f1' there, 'auc' now"),
    ],
)
def test_another_design_than_the_declared_one_is_refused_and_that_one_may_run_again(
    store: Store, changes: dict[str, Any], says: str
) -> None:
    declare(store)
    train(store)
    with pytest.raises(UserError, match=f"{says}.*take the declared values back, or give another output"):
        declare(store, **changes)
    declare(store, ratios=[1.0, 0.5])  # in whatever order


def test_trainings_of_a_study_that_declared_nothing_are_not_gone_on_with(store: Store) -> None:
    train(store)
    with pytest.raises(UserError, match=r"study.ratios, study.seeds: .* did not declare them.*give another output"):
        declare(store)


# ---- the order in which a config names its classes ----

WRITTEN = ("normal", "benign", "malignant")


def of_classes(output: Path, folder: Path, names: tuple[str, ...]) -> Run:
    tree: dict[str, Any] = {
        "output": str(output),
        "dataset": {"path": str(folder), "test": 0.3},
        "classes": {name: {"images": 4} for name in names},
        "base": {"size": 64},
        "study": {"primary": {"metric": "accuracy", "arm": "mixed@0.5"}},
    }
    return open_run(validate(tree), quiet, measures=False)


@pytest.mark.parametrize("now", [WRITTEN, ("malignant", "benign", "normal")])
def test_a_trainings_columns_are_read_by_the_classes_in_its_record(
    tmp_path: Path, phantom_folder: Path, now: tuple[str, ...]
) -> None:
    run = of_classes(tmp_path / "run", phantom_folder, now)
    arm, training = Arm("real", ()), Training("cnn", 10, 4, (0.01,))
    job = StudyJob(run.store, "0" * 64, training, tuple(run.config.classes), 1)
    for number, order in enumerate((WRITTEN, tuple(sorted(WRITTEN)))):
        record = {
            "arm": arm.name,
            "number": number,
            "seed": number,
            "fed": [],
            "chosen": {},
            "trials": [],
            "classes": order,
            "probabilities": {"test": [perfect(image, order) for image in run.dataset.test]},
            "seconds": 1.0,
        }
        run.store.put_once(study_key(job.identity, arm.name, number), to_json(record))
    outcome = _outcome(run, job, [ArmSeed(arm, 0), ArmSeed(arm, 1)], None)
    guessed = outcome.probabilities["test"][arm.name].argmax(2)
    assert guessed.shape == (2, len(run.dataset.test))
    np.testing.assert_array_equal(guessed, [outcome.labels["test"]] * 2)


def perfect(image: SourceImage, order: tuple[str, ...]) -> list[float]:
    return [float(image.class_name == name) for name in order]
