"""Which images figures look at, and the figures, are the same however the corpus was cut into
shards."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from busray.evidence.distances import arm_figures
from busray.evidence.real import RealFeatures
from busray.evidence.stats.frechet import MOST_REPLICATES
from busray.identity import image_id
from busray.records import Commit, Execution, Figure
from busray.run.pieces import ImageBlock, by_chance
from busray.stages.features import _paired
from busray.storage import Store

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


def measured(run: Any, wanted: dict[str, list[ImageBlock]]) -> list[Figure]:
    draw = np.random.default_rng(9).standard_normal
    features = {
        split: {name: draw((REAL // 3, 6)).astype(np.float32) + i for i, name in enumerate(CLASSES)}
        for split in ("train", "val", "test")
    }
    units = {split: {name: np.arange(len(rows)) for name, rows in by.items()} for split, by in features.items()}
    return arm_figures(
        _paired(run, wanted), RealFeatures(features, units, "inception-v3-2015", "letterbox", 64), "test"
    )


def test_figures_do_not_depend_on_shards_or_their_order(run: Any, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    one = measured(run, {arm: pieces(store, arm, 400) for arm in ("base", "lora")})
    other = measured(run, {arm: pieces(store, arm, size)[::-1] for arm, size in (("base", 7), ("lora", 64))})
    assert len(one) == len(other) > 20
    for a, b in zip(one, other, strict=True):
        assert b.value == pytest.approx(a.value, rel=1e-9, abs=1e-12)
        assert replace(b, value=0.0, interval=None) == replace(a, value=0.0, interval=None)


def test_no_more_images_are_held_than_figures_look_at_and_rows_are_seed_paired(run: Any, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    found = _paired(run, {"base": pieces(store, "base", 50), "lora": pieces(store, "lora", 50, (3, 17))})
    common = [i for i in range(IMAGES) if i not in (3, 17)]
    for number, name in enumerate(CLASSES):
        order = by_chance(name, common, MOST_REPLICATES * REAL)
        whole = np.random.default_rng(number).standard_normal((IMAGES, 6)) + number
        assert len(order) == MOST_REPLICATES * REAL < IMAGES
        np.testing.assert_array_equal(found["base"][name], (whole + 0.5).astype(np.float32)[order])
        np.testing.assert_allclose(found["lora"][name], (whole + 0.1)[order], atol=1e-6)
