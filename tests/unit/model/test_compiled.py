"""What torch.compile made is kept with the run, and later workers load it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from busray.config import Sampling
from busray.model.compiled import compiled_key, keep_compiled, load_compiled
from busray.model.device import prepare
from busray.model.sample import Sampler
from busray.records import Computing, ContentBox, Damaged, ImageSpec
from busray.storage import Store
from tests.support.pipelines import tiny_pipeline

SIZE = 64


def test_the_code_is_stored_once_and_handed_to_the_next_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = iter([(b"first", None), (b"second", None), None])
    loaded: list[bytes] = []
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: next(made))
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", loaded.append)
    store, key = Store(str(tmp_path / "run")), compiled_key({"device": "one"})
    assert not load_compiled(store, key) and loaded == []
    keep_compiled(store, key)
    keep_compiled(store, key)  # another worker, which compiled meanwhile
    keep_compiled(store, compiled_key({"device": "other"}))  # nothing was compiled
    assert load_compiled(store, key) and loaded == [b"first"]
    assert not load_compiled(store, compiled_key({"device": "other"}))


def test_damaged_code_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"code", None))
    store, key = Store(str(tmp_path / "run")), compiled_key({})
    keep_compiled(store, key)
    Path(store.url, key).chmod(0o644)
    Path(store.url, key).write_bytes(b"other")
    with pytest.raises(Damaged, match="compiled/"):
        load_compiled(store, key)


@pytest.mark.slow  # minutes of g++
def test_compiled_networks_draw_the_same_image_without_compiling_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def spec(i: int) -> ImageSpec:
        return ImageSpec(f"i-{i}", "benign", i, 0, "a dark oval spot", i, i, ContentBox(0, 8, SIZE, 48))

    def sampler(**how: Any) -> Sampler:
        pipe = tiny_pipeline()
        prepare(pipe, Computing("float32", **how))
        sampling = Sampling(steps=3, guidance_scale=2.0, guidance_interval=(0.3, 5.0), batch_size=2)
        return Sampler(pipe, sampling, None, SIZE, keep_txt2img=False)

    fast = sampler(compiled=True, channels_last=True, fused_qkv=True)
    fast.warm_up()
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
    drawn, short = fast.draw([spec(0), spec(1)]), fast.draw([spec(0)])
    assert np.array_equal(drawn[0].image, short[0].image), "what a batch is padded with decides nothing"
    for a, b in zip(drawn, sampler().draw([spec(0), spec(1)]), strict=True):
        assert np.abs(a.image.astype(int) - b.image).max() <= 1
