"""Moments of a whole corpus on a local Ray: the number of one pass, also where a worker dies."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import ray

from busray.cluster.pool import ray_workers
from busray.config import Cluster
from busray.corpus.features import put_array
from busray.evidence.stats.frechet import Moments, frechet
from busray.identity import fingerprint
from busray.layout import features_key
from busray.records import CLASS_ALL, INCEPTION
from busray.stages import whole_corpus as stage
from busray.storage import Store
from tests.support.runs import quiet

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test

D = 12
IMAGES = {"benign": 330, "malignant": 45}


class Deadly(Store):
    """Kills the first process that reads a key of this beginning."""

    beginning = ""

    def read(self, key: str) -> bytes:
        died = Path(self.url) / "died"
        if key.startswith(self.beginning) and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(key)


def rows(name: str, n: int) -> np.ndarray:
    rng = np.random.default_rng(len(name))
    return np.abs(rng.standard_normal((n, D)) * np.logspace(0, -3, D) + 0.1 * len(name)).astype(np.float32)


@pytest.mark.parametrize("beginning", [f"features/{INCEPTION}/", f"moments/{INCEPTION}/"])
def test_workers_merge_what_one_pass_gives_although_one_of_them_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beginning: str
) -> None:
    monkeypatch.setattr(stage, "BLOCK_IMAGES", 50)
    monkeypatch.setattr(stage, "MERGED_AT_ONCE", 3)
    store = Deadly(str(tmp_path / "run"))
    blocks = []
    for name, n in IMAGES.items():
        shards = []
        for at in range(0, n, 30):
            part = rows(name, n)[at : at + 30]
            digest = fingerprint([name, at])
            put_array(store, features_key(digest, "image", INCEPTION), part)
            shards.append((digest, len(part)))
        blocks += stage.moments_blocks(store, INCEPTION, name, shards)
    store.beginning = beginning
    with ray_workers(Cluster(actors=2, threads=1), tmp_path / "ray.log", quiet) as workers:
        moments = stage.moments_of_all(workers, blocks)
    assert (tmp_path / "run" / "died").exists()
    whole = np.concatenate([rows(name, n) for name, n in IMAGES.items()])
    assert moments[CLASS_ALL].n == len(whole)
    reference = Moments.of(rows("x", 40))
    expected = frechet(Moments.of(whole), reference)
    assert frechet(moments[CLASS_ALL], reference) == pytest.approx(expected, rel=1e-9)
    assert len(list(store.list("moments"))) == 5  # of benign; malignant fills no block
