"""Images before and after the class gate are called seed-paired only where row i is one image in both."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from busray.evidence.stats.frechet import MOST_REPLICATES
from busray.identity import image_id
from busray.records import Commit, Execution
from busray.run.pieces import ImageBlock, by_chance
from busray.stages import evaluate
from busray.storage import Store

IMAGES, REAL = 100, 3
"""More than MOST times the real ones, so that both sides hold equally many images whatever is missing."""


def piece(store: Store, key: str, missing: tuple[int, ...]) -> ImageBlock:
    """A shard of class b without the images that spent their budget; an image's feature is its index."""
    kept = [i for i in range(IMAGES) if i not in missing]
    rejects = tuple((image_id("f" * 64, "b", i), "why") for i in missing)
    np.save(Path(store.url) / key, np.array(kept, np.float32)[:, None])
    commit = Commit("b", 0, IMAGES, "", "", 0, len(kept), rejects, Execution("", "", 1, 1, {}), 0.0)
    return ImageBlock(store, key, commit, images=len(kept))


@pytest.mark.parametrize(("spent", "paired"), [((), True), ("held", False), ("beyond", True)])
def test_the_gate_is_seed_paired_where_the_same_images_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spent: Any, paired: bool
) -> None:
    held = by_chance("b", range(IMAGES), MOST_REPLICATES * REAL)
    missing = {"held": (held[4],), "beyond": (next(i for i in range(IMAGES) if i not in held),), (): ()}[spent]
    store = Store(str(tmp_path))
    found = {"lora": piece(store, "before.npy", ()), "lora+gate": piece(store, "after.npy", missing)}
    corpus = SimpleNamespace(gate=object(), keep_txt2img=False)
    config = SimpleNamespace(
        classes={"b": SimpleNamespace(images=IMAGES)},
        evaluate=SimpleNamespace(images=None, arms=["lora"]),
        adapters=SimpleNamespace(method="lora"),
        refine=None,
        corpus=corpus,
    )
    real = SimpleNamespace(split=lambda name: [SimpleNamespace(class_name="b")] * REAL, frame="letterbox", size=64)
    run: Any = SimpleNamespace(config=config, dataset=real, store=store)
    monkeypatch.setattr(evaluate, "synthetic_pieces", lambda run, sources, name: {arm: [found[arm]] for arm in sources})
    monkeypatch.setattr(evaluate, "real_blocks", lambda run, name: [])
    drawn = evaluate._before_and_after(run, "inception-v3-2015")  # pyright: ignore[reportPrivateUsage]
    before, after = drawn.arms["lora"]["b"], drawn.gated["lora+gate"]["b"]
    assert len(before) == len(after) == MOST_REPLICATES * REAL
    assert np.array_equal(before, after) == paired
    assert drawn.pairs == ([("lora", "lora+gate")] if paired else [])
