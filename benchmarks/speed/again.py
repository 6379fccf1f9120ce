"""Features of a corpus and of the real images: read from the store, against computed."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.contest import Contest, scratch_folder
from benchmarks.speed.images import simulated_images
from benchmarks.speed.runs import SIDE, small_run
from busray.corpus.arms import arm_sources
from busray.corpus.commit import commit_shard
from busray.corpus.encode import Row
from busray.identity import image_id
from busray.layout import arm_prefix
from busray.records import INCEPTION, ContentBox, Execution, ImageSpec, Shard
from busray.run.pieces import synthetic_blocks
from busray.stages.features import features
from busray.workers import Beat, Kind

ARM, IMAGES = "base+refine", 16
"""Images of a class."""


class HereWorkers:
    """The part of Workers that features need, in this process."""

    device = "cpu"

    def share(self, value: Any) -> Any:
        return _Value(value)

    def map(
        self, stage: str, total: int, start: Callable[[], Callable[[Any, Beat], None]], items: Sequence[Any], kind: Kind
    ) -> None:
        work = start()
        for item in items:
            work(item, lambda n=0: None)


class _Value:
    def __init__(self, value: Any) -> None:
        self.value = value

    def get(self) -> Any:
        return self.value


def questions() -> list[Contest]:
    run = small_run(
        scratch_folder() / "run", IMAGES, evaluate={"arms": [ARM], "judge": None, "extractors": ["inception"]}
    )
    store = run.store.sub(arm_prefix(ARM))
    box, provenance = ContentBox(0, 0, SIDE, SIDE), {"fingerprint": "f" * 64}
    for name in run.config.classes:
        rows = []
        for i, image in enumerate(simulated_images(IMAGES, SIDE)):
            rows.append(
                Row(ImageSpec(image_id(provenance["fingerprint"], name, i), name, i, 0, "", i, i, box, {}), image)
            )
        execution = Execution("cpu", "float32", 8, 2, {})
        commit = commit_shard(store, Shard(name, 0, IMAGES), rows, (), provenance, execution, "parquet", 1.0)
        assert commit.rows == IMAGES
    workers: Any = HereWorkers()

    def ours() -> np.ndarray:
        blocks = synthetic_blocks(run, arm_sources(run.config), INCEPTION)
        arms, real = features(run, workers, blocks, INCEPTION)
        return np.concatenate([*arms[ARM].values(), *real.features["train"].values()])

    def rival() -> np.ndarray:
        # Features and their digests: what is not stored is computed
        for path in Path(run.store.url).rglob("features"):
            shutil.rmtree(path)
        return ours()

    def same() -> str:
        computed = rival()
        assert len(computed) > 2 * IMAGES
        assert np.array_equal(computed, ours())
        return f"{computed.shape[0]} rows identical"

    name = f"Inception features of {2 * IMAGES} drawn images and of the real ones, again"
    return [Contest(name, "from the store", "the first time", ours, rival, 50, same)]
