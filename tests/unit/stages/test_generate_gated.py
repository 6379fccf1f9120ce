"""A corpus through the class gate: redrawn, resumed, reproduced, measured before and after."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from busray.cli import main
from busray.config import Config
from busray.config_file import validate
from busray.corpus.arms import arm_sources
from busray.corpus.commit import read_commits, read_rows, rejected_first_draws
from busray.corpus.encode import png_pixels
from busray.corpus.verify import verify
from busray.evidence.study_design import Arm, study_arms
from busray.records import Figure, UserError
from busray.run.checks import open_run
from busray.run.pieces import synthetic_blocks
from busray.run.record import Run
from busray.stages import classifiers
from busray.stages import study as study_module
from busray.stages.classifiers import load_classifier, trained_classifier
from busray.stages.evaluate import evaluate
from busray.stages.features import features
from busray.stages.finetune import finetune
from busray.stages.generate import generate
from busray.stages.report import write_report
from busray.stages.study import study
from busray.vision import efficientnet
from busray.vision.classifier import probabilities
from tests.support.runs import quiet
from tests.support.workers import InProcessWorkers

pytestmark = pytest.mark.slow  # three minutes of drawing and training; `make slow` runs it
CLASSES = ("benign", "malignant")
IMAGES = 6
WORKERS = InProcessWorkers()


def judge() -> str | None:
    """Another architecture than the gate's, where its weights are."""
    try:
        efficientnet.find_weights()
    except UserError:
        return None
    return "efficientnet-lite0"


def settings(output: Path, **corpus: Any) -> Config:
    return validate(
        {
            "output": str(output),
            "dataset": {"phantoms": {"images": 12, "seed": 3}, "val": 0.2, "test": 0.3},
            "classes": {name: {"images": IMAGES, "token": f"<us-{name}>"} for name in CLASSES},
            "adapters": {"steps": 2, "batch_size": 2, "checkpoint_every": 2, "validate_every": 2},
            "sampling": {"steps": 2, "guidance_scale": 2.0, "batch_size": 4},
            "refine": {"steps": 4, "strength": 0.5, "guidance_scale": 2.0},
            "corpus": {"shard_size": 4, **corpus},
            "evaluate": {"arms": ["lora+ti", "lora+ti+refine"], "extractors": ["texture"], "judge": judge()},
            "cluster": {"threads": 1},
        }
    )


def pixels(run: Run, first_draws: bool = False) -> dict[tuple[str, int], np.ndarray]:
    """(class, index) -> image; of a gated corpus its first draws, if these are wanted."""
    found = {}
    for record in read_commits(run.store):
        for part in (record, rejected_first_draws(record) if first_draws else None):
            rows = read_rows(run.store, part).to_pylist() if part else []
            found |= {
                (row["class"], row["index"]): png_pixels(row["image"]["bytes"])
                for row in rows
                if not (first_draws and row["attempt"])
            }
    return found


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So that what is drawn again is the same to the pixel; and short trainings of gate and
    judge."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifiers, "STEPS", 40)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def ungated(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A corpus without a gate; read only."""
    run = open_run(settings(tmp_path_factory.mktemp("ungated") / "run"), quiet)
    finetune(run, WORKERS)
    generate(run, WORKERS)
    return run


@pytest.fixture(scope="module")
def gate(ungated: Run) -> dict[str, Any]:
    """A threshold that about half of one class's first draws do not reach, so that some pass
    later: none of these images shows its class, and no classifier of so few images would tell."""
    classifier = load_classifier(ungated.store, trained_classifier(ungated, WORKERS, "cnn"))
    drawn = pixels(ungated)
    medians = []
    for label, name in enumerate(CLASSES):
        images = np.stack([image for (of, _), image in drawn.items() if of == name])
        medians.append(float(np.median(probabilities(classifier, images)[:, label])))
    return {"architecture": "cnn", "threshold": min(medians), "attempts": 5}


