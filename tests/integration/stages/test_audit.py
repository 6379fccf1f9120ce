"""A corpus with one copy of a training image among its images fails the audit, and one without passes."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from busray.cli import main
from busray.config_file import validate
from busray.corpus.commit import commit_shard, read_commits
from busray.corpus.encode import Row
from busray.data.images import load_images
from busray.data.phantom import PROBES, phantom
from busray.layout import features_key
from busray.records import ContentBox, Execution, ImageSpec, Shard
from busray.run.checks import open_run
from busray.run.record import Run

CLASSES = ("benign", "malignant")
SHARDS, EACH = 2, 5


def quiet(stage: str, done: int, total: int) -> None:
    pass


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A checked data set and no corpus yet; texture in place of Inception, for time's sake."""
    tree = {
        "output": str(tmp_path / "run"),
        "dataset": {"phantoms": {"images": 20, "seed": 3}, "val": 0.2, "test": 0.3},
        "classes": {name: {"images": SHARDS * EACH, "token": f"<us-{name}>"} for name in CLASSES},
        "evaluate": {"extractors": ["texture"]},
        "cluster": {"threads": 1},
    }
    return open_run(validate(tree), quiet)


def draw(run: Run, copies: dict[int, np.ndarray]) -> None:
    """Commit phantoms as if they had been drawn; copies: index among the benign -> pixels in a phantom's place."""
    for name in CLASSES:
        for first in range(0, SHARDS * EACH, EACH):
            rows = []
            for i in range(first, first + EACH):
                pixels = phantom(9_000 + i, name, PROBES["demo"], (128, 128)).image
                pixels = copies.get(i, pixels) if name == "benign" else pixels
                spec = ImageSpec(f"f-{name}-{i:08d}", name, i, 0, "a prompt", i, i, ContentBox(0, 0, *pixels.shape[::-1]))
                rows.append(Row(spec, pixels))
            execution = Execution("cpu", "float32", 2, 1, {})
            commit_shard(
                run.store, Shard(name, first, EACH), rows, (), {"fingerprint": "f" * 64}, execution, "parquet", 1
            )


def test_a_planted_copy_fails_the_audit_is_named_and_shown(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    original = run.dataset.train[3]
    pixels = load_images(run.folder, [original], 128, run.dataset.frame)[0]
    draw(run, {7: np.ascontiguousarray(pixels[:, ::-1])})
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
    assert main(["audit", run.store.url]) == 1
    assert {key: run.store.read(key) for key in run.store.list("copies")} == found


def test_a_corpus_of_other_images_passes_and_its_features_are_where_evaluate_looks(run: Run) -> None:
    draw(run, {})
    assert main(["audit", run.store.url]) == 0
    for commit in read_commits(run.store):
        assert run.store.exists(features_key(commit.digest, "image", "texture-1"))


def test_a_run_without_a_corpus_is_a_users_mistake(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", run.store.url]) == 2
    assert "no corpus to audit" in capsys.readouterr().err
