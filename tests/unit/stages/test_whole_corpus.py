"""The distance of the whole corpus is that of one pass, however it was cut, grown or stopped."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from busray.corpus.damage import find_damage
from busray.corpus.features import put_array
from busray.corpus.repair import move_aside
from busray.evidence.distances import WHOLE_CORPUS, whole_corpus_figures
from busray.evidence.real import RealFeatures
from busray.evidence.stats import frechet as stats
from busray.evidence.stats.frechet import Moments, frechet
from busray.identity import fingerprint
from busray.layout import CONFIG, features_key
from busray.records import CLASS_ALL, INCEPTION, Damaged, Shard, Stopped
from busray.stages import whole_corpus as stage
from busray.storage import Store
from busray.vision import texture
from tests.support.workers import InProcessWorkers

D = 12
CLASSES = ("benign", "malignant")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "BLOCK_IMAGES", 50)
    monkeypatch.setattr(stage, "MERGED_AT_ONCE", 3)
    monkeypatch.setattr(stats, "ROWS_AT_ONCE", 30)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "run"))
    store.put_checked(CONFIG, b"{}")
    return store


def rows(name: str, n: int) -> np.ndarray:
    rng = np.random.default_rng(len(name))
    return np.abs(rng.standard_normal((n, D)) * np.logspace(0, -3, D) + 0.1 * len(name)).astype(np.float32)


def corpus(store: Store, images: dict[str, int], shard: int, extractor: str = INCEPTION) -> list[stage.MomentsBlock]:
    """Stored features of a corpus, in blocks."""
    blocks = []
    for name, n in images.items():
        shards = []
        for at in range(0, n, shard):
            part = rows(name, n)[at : at + shard]
            digest = fingerprint([name, at, len(part)])
            put_array(store, features_key(digest, "image", extractor), part)
            shards.append((digest, len(part)))
        blocks += stage.moments_blocks(store, extractor, name, shards)
    return blocks


class Counting(InProcessWorkers):
    """Workers that know how many images they took moments of."""

    def __init__(self) -> None:
        super().__init__()
        self.images = 0

    def map(self, stage: str, total: int, start: Any, items: Any, kind: Any) -> None:
        self.images += total
        super().map(stage, total, start, items, kind)


@pytest.mark.parametrize("shard", [1, 7, 64, 1000])
def test_it_is_the_number_of_one_pass_in_any_cut(store: Store, shard: int) -> None:
    images = {"benign": 330, "malignant": 45}
    moments = stage.moments_of_all(InProcessWorkers(), corpus(store, images, shard))
    one_pass = {name: Moments.of(rows(name, n)) for name, n in images.items()}
    one_pass[CLASS_ALL] = Moments.of(np.concatenate([rows(name, n) for name, n in images.items()]))
    reference = Moments.of(rows("x", 40))
    assert moments.keys() == one_pass.keys()
    for name, expected in one_pass.items():
        assert moments[name].n == expected.n
        np.testing.assert_allclose(moments[name].mean, expected.mean, rtol=1e-12)
        assert frechet(moments[name], reference) == pytest.approx(frechet(expected, reference), rel=1e-9)


def test_it_is_torch_fidelitys_number_to_1e_5(store: Store) -> None:
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    moments = stage.moments_of_all(InProcessWorkers(), corpus(store, {"benign": 400}, 32))
    a, b = rows("benign", 400), rows("x", 300)
    sides = [fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    theirs = fid_statistics_to_metric(sides[0], sides[1], False)
    ours = frechet(moments["benign"], Moments.of(b))
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)


def test_a_grown_corpus_costs_its_new_shards_and_one_unfinished_block(store: Store) -> None:
    first = Counting()
    stage.moments_of_all(first, corpus(store, {"benign": 320}, 10))
    assert first.images == 300  # the last 20 images fill no block, so theirs are not kept
    assert len(list(store.list("moments"))) == 6
    again = Counting()
    stage.moments_of_all(again, corpus(store, {"benign": 320}, 10))
    assert again.images == 0
    grown = Counting()
    # The rows of a longer corpus begin with those of the shorter one.
    assert (rows("benign", 420)[:320] == rows("benign", 320)).all()
    moments = stage.moments_of_all(grown, corpus(store, {"benign": 420}, 10))
    assert grown.images == 100 and moments["benign"].n == 420
    expected = Moments.of(rows("benign", 420))
    np.testing.assert_allclose(moments["benign"].mean, expected.mean, rtol=1e-12)


class Dying(InProcessWorkers):
    """Workers that are lost after the first item."""

    def map(self, stage: str, total: int, start: Any, items: Any, kind: Any) -> None:
        super().map(stage, total, start, items[:1], kind)
        raise Stopped("the cluster is gone")


def test_a_stopped_command_goes_on_from_the_moments_that_it_kept(store: Store) -> None:
    blocks = corpus(store, {"benign": 230}, 10)
    with pytest.raises(Stopped):
        stage.moments_of_all(Dying(), blocks)
    again = Counting()
    moments = stage.moments_of_all(again, blocks)
    assert again.images == 150
    expected = Moments.of(rows("benign", 230))
    np.testing.assert_allclose(moments["benign"].mean, expected.mean, rtol=1e-12)


def test_blocks_follow_the_shards_and_only_full_ones_have_a_key(store: Store) -> None:
    blocks = stage.moments_blocks(store, "x-1", "benign", [("a", 30), ("b", 30), ("c", 49), ("d", 1), ("e", 5)])
    assert [block.images for block in blocks] == [60, 50, 5]
    assert [bool(block.key) for block in blocks] == [True, True, False]
    keys = {block.key for block in blocks}
    assert stage.moments_blocks(store, "x-1", "benign", [("a", 30), ("B", 30)])[0].key not in keys


def test_the_driver_gets_moments_and_no_features(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that workers hand on is as large as moments, whatever the number of images."""
    sizes = []
    share: Any = stage._merge

    def merge(beat: Any, nodes: Any) -> np.ndarray:
        result = share(beat, nodes)
        sizes.append(result.shape)
        return result

    monkeypatch.setattr(stage, "_merge", merge)
    stage.moments_of_all(InProcessWorkers(), corpus(store, {"benign": 900, "malignant": 90}, 30))
    assert set(sizes) == {(2 + D + D * (D + 1) // 2,)}
    assert len(sizes) >= 10


def test_damaged_moments_are_not_used_and_are_computed_again_after_repair(store: Store) -> None:
    blocks = corpus(store, {"benign": 200}, 10)
    before = stage.moments_of_all(InProcessWorkers(), blocks)
    (key, *others) = store.list("moments")
    path = Path(store.url) / key
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(Damaged, match="moments"):
        stage.moments_of_all(InProcessWorkers(), blocks)
    found = find_damage(store, None)
    assert [damage.key for damage in found.damages if damage.key.startswith("moments")] == [key]
    assert "busray evaluate" in next(damage.then for damage in found.damages if damage.key == key)
    move_aside(store, [damage for damage in found.damages if damage.key == key])
    assert sorted(store.list("moments")) == sorted(others)
    workers = Counting()
    after = stage.moments_of_all(workers, blocks)
    assert workers.images == 50
    np.testing.assert_array_equal(after["benign"].packed(), before["benign"].packed())


def test_lost_moments_are_found(store: Store) -> None:
    stage.moments_of_all(InProcessWorkers(), corpus(store, {"benign": 100}, 10))
    key = next(iter(store.list("moments")))
    (Path(store.url) / key).unlink()
    assert key in [damage.key for damage in find_damage(store, None).damages]


def real_images() -> RealFeatures:
    features = {split: {name: rows(name + split, 20) for name in CLASSES} for split in ("train", "val", "test")}
    units: Any = {split: {name: np.arange(20) for name in CLASSES} for split in features}
    return RealFeatures(features, units, INCEPTION, "letterbox", 64)


def test_figures_say_their_n_and_stand_for_each_class_and_all() -> None:
    real = real_images()
    of_class = {name: Moments.of(rows(name, n)) for name, n in (("benign", 300), ("malignant", 100))}
    moments = {**of_class, CLASS_ALL: Moments.merged(of_class.values())}
    figures = whole_corpus_figures(moments, real, "test", "lora")
    assert {(f.metric, f.class_name): (f.n, f.n_reference) for f in figures} == {
        (metric, name): n
        for metric in ("fid", "fid_means")
        for name, n in {"all": (400, 40), "benign": (300, 20), "malignant": (100, 20)}.items()
    }
    assert {(f.protocol, f.arm, f.interval, f.floor) for f in figures} == {(WHOLE_CORPUS, "lora", None, False)}
    benign = next(f for f in figures if (f.metric, f.class_name) == ("fid_means", "benign"))
    step = rows("benign", 300).astype(float).mean(0) - rows("benigntest", 20).astype(float).mean(0)
    assert benign.value == pytest.approx((step**2).sum())


def test_a_class_with_too_few_images_has_no_figure_of_its_own() -> None:
    of_class = {"benign": Moments.of(rows("benign", 300)), "malignant": Moments.of(rows("malignant", 2))}
    moments = {**of_class, CLASS_ALL: Moments.merged(of_class.values())}
    figures = whole_corpus_figures(moments, real_images(), "test", "lora")
    assert {f.class_name for f in figures} == {CLASS_ALL, "benign"}


@pytest.mark.parametrize("extractor", [INCEPTION, texture.NAME])
def test_missing_features_are_extracted_and_texture_is_scaled_by_the_training_images(
    store: Store, monkeypatch: pytest.MonkeyPatch, extractor: str
) -> None:
    real = real_images()
    images = {"benign": 130, "malignant": 20}
    published: dict[Shard, dict[str, Any]] = {}
    for name, n in images.items():
        for at in range(0, n, 10):
            published[Shard(name, at, 10)] = {"digest": fingerprint([name, at, 10]), "rows": 10}
    extracted: list[str] = []

    def extract(run: Any, workers: Any, blocks: Any, name: str) -> None:
        extracted.extend(block.key for block in blocks)
        corpus(store, images, 10, extractor)

    def commit(store: Store, shard: Shard) -> Any:
        return SimpleNamespace(digest=published[shard]["digest"], rows=10, class_name=shard.class_name)

    monkeypatch.setattr(stage, "published_rows", lambda store: published)
    monkeypatch.setattr(stage, "read_commit", commit)
    monkeypatch.setattr(stage, "missing_real_blocks", lambda *_: [])
    monkeypatch.setattr(stage, "real_features", lambda *_: real)
    monkeypatch.setattr(stage, "extract", extract)
    monkeypatch.setattr(stage, "arm_after_gate", lambda config: "lora+gate")
    run: Any = SimpleNamespace(store=store, config=SimpleNamespace(evaluate=SimpleNamespace(reference="test")))
    figures = stage.evaluate_whole_corpus(run, InProcessWorkers(), extractor)
    assert len(extracted) == len(published) and len(set(extracted)) == len(extracted)
    side, reference = {"x": {name: rows(name, n) for name, n in images.items()}}, real.features
    if extractor == texture.NAME:
        side, reference = texture.standardised(side, reference)
    expected = frechet(Moments.of(side["x"]["benign"]), Moments.of(reference["test"]["benign"]))
    found = next(f for f in figures if f.class_name == "benign" and not f.metric.endswith("_means"))
    assert found.value == pytest.approx(expected, rel=1e-9)
    extracted.clear()
    assert stage.evaluate_whole_corpus(run, InProcessWorkers(), extractor) == figures
    assert extracted == []
