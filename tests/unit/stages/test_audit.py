"""A corpus with one copy of a training image fails the audit; one without passes. Also: what is
sampled and read."""

import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from busray.cli import main
from busray.config_file import validate
from busray.corpus.commit import commit_shard, read_commits, read_rows
from busray.corpus.encode import Row
from busray.data.phantom import PROBES, phantom
from busray.layout import features_key
from busray.records import ContentBox, ImageSpec, Shard
from busray.run.checks import open_run
from busray.run.record import Run
from busray.stages import audit as module
from busray.storage import Store
from tests.support.corpora import EXECUTION, with_settings
from tests.support.runs import quiet
from tests.support.workers import InProcessWorkers, commands_in_process

CLASSES, SHARDS, EACH = ("benign", "malignant"), 5, 8
REJECTED = 3
"""Index of the one image, a benign one, that was quarantined."""


def level(class_name: str, index: int) -> int:
    """The grey level that all of an image's content has."""
    return 100 * CLASSES.index(class_name) + index + 1


@pytest.fixture
def store(tmp_path: Any) -> Store:
    """Two classes of five shards of eight images 10 x 8 in a square of 10."""
    store = Store(str(tmp_path / "run"))
    for name in CLASSES:
        for first in range(0, SHARDS * EACH, EACH):
            rows, rejects = [], []
            for i in range(first, first + EACH):
                image = np.zeros((10, 10), np.uint8)
                image[1:9] = level(name, i)
                if (name, i) == ("benign", REJECTED):
                    rejects.append((f"f-{name}-{i:08d}", "not finite"))
                else:
                    spec = ImageSpec(f"f-{name}-{i:08d}", name, i, 0, "", i, i, ContentBox(0, 1, 10, 8))
                    rows.append(Row(spec, image))
            shard = Shard(name, first, EACH)
            commit_shard(store, shard, rows, rejects, {"fingerprint": "f" * 64}, EXECUTION, "parquet", 1.0)
    return store


def lowest_hashes(k: int) -> list[tuple[str, int]]:
    """The k images that are there with the lowest SHA-256 of what their ids end in."""
    there = [(name, i) for name in CLASSES for i in range(SHARDS * EACH) if (name, i) != ("benign", REJECTED)]
    return sorted(there, key=lambda one: hashlib.sha256(f"{one[0]}-{one[1]:08d}".encode()).digest())[:k]


