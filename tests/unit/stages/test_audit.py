"""The copy audit samples the whole corpus for near-duplicates inside it, and says which corpus it was of."""

import hashlib
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from busray.config_file import validate
from busray.corpus.commit import commit_shard, read_commits, read_rows
from busray.corpus.encode import Row
from busray.records import ContentBox, Execution, ImageSpec, Shard
from busray.stages import audit as module
from busray.storage import Store

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
            execution = Execution("cpu", "float32", 2, 1, {})
            commit_shard(
                store, Shard(name, first, EACH), rows, rejects, {"fingerprint": "f" * 64}, execution, "parquet", 1.0
            )
    return store


def lowest_hashes(k: int) -> list[tuple[str, int]]:
    """The k images that are there with the lowest SHA-256 of what their ids end in."""
    there = [(name, i) for name in CLASSES for i in range(SHARDS * EACH) if (name, i) != ("benign", REJECTED)]
    return sorted(there, key=lambda one: hashlib.sha256(f"{one[0]}-{one[1]:08d}".encode()).digest())[:k]


@pytest.mark.parametrize("k", [4, 20, 200])
def test_near_duplicates_are_looked_for_among_images_of_all_shards_by_their_hashes(
    store: Store, monkeypatch: pytest.MonkeyPatch, k: int
) -> None:
    monkeypatch.setattr(module, "INSIDE", k)
    compared: list[np.ndarray] = []
    monkeypatch.setattr(module, "aligned_pairs", lambda smalls: compared.extend(smalls) or [])
    assert module._inside(store, read_commits(store)) == (0, min(k, 79))
    wanted = lowest_hashes(k)
    assert all(len(np.unique(small.pixels)) == 1 for small in compared)
    assert sorted(int(small.pixels[0, 0]) for small in compared) == sorted(level(*one) for one in wanted)
    if k == 20:
        assert {name for name, _ in wanted} == set(CLASSES) and len({(c, i // EACH) for c, i in wanted}) > 5


def test_no_shard_is_read_that_has_no_sampled_image(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INSIDE", 4)
    read: list[tuple[str, int]] = []

    def counted(store: Store, commit: Any, columns: Any = None) -> Any:
        read.append((commit.class_name, commit.first))
        return read_rows(store, commit, columns)

    monkeypatch.setattr(module, "read_rows", counted)
    module._inside(store, read_commits(store))
    assert sorted(read) == sorted({(name, i // EACH * EACH) for name, i in lowest_hashes(4)})


class Asked(Exception):
    """The arm that the audit's figures are to be of."""


@pytest.mark.parametrize(("gate", "arm"), [({}, "lora+ti+refine+gate"), (None, "lora+ti+refine")])
def test_an_audit_is_of_the_arm_that_the_corpus_is(
    store: Store, monkeypatch: pytest.MonkeyPatch, gate: dict | None, arm: str
) -> None:
    """A gated corpus is not what was drawn first, which is the arm without the gate."""

    def asked(evidence: Any) -> Any:
        raise Asked(evidence.arm)

    replaced = {
        "session": lambda *_: nullcontext(),
        "extract": lambda *_: None,
        "real_pieces": lambda *_: [],
        "_originals": lambda *_: (None, "identity"),
        "_held_out": lambda *_: [None],
        "_held_out_units": lambda *_: np.zeros(0),
        "_planted": lambda *_: {},
        "_find": lambda *_: None,
        "_found": lambda _: np.zeros(0),
        "tally": lambda *_: None,
        "_inside": lambda *_: (0, 0),
        "audit_figures": asked,
    }
    for name, stand_in in replaced.items():
        monkeypatch.setattr(module, name, stand_in)
    tree = {
        "output": store.url,
        "dataset": {"path": "data"},
        "classes": {name: {"images": SHARDS * EACH} for name in CLASSES},
        "corpus": {"gate": gate},
    }
    dataset = SimpleNamespace(train=(), frame="pad", size=10)
    run: Any = SimpleNamespace(
        store=store, extractors={"texture-1": None}, config=validate(tree), log_file=None, dataset=dataset
    )
    with pytest.raises(Asked, match=rf"^{arm}$".replace("+", r"\+")):
        module.audit(run)
