"""Every kind of object of a finished run, damaged in every way: `verify --evidence` names it, and
`repair` moves it aside or says why it cannot."""

import io
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from busray.cli import main
from busray.corpus.damage import array_of, find_damage
from busray.corpus.manifest import published_rows
from busray.corpus.repair import move_aside
from busray.corpus.verify import verify
from busray.layout import CONFIG, MANIFEST
from busray.records import Damaged
from busray.run.pieces import load_array
from busray.storage import Store, in_threads
from tests.support.fake_corpus import draw, everything
from tests.support.pinned_run import keep_digests, unpack

KINDS = {
    "settings": r"config\.json",
    "base": r"base\.json",
    "data set": r"dataset\.json",
    "check": r"check\.json",
    "masks": r"masks\.json",
    "identity": r"run\.json",
    "identity of an arm": r"arms/base/run\.json",
    "first segment": r"plan/0000\.json",
    "last segment": r"plan/0001\.json",
    "segment of an arm": r"arms/base/plan/0001\.json",
    "commit": r"commits/benign/.*",
    "commit of an arm": r"arms/base/commits/benign/.*",
    "shard": r"data/benign/.*",
    "shard of an arm": r"arms/base/data/malignant/.*",
    "first draws": r"first-draws/benign/.*",
    "manifest": r"manifest\.parquet",
    "manifest of an arm": r"arms/base/manifest\.parquet",
    "adapters' record": r"adapters\.json",
    "LoRA": r"adapters/.*/pytorch_lora_weights\.safetensors",
    "token": r"adapters/.*/us-benign\.safetensors",
    "adapters' own record": r"adapters/.*/adapter\.json",
    "classifier's record": r"classifiers/[0-9a-f]{16}\.json",
    "classifier": r"classifiers/.*\.safetensors",
    "segmenter's record": r"segmenters/[0-9a-f]{16}\.json",
    "segmenter": r"segmenters/.*\.safetensors",
    "features": r"features/texture-1/.*-image\.npy",
    "features of an arm": r"arms/base/features/inception.*-image\.npy",
    "features of real images": r"features/.*-real-train-benign\.npy",
    "features by the judge": r"features/judge-.*-image\.npy",
    "report": r"report\.json",
    "geometry": r"geometry\.json",
    "timings": r"timings\.json",
    "real image": r"phantoms-.*/benign/benign \(1\)\.png",
    "mask": r"phantoms-.*/malignant/malignant \(1\)_mask\.png",
}
"""Kind of object -> pattern of its keys; the first one is damaged."""

NOT_MENDED = {"real image", "mask"}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def delete(path: Path) -> None:
    path.unlink()


