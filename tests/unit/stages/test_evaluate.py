"""Which images the figures compare: without annotated ones, and before and after the class gate."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from busray.corpus.commit import commit_shard
from busray.corpus.manifest import publish_manifest
from busray.corpus.plan import extend_plan, read_segments
from busray.evidence.classes import GATE, GateCounts
from busray.evidence.real import RealFeatures
from busray.identity import image_id
from busray.layout import CHECK
from busray.records import (
    MOST_REPLICATES,
    ClassifierRecord,
    Commit,
    Execution,
    Interval,
    Recall,
    Shard,
    Stopped,
    to_json,
)
from busray.run.pieces import ImageBlock, by_chance
from busray.run.record import Run
from busray.stages import evaluate
from busray.stages import features as features_stage
from busray.stages import report as report_stage
from busray.storage import Store
from tests.support.corpora import EXECUTION, commit_black
from tests.support.workers import InProcessWorkers

CLASSES = ("b", "m")
SIZES = {"train": 12, "val": 4, "test": 8}


def run_with(store: Store, annotated: list[str], reference: str = "test") -> Any:
    """A run whose images are `<split> <class> <number>`; in the annotated ones text was found."""
    store.replace(CHECK, json.dumps({"annotations": [{"file": file} for file in annotated]}).encode())
    images = {
        split: [
            SimpleNamespace(file=f"{split} {c} {i}", unit=f"{split} {c} {i}", class_name=c, sha256=f"{split}{c}{i}")
            for c in CLASSES
            for i in range(n)
        ]
        for split, n in SIZES.items()
    }
    config = SimpleNamespace(
        classes={c: SimpleNamespace(images=9) for c in CLASSES},
        evaluate=SimpleNamespace(reference=reference, judge=None, geometry=False, whole_corpus=False, images=None),
        adapters=SimpleNamespace(method="lora"),
        refine=None,
        corpus=SimpleNamespace(gate=None),
        dataset=SimpleNamespace(phantoms=None),
    )
    images["all"] = [image for split in images.values() for image in split]
    dataset = SimpleNamespace(split=lambda name: images[name], frame="letterbox", size=64)
    return SimpleNamespace(config=config, store=store, dataset=dataset, extractors={"x-1": None}, tell=lambda *_: None)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


def test_what_a_gate_let_pass_has_figures_on_the_clean_test_images_too(
    store: Store, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    run = run_with(store, ["test b 0"])
    features = {split: {c: rng.normal(size=(n, 4)) for c in CLASSES} for split, n in SIZES.items()}
    units = {split: {c: np.arange(n) for c in CLASSES} for split, n in SIZES.items()}
    drawn = {arm: {c: rng.normal(size=(9, 4)) for c in CLASSES} for arm in ("base", "lora", "lora+gate")}
    gated = {"lora+gate": drawn.pop("lora+gate")}
    real = RealFeatures(features, units, "x-1", "letterbox", 64)
    found = evaluate.GateComparison(drawn, gated, [("lora", "lora+gate")], real)
    monkeypatch.setattr(evaluate, "_before_and_after_gate", lambda run, workers, extractor: found)
    monkeypatch.setattr(evaluate, "_class_figures", lambda run, workers: [])
    monkeypatch.setattr(evaluate, "_extract_missing", lambda run, workers: None)
    clean = [f for f in evaluate.evaluate(run, InProcessWorkers()) if f.reference == "test-clean"]
    assert {f.arm for f in clean if f.metric == "fd-x" and not f.floor} == {"base", "lora", "lora+gate"}
    compared = {(f.arm, f.against) for f in clean if f.metric == "kd-x_difference"}
    assert compared == {("lora", "base"), ("lora+gate", "lora")}


def test_a_run_says_why_it_has_no_figures_on_clean_images(store: Store) -> None:
    annotated = [f"test m {i}" for i in range(6)]
    (said,) = [line for line in report_stage.report_sentences(run_with(store, annotated), []) if "burned-in" in line]
    assert "there are 2 of m in test." in said


@pytest.mark.parametrize(("annotated", "reference"), [([], "test"), (["test m 0"], "test"), (["test m 0"] * 6, "val")])
def test_a_run_gives_no_reason_where_there_are_such_figures_or_none_would_be(
    store: Store, annotated: list[str], reference: str
) -> None:
    assert evaluate.no_clean_figures_sentences(run_with(store, annotated, reference)) == []


def test_a_class_that_was_quarantined_ends_the_figures_with_its_reason(run: Run) -> None:
    arm = run.store.sub("arms/base")
    extend_plan(arm, {"benign": 6, "malignant": 6}, 6)
    commit_black(arm, Shard("benign", 0, 6))
    rejects = [(f"f-malignant-{i:08d}", "latents or pixels are not finite") for i in range(6)]
    commit_shard(arm, Shard("malignant", 0, 6), [], rejects, {"fingerprint": "f" * 64}, EXECUTION, "parquet", 1.0)
    publish_manifest(arm, read_segments(arm))
    with pytest.raises(Stopped, match=r"0 images of malignant.*quarantined \(latents or pixels are not finite\)"):
        evaluate.evaluate(run, InProcessWorkers())


def test_clean_images_are_those_that_the_check_found_nothing_in(tmp_path: Path) -> None:
    names = ("benign", "malignant")
    images = [SimpleNamespace(file=f"{name}/{i}.png", class_name=name, sha256="") for name in names for i in range(3)]
    dataset = SimpleNamespace(size=64, frame="letterbox", split=lambda name: images if name == "test" else images[:1])
    store = Store(str(tmp_path))
    store.replace(CHECK, to_json({"annotations": [{"file": "malignant/1.png", "found": ["text"]}]}))
    config = SimpleNamespace(classes={name: None for name in names})
    clean: Any = evaluate._clean(SimpleNamespace(store=store, dataset=dataset, config=config))  # pyright: ignore
    assert {name: kept.tolist() for name, kept in clean["test"].items()} == {
        "benign": [True] * 3,
        "malignant": [True, False, True],
    }
    assert clean["train"]["benign"].tolist() == [True]


def test_a_gate_whose_record_was_lost_is_trained_again_for_its_figures(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, trained = run_with(store, []), []
    run.config.corpus.gate = SimpleNamespace(architecture="cnn")
    test = {"all": Recall(0.8, Interval(0.6, 0.9), 20)}
    images = {"train": 50, "val": 10, "test": 20}
    record = ClassifierRecord("cnn", "", ("b", "m"), {}, 0, {}, (), images, test, "key", "d" * 64)

    def train(_run: Run, _workers: Any, architecture: str) -> ClassifierRecord:
        trained.append(architecture)
        return record

    monkeypatch.setattr(evaluate, "trained_classifier", train)
    monkeypatch.setattr(evaluate, "class_gate_counts", lambda _run: {"b": GateCounts(20, 16, 2, 1, 25)})
    figures = evaluate._class_figures(run, InProcessWorkers())  # pyright: ignore[reportPrivateUsage]
    assert trained == ["cnn"]
    assert [f.value for f in figures if f.metric == GATE] == [0.8]


GATED_IMAGES, GATED_REAL = 100, 3
"""More than MOST times the real ones, so that both sides hold equally many images whatever is
missing."""


def gated_block(store: Store, key: str, missing: tuple[int, ...]) -> ImageBlock:
    """A shard of class b without the images that spent their budget; an image's feature is its
    index."""
    kept = [i for i in range(GATED_IMAGES) if i not in missing]
    rejects = tuple((image_id("f" * 64, "b", i), "why") for i in missing)
    np.save(Path(store.url) / key, np.array(kept, np.float32)[:, None])
    commit = Commit("b", 0, GATED_IMAGES, "", "", 0, len(kept), rejects, Execution("", "", 1, 1, {}), 0.0)
    return ImageBlock(store, key, commit, images=len(kept))


@pytest.mark.parametrize(("spent", "paired"), [((), True), ("held", False), ("beyond", True)])
def test_the_gate_is_seed_paired_where_the_same_images_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spent: Any, paired: bool
) -> None:
    held = by_chance("b", range(GATED_IMAGES), MOST_REPLICATES * GATED_REAL)
    missing = {"held": (held[4],), "beyond": (next(i for i in range(GATED_IMAGES) if i not in held),), (): ()}[spent]
    drawn = compared_with_gate(Store(str(tmp_path)), monkeypatch, missing)
    before, after = drawn.arms["lora"]["b"], drawn.gated["lora+gate"]["b"]
    assert len(before) == len(after) == MOST_REPLICATES * GATED_REAL
    assert np.array_equal(before, after) == paired
    assert drawn.pairs == ([("lora", "lora+gate")] if paired else [])


@pytest.mark.parametrize(("passed", "compared"), [(0, False), (2, False), (3, True)])
def test_nothing_is_compared_after_a_gate_that_let_too_few_images_of_a_class_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passed: int, compared: bool
) -> None:
    missing = tuple(range(passed, GATED_IMAGES))
    drawn = compared_with_gate(Store(str(tmp_path)), monkeypatch, missing)
    assert len(drawn.arms["lora"]["b"]) == MOST_REPLICATES * GATED_REAL
    assert bool(drawn.gated) == compared and drawn.pairs == []


def compared_with_gate(store: Store, monkeypatch: pytest.MonkeyPatch, missing: tuple[int, ...]) -> Any:
    """What is compared of a run whose gate gave the missing images up."""
    found = {"lora": gated_block(store, "before.npy", ()), "lora+gate": gated_block(store, "after.npy", missing)}
    corpus = SimpleNamespace(gate=object(), keep_txt2img=False)
    config = SimpleNamespace(
        classes={"b": SimpleNamespace(images=GATED_IMAGES)},
        evaluate=SimpleNamespace(images=GATED_IMAGES, arms=["lora"]),
        adapters=SimpleNamespace(method="lora"),
        refine=None,
        corpus=corpus,
    )
    real = SimpleNamespace(
        split=lambda name: [SimpleNamespace(class_name="b")] * GATED_REAL, frame="letterbox", size=64
    )
    run: Any = SimpleNamespace(config=config, dataset=real, store=store)
    monkeypatch.setattr(evaluate, "synthetic_blocks", lambda run, sources, name: {arm: [found[arm]] for arm in sources})
    monkeypatch.setattr(features_stage, "real_blocks", lambda run, name: [])
    return evaluate._before_and_after_gate(run, InProcessWorkers(), "inception-v3-2015")  # pyright: ignore[reportPrivateUsage]
