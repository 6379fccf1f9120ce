"""Figures without annotated images are of every arm that the others are of, or the run says why there are none."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from busray.corpus.commit import commit_shard
from busray.corpus.manifest import publish_manifest
from busray.corpus.plan import extend_plan, read_segments
from busray.evidence.real import RealFeatures
from busray.layout import CHECK
from busray.records import INCEPTION, Shard, Stopped
from busray.run.record import Run
from busray.stages import evaluate
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
        evaluate=SimpleNamespace(reference=reference, judge=None, geometry=False),
        adapters=SimpleNamespace(method="lora"),
        refine=None,
        corpus=SimpleNamespace(gate=None),
    )
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
    found = evaluate.Drawn(drawn, gated, [("lora", "lora+gate")], real)
    monkeypatch.setattr(evaluate, "_before_and_after", lambda run, extractor: found)
    monkeypatch.setattr(evaluate, "_class_figures", lambda run: [])
    clean = [f for f in evaluate.evaluate(run) if f.reference == "test-clean"]
    assert {f.arm for f in clean if f.metric == "fd-x"} == {"base", "lora", "lora+gate"}
    assert {f.arm for f in clean if f.metric == "kd-x_difference"} == {"lora - base", "lora+gate - lora"}


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
        evaluate._before_and_after_gate(run, InProcessWorkers(), INCEPTION)