def folder(path: Path) -> None:
    """A folder stands in the object's place."""
    path.unlink()
    path.mkdir()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A finished run with digests. A test that changes it puts it back."""
    store = unpack(tmp_path_factory.mktemp("pinned") / "run")
    seen = set()
    for key in list(store.list("features")) + list(store.list("arms/base/features")):
        kind = re.sub("[0-9a-f]{32}", "", key)
        if kind in seen or "-real-val-" in key or "-real-test-" in key:
            store.delete(key)  # many of a kind, and each costs time
        seen.add(kind)
    keep_digests(store)
    return store


def first(store: Store, kind: str) -> str:
    return next(key for key in store.list() if re.fullmatch(KINDS[kind], key))


@pytest.fixture
def damaged(run: Store, request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """(kind, key) of the object that is damaged for the length of the test."""
    kind, damage = request.param
    key = first(run, kind)
    path = Path(run.url) / key
    data = path.read_bytes()
    damage(path)
    yield kind, key
    if path.is_dir():
        path.rmdir()
    path.write_bytes(data)


def images(store: Store) -> Path:
    return next(Path(store.url).glob("phantoms-*"))


def test_a_sound_run_has_no_damage_and_everything_is_covered(run: Store) -> None:
    found = find_damage(run, images(run))
    assert (found.damages, found.uncovered, found.notes) == ([], [], [])
    assert found.compared > 90


DAMAGES: dict[str, Callable[[Path], None]] = {"flip": flip, "cut": cut, "delete": delete}
ALL = [pytest.param((kind, do), id=f"{name} {kind}") for kind in KINDS for name, do in DAMAGES.items()]
ALL += [pytest.param((kind, empty), id=f"empty {kind}") for kind in ("commit", "shard", "features", "manifest")]
REPLACED = ("settings", "data set", "identity of an arm", "first segment", "commit", "shard", "manifest of an arm")
REPLACED += ("LoRA", "adapters' own record", "classifier", "features", "mask")
ALL += [pytest.param((kind, folder), id=f"folder {kind}") for kind in REPLACED]


@pytest.mark.parametrize("damaged", ALL, indirect=True)
def test_each_damage_is_found_named_and_mended_or_said_to_be_for_good(run: Store, damaged: tuple[str, str]) -> None:
    kind, key = damaged
    found = find_damage(run, images(run))
    assert found.damages, "not found"
    # A shard is told by its record.
    words = [f"{damage.key} {damage.reason} {' '.join(damage.aside)}" for damage in found.damages]
    mine = [i for i, text in enumerate(words) if key in text]
    assert mine, words
    told = found.damages[mine[0]]
    assert told.then
    assert told.mendable == (kind not in NOT_MENDED)
    if kind not in ("shard", *NOT_MENDED) and (Path(run.url) / key).exists():
        assert key in told.aside


@pytest.mark.parametrize("damaged", [("features", flip), ("commit", cut)], indirect=True, ids=["features", "commit"])
def test_the_commands_name_it_and_end_with_status_1(
    run: Store, damaged: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    _, key = damaged
    assert main(["verify", run.url, "--evidence"]) == 1
    told = capsys.readouterr().out
    assert key in told and f"busray repair {run.url}" in told
    assert main(["repair", run.url]) == 1
    told = capsys.readouterr().out
    assert key in told and "nothing was changed" in told and "--apply" in told
    assert (Path(run.url) / key).exists() and not (Path(run.url) / "damaged").exists()


@pytest.mark.parametrize("damaged", [("manifest", cut), ("manifest", delete)], indirect=True, ids=["cut", "deleted"])
def test_a_lost_manifest_is_made_again_from_the_records_and_never_an_empty_corpus(
    run: Store, damaged: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sum(row["count"] for row in published_rows(run).values()) == 12
    assert main(["card", run.url]) == 0
    assert "busray repair" not in capsys.readouterr().out


def test_an_older_run_without_digests_is_sound_and_said_to_be_not_covered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = unpack(tmp_path / "run")
    assert main(["verify", store.url, "--evidence"]) == 0
    assert "not covered: 121 objects" in capsys.readouterr().out
    cut(Path(store.url) / first(store, "features"))
    assert main(["verify", store.url, "--evidence"]) == 1
    assert "cannot be read" in capsys.readouterr().out


def test_leftovers_of_operating_systems_in_a_run_are_no_objects(run: Store) -> None:
    keys = list(run.list())
    left = [
        Path(run.url) / name for name in (".DS_Store", "commits/.DS_Store", "commits/benign/._x.json", "data/Thumbs.db")
    ]
    for path in left:
        path.write_bytes(b"left")
    try:
        assert list(run.list()) == keys
        assert find_damage(run, images(run)).damages == []
        assert main(["verify", run.url]) == 0
    finally:
        for path in left:
            path.unlink()


@pytest.mark.parametrize("damaged", [("features", flip), ("features", empty)], indirect=True, ids=["flip", "empty"])
def test_damaged_features_give_no_figure(run: Store, damaged: tuple[str, str]) -> None:
    """Four flipped bytes once changed 22 of 51 figures, with exit status 0."""
    _, key = damaged
    with pytest.raises(Damaged, match=f"{key} is damaged"):
        load_array(run, key)


def test_a_digest_that_is_lost_is_told(run: Store) -> None:
    key = first(run, "features")
    (digest,) = run.list(f"digests/{key}")
    data = run.read(digest)
    run.delete(digest)
    try:
        (damage,) = find_damage(run, images(run)).damages
        assert damage.key == key and "digest is lost" in damage.reason
    finally:
        run.put_once(digest, data)


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY", b"PK\x03\x04", b"text"])
def test_bytes_that_are_no_array_are_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        array_of(data)


def test_the_manifest_is_published_again_by_repair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = unpack(tmp_path / "run")
    before = store.read(MANIFEST)
    (Path(store.url) / MANIFEST).write_bytes(b"torn")
    assert main(["repair", store.url, "--apply"]) == 0
    assert main(["verify", store.url, "--evidence"]) == 0
    assert published_rows(store) and len(store.read(MANIFEST)) == len(before)
    kept = [key for key in store.list("damaged") if key.endswith(MANIFEST)]
    assert [store.read(key) for key in kept] == [b"torn"]


@pytest.mark.parametrize("format", ["parquet", "png"])
@pytest.mark.parametrize("kind", ["data", "commits", "manifest.parquet"])
@pytest.mark.parametrize("damage", [flip, cut, delete])
def test_what_repair_moved_aside_is_drawn_again_with_the_same_digests(
    tmp_path: Path, kind: str, format: str, damage: Callable[[Path], None]
) -> None:
    store = Store(str(tmp_path / "run"))
    digest = draw(store, format=format)
    before = everything(store)
    key = next(key for key in before if key.startswith(kind))
    damage(Path(store.url) / key)
    moved = move_aside(store, find_damage(store, None).damages)
    assert key in dict(moved) or damage is delete
    assert draw(store, format=format) == digest
    after = everything(store)
    assert {key: data for key, data in after.items() if not key.startswith("damaged/")} == before
    assert verify(store).problems == ()


def test_a_sub_run_of_an_ablation_is_read_and_mended_too(store_of_ablation: Store) -> None:
    store = store_of_ablation
    assert find_damage(store, None).damages == []
    sub_run = store.sub("points/strength=0.5")
    (key, *_) = sub_run.list("data")
    flip(Path(sub_run.url) / key)
    delete(Path(sub_run.url) / MANIFEST)
    found = find_damage(store, None)
    assert {damage.key.split("/")[0] for damage in found.damages} == {"points"}
    moved = dict(move_aside(store, found.damages))
    assert moved[f"points/strength=0.5/{key}"].startswith("damaged/")
    draw(sub_run)
    assert find_damage(store, None).damages == []


@pytest.fixture
def store_of_ablation(tmp_path: Path) -> Store:
    """A run with one sub-run."""
    store = Store(str(tmp_path / "run"))
    for one in (store, store.sub("points/strength=0.5")):
        one.put_checked(CONFIG, b"{}")
        draw(one)
    return store


def test_threads_never_parse_the_headers_of_two_arrays_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most = 0, 0
    load = np.load

    def watched(*arguments: Any, **options: Any) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        threading.Event().wait(0.002)  # long enough for another thread to come in
        try:
            return load(*arguments, **options)
        finally:
            inside -= 1

    monkeypatch.setattr("busray.corpus.damage.np.load", watched)
    buffer = io.BytesIO()
    np.save(buffer, np.arange(3))
    arrays = list(in_threads(lambda _: array_of(buffer.getvalue()), range(16), 8))
    assert most == 1 and all(array.tolist() == [0, 1, 2] for array in arrays)
