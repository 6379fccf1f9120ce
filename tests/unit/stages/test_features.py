"""Which images figures look at, and the figures, are the same however the corpus was cut into
shards."""

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from busray.evidence.distances import arm_figures
from busray.evidence.real import RealFeatures
from busray.identity import image_id
from busray.records import MOST_REPLICATES, Commit, Execution, Figure
from busray.run.pieces import ImageBlock, by_chance
from busray.stages import features as stage
from busray.storage import Store
from tests.support.workers import InProcessWorkers

CLASSES = ("benign", "malignant")
IMAGES = 400
REAL = 30
"""Images a class in each split."""


@pytest.fixture
def run() -> Any:
    """As much of a run as the sampling of features asks for."""
    classes = {name: SimpleNamespace(images=IMAGES) for name in CLASSES}
    config = SimpleNamespace(classes=classes, evaluate=SimpleNamespace(images=None))
    real = [SimpleNamespace(class_name=name) for name in CLASSES for _ in range(REAL)]
    return SimpleNamespace(config=config, dataset=SimpleNamespace(split=lambda name: real))


def pieces(store: Store, arm: str, shard_size: int, quarantined: tuple[int, ...] = ()) -> list[ImageBlock]:
    """An arm's features [IMAGES, 6] a class as stored shards: of an image they depend on class,
    index and arm."""
    found = []
    for number, name in enumerate(CLASSES):
        rng = np.random.default_rng(number)
        rows = (rng.standard_normal((IMAGES, 6)) + (0.5 if arm == "base" else 0.1) + number).astype(np.float32)
        for first in range(0, IMAGES, shard_size):
            indices = range(first, min(first + shard_size, IMAGES))
            kept = [i for i in indices if i not in quarantined]
            rejects = tuple((image_id("f" * 64, name, i), "why") for i in indices if i in quarantined)
            key = f"{arm}/{shard_size}/{name}-{first}.npy"
            path = Path(store.url) / key
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, rows[kept], allow_pickle=False)
            commit = Commit(name, first, len(indices), "", "", 0, len(kept), rejects, Execution("", "", 1, 1, {}), 0.0)
            found.append(ImageBlock(store, key, commit, images=len(kept)))
    return found


def sampled(run: Any, wanted: dict[str, list[ImageBlock]]) -> stage.Arms:
    return stage._read_arms(stage._chosen_rows(run, wanted))


def measured(run: Any, wanted: dict[str, list[ImageBlock]]) -> list[Figure]:
    draw = np.random.default_rng(9).standard_normal
    features = {
        split: {name: draw((REAL // 3, 6)).astype(np.float32) + i for i, name in enumerate(CLASSES)}
        for split in ("train", "val", "test")
    }
    units = {split: {name: np.arange(len(rows)) for name, rows in by.items()} for split, by in features.items()}
    return arm_figures(
        sampled(run, wanted), RealFeatures(features, units, "inception-v3-2015", "letterbox", 64), "test"
    )


def test_figures_do_not_depend_on_shards_or_their_order(run: Any, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    one = measured(run, {arm: pieces(store, arm, 400) for arm in ("base", "lora")})
    other = measured(run, {arm: pieces(store, arm, size)[::-1] for arm, size in (("base", 7), ("lora", 64))})
    assert len(one) == len(other) > 20
    for a, b in zip(one, other, strict=True):
        assert b.value == pytest.approx(a.value, rel=1e-9, abs=1e-12)
        assert replace(b, value=0.0, interval=None) == replace(a, value=0.0, interval=None)


@pytest.mark.parametrize("asked", [None, IMAGES])
def test_no_more_images_are_held_than_figures_look_at_and_rows_are_seed_paired(
    run: Any, tmp_path: Path, asked: int | None
) -> None:
    store = Store(str(tmp_path))
    run.config.evaluate.images = asked
    found = sampled(run, {"base": pieces(store, "base", 50), "lora": pieces(store, "lora", 50, (3, 17))})
    common = [i for i in range(asked or MOST_REPLICATES * REAL) if i not in (3, 17)]
    for number, name in enumerate(CLASSES):
        order = by_chance(name, common, MOST_REPLICATES * REAL)
        whole = np.random.default_rng(number).standard_normal((IMAGES, 6)) + number
        assert len(order) == min(len(common), MOST_REPLICATES * REAL) < IMAGES
        np.testing.assert_array_equal(found["base"][name], (whole + 0.5).astype(np.float32)[order])
        np.testing.assert_allclose(found["lora"][name], (whole + 0.1)[order], atol=1e-6)


def test_only_shards_with_a_chosen_image_are_extracted_and_one_listing_finds_the_stored_ones(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    wanted = {"base": pieces(store, "base", 10), "lora": pieces(store, "lora", 10)}
    there = wanted["base"][3]
    for block in (*wanted["base"], *wanted["lora"]):
        if block is not there:
            Path(store.url, block.key).rename(Path(store.url, block.key).with_suffix(".later"))
    extracted: list[str] = []

    def extract(run: Any, workers: Any, blocks: list[ImageBlock], name: str) -> None:
        extracted.extend(block.key for block in blocks)
        for block in blocks:
            Path(store.url, block.key).with_suffix(".later").rename(Path(store.url, block.key))

    monkeypatch.setattr(stage, "extract", extract)
    monkeypatch.setattr(stage, "missing_real_blocks", lambda *_: [])
    monkeypatch.setattr(stage, "real_features", lambda *_: None)
    monkeypatch.setattr("busray.storage.FEW_KEYS", 1)  # these objects are few, a corpus's are not
    monkeypatch.setattr(
        Store,
        "exists",
        lambda self, key: (
            pytest.fail(f"asked for {key} alone") if ".npy" in key and not key.startswith("digests/") else False
        ),
    )
    run.config.evaluate.images = 12  # of 400: those of the first two shards of ten
    stage.features(run, InProcessWorkers(), wanted, "x-1")
    assert sorted(extracted) == sorted(f"{arm}/10/{c}-{n}.npy" for arm in wanted for c in CLASSES for n in (0, 10))
    run.config.evaluate.images = 40
    extracted.clear()
    stage.features(run, InProcessWorkers(), wanted, "x-1")
    assert there.key not in extracted and len(extracted) == 7


def test_more_objects_than_readers_are_never_in_memory(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, live, most, lock = Store(str(tmp_path)), 0, 0, threading.Lock()
    read = stage._read_rows

    def counted(part: Any) -> np.ndarray:
        nonlocal live, most
        with lock:
            live += 1
            most = max(most, live)
        rows = read(part)
        assert len(rows) == len(part.rows)  # the rows alone are handed on
        with lock:
            live -= 1
        return rows

    monkeypatch.setattr(stage, "_read_rows", counted)
    sampled(run, {"base": pieces(store, "base", 5)})
    assert 1 <= most <= stage.READERS