@pytest.mark.parametrize("k", [4, 20, 200])
def test_near_duplicates_are_looked_for_among_images_of_all_shards_by_their_hashes(
    store: Store, monkeypatch: pytest.MonkeyPatch, k: int
) -> None:
    monkeypatch.setattr(module, "SAMPLED_IMAGES", k)
    compared: list[np.ndarray] = []
    monkeypatch.setattr(module, "aligned_pairs", lambda smalls: compared.extend(smalls) or [])
    assert module._near_duplicates_inside(store, read_commits(store)) == (0, min(k, 79))
    wanted = lowest_hashes(k)
    assert all(len(np.unique(small.pixels)) == 1 for small in compared)
    assert sorted(int(small.pixels[0, 0]) for small in compared) == sorted(level(*one) for one in wanted)
    if k == 20:
        assert {name for name, _ in wanted} == set(CLASSES) and len({(c, i // EACH) for c, i in wanted}) > 5


def test_no_shard_is_read_that_has_no_sampled_image(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLED_IMAGES", 4)
    read: list[tuple[str, int]] = []

    def counted(store: Store, commit: Any, columns: Any = None) -> Any:
        read.append((commit.class_name, commit.first))
        return read_rows(store, commit, columns)

    monkeypatch.setattr(module, "read_rows", counted)
    module._near_duplicates_inside(store, read_commits(store))
    assert sorted(read) == sorted({(name, i // EACH * EACH) for name, i in lowest_hashes(4)})


# ---- whole audits ----

RUN_SHARDS, RUN_EACH = 2, 5


def opened(folder: Path) -> Run:
    """A checked data set and no corpus yet; texture in place of Inception, for time's sake."""
    tree = {
        "output": str(folder / "run"),
        "dataset": {"phantoms": {"images": 20, "seed": 3}, "val": 0.2, "test": 0.3},
        "classes": {name: {"images": RUN_SHARDS * RUN_EACH, "token": f"<us-{name}>"} for name in CLASSES},
        "evaluate": {"extractors": ["texture"]},
        "cluster": {"threads": 1},
    }
    return open_run(validate(tree), quiet)


@pytest.fixture(scope="module", autouse=True)
def few_planted_copies() -> Iterator[None]:
    """Each kind of a planted copy is made of four images: how many are found is not tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PLANTED_IMAGES", 4)
        yield


@pytest.fixture(scope="module")
def checked_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a corpus; read only."""
    folder = tmp_path_factory.mktemp("checked")
    opened(folder)
    return folder


@pytest.fixture
def run(checked_folder: Path, tmp_path: Path) -> Run:
    return opened(shutil.copytree(checked_folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def passed(checked_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, int]:
    """A run whose corpus has no copy, and the exit status of its audit."""
    run = opened(shutil.copytree(checked_folder, tmp_path_factory.mktemp("passed") / "copy"))
    draw(run, {})
    with commands_in_process():
        return run, main(["audit", run.store.url])


def draw(run: Run, copies: dict[int, np.ndarray]) -> None:
    """Commit phantoms as if they had been drawn; copies: index among the benign -> pixels in a
    phantom's place."""
    for name in CLASSES:
        for first in range(0, RUN_SHARDS * RUN_EACH, RUN_EACH):
            rows = []
            for i in range(first, first + RUN_EACH):
                pixels = phantom(9_000 + i, name, PROBES["demo"], (128, 128)).image
                pixels = copies.get(i, pixels) if name == "benign" else pixels
                spec = ImageSpec(
                    f"f-{name}-{i:08d}", name, i, 0, "a prompt", i, i, ContentBox(0, 0, *pixels.shape[::-1])
                )
                rows.append(Row(spec, pixels))
            shard = Shard(name, first, RUN_EACH)
            commit_shard(run.store, shard, rows, (), {"fingerprint": "f" * 64}, EXECUTION, "parquet", 1)


def test_a_planted_copy_fails_the_audit_is_named_and_shown(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    original = run.dataset.train[3]
    (pixels,) = run.images.load([original]).pixels
    draw(run, {7: np.ascontiguousarray(pixels[:, ::-1])})
    with commands_in_process():
        assert main(["audit", run.store.url]) == 1
    assert "1 of 20 images copy one of" in capsys.readouterr().out
    part = json.loads(run.store.read("audit.json"))
    image, file, what, *_ = part["closest"]["rows"][0]
    assert (image, file, what) == ("benign 7", original.file, "mirrored image")
    figures = {(f["metric"], f["arm"]): f for f in part["figures"] if f["metric"] != "training_images_copied"}
    assert figures["copies", "lora+ti+refine"]["value"] == 1 / 20
    assert figures["copy_sensitivity", "planted identical"]["value"] == 1
    panels = Image.open(io.BytesIO(run.store.read("audit.png")))
    assert panels.width > 6 * 128

    found = {key: run.store.read(key) for key in run.store.list("copies")}
    with commands_in_process():
        assert main(["audit", run.store.url]) == 1
    assert {key: run.store.read(key) for key in run.store.list("copies")} == found


def test_a_corpus_of_other_images_passes_and_its_features_are_where_evaluate_looks(passed: tuple[Run, int]) -> None:
    run, status = passed
    assert status == 0
    for commit in read_commits(run.store):
        assert run.store.exists(features_key(commit.digest, "image", "texture-1"))


def test_a_run_without_a_corpus_is_a_users_mistake(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with commands_in_process():
        assert main(["audit", run.store.url]) == 2
    assert "no corpus to audit" in capsys.readouterr().err


def test_an_audit_is_of_the_arm_that_the_corpus_is(passed: tuple[Run, int]) -> None:
    """A gated corpus is not what was drawn first, which is the arm without the gate."""
    for gate, arm in ((None, "lora+ti+refine"), ({}, "lora+ti+refine+gate")):
        gated = with_settings(passed[0], corpus={"gate": gate})
        figures, _, _ = module.audit(gated, InProcessWorkers())
        assert next(f.arm for f in figures if f.metric == "copies") == arm