@pytest.fixture(scope="module")
def gated(ungated: Run, gate: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The same settings with a gate: the same adapters, redraws until the budget is spent; read
    only."""
    output = tmp_path_factory.mktemp("gated") / "run"
    config = settings(output, gate=gate, max_quarantined=1.0)
    adapters = f"{ungated.store.url}/{finetune(ungated, WORKERS).folder}"
    config = validate({**config.model_dump(), "adapters": {**config.adapters.model_dump(), "path": adapters}})
    run = open_run(config, quiet)
    finetune(run, WORKERS)
    generate(run, WORKERS)
    yield run


def test_the_gates_classifier_saw_train_and_val_and_its_record_says_how_good_it_is(gated: Run) -> None:
    record = trained_classifier(gated, WORKERS, "cnn")
    assert record.images == {split: len(gated.dataset.split(split)) for split in ("train", "val", "test")}
    assert set(record.test) == {"all", *CLASSES} and len(record.trials) == 10
    identity = json.loads(gated.store.read("run.json"))["identity"]
    assert identity["gate"]["classifier"] == record.digest


def test_rejected_images_are_drawn_again_and_every_planned_one_is_accounted_for(
    gated: Run, gate: dict[str, Any]
) -> None:
    found = verify(gated.store)
    assert found.problems == () and found.committed + found.quarantined == found.planned == len(CLASSES) * IMAGES
    redrawn = [one for record in read_commits(gated.store) for one in record.redrawn]
    assert any(one.kept for one in redrawn), "a test of nothing: no redraw passed"
    for one in redrawn:
        assert max(one.rejected) < gate["threshold"]
        assert one.kept == len(one.rejected) if one.kept else len(one.rejected) == gate["attempts"]
    reasons = [reason for record in read_commits(gated.store) for _, reason in record.rejects]
    assert all(reason.startswith("class gate: 5 draws rejected") for reason in reasons)


def test_first_draws_are_those_of_the_corpus_without_a_gate(gated: Run, ungated: Run) -> None:
    before, plain = pixels(gated, first_draws=True), pixels(ungated)
    assert before.keys() == plain.keys()
    for key, image in plain.items():
        np.testing.assert_array_equal(before[key], image)
    after = pixels(gated)
    assert any((after[key] != plain[key]).any() for key in after)


def test_a_redrawn_image_is_made_again_to_the_pixel(gated: Run, capsys: pytest.CaptureFixture) -> None:
    redrawn = [one for record in read_commits(gated.store) for one in record.redrawn if one.kept]
    assert main(["reproduce", gated.config.output, redrawn[-1].image_id]) == 0
    assert "every pixel matches" in capsys.readouterr().out


def test_a_resumed_gated_corpus_equals_the_undisturbed_one(gated: Run, tmp_path: Path) -> None:
    shutil.copytree(gated.store.url, tmp_path / "run")
    config = validate({**gated.config.model_dump(), "output": str(tmp_path / "run")})
    run = open_run(config, quiet)
    lost = next(record for record in read_commits(run.store) if record.redrawn)
    run.store.delete(f"commits/{lost.class_name}/{lost.shard.name}.json")
    run.store.delete(lost.object)
    assert generate(run, WORKERS) == generate(gated, WORKERS)
    assert list(run.store.list("data")) == list(gated.store.list("data"))
    assert list(run.store.list("first-draws")) == list(gated.store.list("first-draws"))


def test_first_draws_are_measured_as_without_a_gate(gated: Run, ungated: Run) -> None:
    def measured(run: Run) -> dict[str, dict[str, np.ndarray]]:
        return features(run, WORKERS, synthetic_blocks(run, arm_sources(run.config), "texture-1"), "texture-1")[0]

    before, plain = measured(gated), measured(ungated)
    assert before.keys() == plain.keys() == {"lora+ti", "lora+ti+refine"}
    for arm, by_class in plain.items():
        for name, rows in by_class.items():
            np.testing.assert_array_equal(before[arm][name], rows)


def test_distances_and_nearness_are_there_before_and_after_the_gate(gated: Run) -> None:
    figures = evaluate(gated, WORKERS)

    def values(found: list[Figure], metric: str) -> dict[str, float]:
        return {f.arm: f.value for f in found if (f.metric, f.class_name) == (metric, "all")}

    for metric in ("fd-texture", "kd-texture", "nearest_train_distance"):
        assert "lora+ti+refine" in values(figures, metric) and "lora+ti+refine+gate" in values(figures, metric)
    before = values(figures, "fd-texture")
    assert before["lora+ti+refine+gate"] != before["lora+ti+refine"]
    passed = values(figures, "gate_acceptance")["lora+ti+refine"]
    assert 0 < passed < 1 and "real" in values(figures, "gate_accuracy")
    if gated.config.evaluate.judge:
        consistency = [f for f in figures if f.metric == "class_consistency" and f.class_name == "all"]
        assert {(f.arm, f.protocol) for f in consistency} == {
            ("lora+ti", "first-draw"),
            ("lora+ti+refine", "first-draw"),
            ("lora+ti+refine+gate", "after-gate"),
        }
        assert all(f.n == len(CLASSES) * IMAGES for f in consistency if f.protocol == "first-draw")
    write_report(gated, figures)
    page = gated.store.read("report.html").decode()
    assert "<h3>Class gate</h3>" in page
    classes = json.loads(gated.store.read("report.json"))["gate"]["classes"]
    assert sum(counts["planned"] for counts in classes.values()) == len(CLASSES) * IMAGES


# ---- downstream study ----

RATIO = 0.7


def opened_for_study(run: Run, output: Path, **changes: Any) -> Run:
    """A copy of a run that is read only, set to train each arm twice for ten steps."""
    shutil.copytree(run.store.url, output)
    primary = {"metric": "macro_f1", "arm": f"mixed@{RATIO}"}
    settings = {"primary": primary, "ratios": [RATIO], "seeds": 2, "steps": 10, "batch_size": 4, **changes}
    config = validate({**run.config.model_dump(), "output": str(output), "study": settings})
    return open_run(config, quiet, measures=False)


def trainings(run: Run) -> dict[str, Any]:
    """arm-number -> what its record says, but not how long it took."""
    keys = [key for key in run.store.list("study") if key.count("/") == 2 and not key.endswith("/identity.json")]
    return {Path(key).stem: {**json.loads(run.store.read(key)), "seconds": 0} for key in keys}


def test_a_study_trains_on_first_draws_too_as_one_of_the_corpus_without_a_gate_does(
    gated: Run, ungated: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = opened_for_study(gated, tmp_path / "gated")
    figures, sentences = study(run, WORKERS)
    found = trainings(run)

    def mixture_alone(ratios: Any, gated: bool) -> list[Arm]:
        return [arm for arm in study_arms(ratios, gated) if arm.name in ("real", f"mixed@{RATIO}")]

    monkeypatch.setattr(study_module, "study_arms", mixture_alone)
    plain = opened_for_study(ungated, tmp_path / "ungated")
    study(plain, WORKERS)
    without = trainings(plain)
    assert not any(name.startswith("ungated") for name in without)
    for i in range(2):
        mixed, first = found[f"mixed@{RATIO}-{i:02d}"], found[f"ungated@{RATIO}-{i:02d}"]
        assert {**first, "arm": mixed["arm"]} == without[f"mixed@{RATIO}-{i:02d}"], "not on the first draws"
        assert mixed["fed"] == first["fed"] and mixed["seed"] == first["seed"]
        assert mixed["trials"] != first["trials"], "a test of nothing: no training met an image that the gate changed"
    pairs = {(f.arm, f.against) for f in figures if f.metric == "macro_f1_difference"}
    assert {(f"mixed@{RATIO}", f"ungated@{RATIO}"), (f"ungated@{RATIO}", "real")} <= pairs
    assert any(sentence.startswith("The class gate's part") for sentence in sentences)
    rows = run.store.read("study.csv").decode()
    assert f"ungated@{RATIO}" in rows and f"ungated@{RATIO}" not in plain.store.read("study.csv").decode()


def test_a_study_takes_the_first_planned_images_as_they_were_drawn_and_as_they_were_released(
    gated: Run, ungated: Run
) -> None:
    wanted = dict.fromkeys(CLASSES, IMAGES - 1)
    plain = pixels(ungated)
    firsts = study_module._synthetic(gated.store, "first draws", wanted)
    np.testing.assert_array_equal(firsts.pixels, [plain[name, i] for name in CLASSES for i in range(IMAGES - 1)])
    kept = pixels(gated)
    passed = [sorted(index for of, index in kept if of == name)[: IMAGES - 1] for name in CLASSES]
    released = study_module._synthetic(gated.store, "released", wanted)
    np.testing.assert_array_equal(
        released.pixels, [kept[name, i] for name, indices in zip(CLASSES, passed) for i in indices]
    )
    assert len(released.pixels) < len(firsts.pixels) or (released.pixels != firsts.pixels).any(), "a test of nothing"


def test_a_study_needs_as_many_first_draws_as_released_images(
    gated: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = opened_for_study(gated, tmp_path / "run")
    monkeypatch.setattr(study_module, "count_first_draws", lambda commit: 1)
    with pytest.raises(UserError, match="the corpus has 2 first draws: lower the ratios"):
        study(run, WORKERS)
    assert not list(run.store.list("study"))
