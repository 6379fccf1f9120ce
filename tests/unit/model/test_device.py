"""How a device computes: bfloat16 only where it pays, compiled only where it can be, and what a
GPU does also works on a CPU."""

from typing import Any

import numpy as np
import pytest
import torch

from busray.config import Refine, Sampling
from busray.model import device
from busray.model.device import bfloat16_pays, choose, prepare
from busray.model.sample import Sampler
from busray.records import Computing, ContentBox, ImageSpec
from tests.support.pipelines import tiny_pipeline

SIZE = 64


def spec(index: int) -> ImageSpec:
    box = ContentBox(0, 8, SIZE, 48)
    return ImageSpec(f"id-{index}", "benign", index, 0, "a breast ultrasound scan", index, index + 50, box)


def sampler(pipe: Any, batch_size: int = 2) -> Sampler:
    sampling = Sampling(steps=1, guidance_scale=1.0, batch_size=batch_size)
    return Sampler(pipe, sampling, Refine(strength=0.5, steps=2, guidance_scale=1.0), SIZE, keep_txt2img=True)


# ---- the choice ----


def test_a_cpu_computes_in_bfloat16_only_with_matrix_units_and_a_probe_that_says_so() -> None:
    def seconds(bfloat16: float) -> Any:
        return {"float32": 1.0, "bfloat16": bfloat16}.__getitem__

    assert bfloat16_pays(True, seconds(0.5))
    assert not bfloat16_pays(True, seconds(0.9))
    assert not bfloat16_pays(True, seconds(2.0))

    def never(dtype: str) -> float:
        raise AssertionError("no probe without matrix units")

    assert not bfloat16_pays(False, never)


def test_auto_is_float32_on_a_cpu_without_matrix_units_and_a_named_format_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device, "has_matrix_units", lambda: False)
    assert choose("auto", "auto", "cpu") == Computing("float32")
    assert choose("bfloat16", True, "cpu") == Computing("bfloat16", compiled=True)
    monkeypatch.setattr(device, "has_matrix_units", lambda: True)
    monkeypatch.setattr(device, "_product_seconds", {"float32": 2.0, "bfloat16": 1.0}.__getitem__)
    assert choose("auto", "auto", "cpu").dtype == "bfloat16"


@pytest.mark.parametrize(("native", "expected"), [(True, "bfloat16"), (False, "float16")])
def test_a_gpu_computes_in_bfloat16_where_it_is_native(
    native: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    monkeypatch.setattr(device, "has_compiler", lambda: True)
    assert choose("auto", "auto", "cuda") == Computing(expected, True, True, True)
    assert choose("float32", False, "cuda") == Computing("float32", True, True, False)
    monkeypatch.setattr(device, "has_compiler", lambda: False)
    assert not choose("auto", "auto", "cuda").compiled


def test_the_probe_measures_and_remembers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "PROBE_SECONDS", 0.01)  # of float32: a CPU without AMX is slow in bfloat16
    device._product_seconds.cache_clear()
    seconds = device._product_seconds("float32")
    assert seconds > 0 and device._product_seconds("float32") == seconds
    device._product_seconds.cache_clear()


# ---- what is done ----


def test_attention_is_torchs_fused_one() -> None:
    kinds = {type(kind).__name__ for kind in tiny_pipeline().unet.attn_processors.values()}
    assert kinds == {"AttnProcessor2_0"}


def test_channels_last_and_fused_projections_draw_the_same_image_within_a_grey_level() -> None:
    plain, changed = tiny_pipeline(), tiny_pipeline()
    prepare(changed, Computing("float32", channels_last=True, fused_qkv=True))
    assert changed.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert any("Fused" in type(kind).__name__ for kind in changed.unet.attn_processors.values())
    specs = [spec(0), spec(1)]
    for a, b in zip(sampler(plain).draw(specs), sampler(changed).draw(specs), strict=True):
        assert np.abs(a.image.astype(int) - b.image).max() <= 1


def test_an_image_that_overflows_is_decoded_in_float32_and_only_then_drawn_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = sampler(tiny_pipeline("bfloat16"))
    weights = {name: value.clone() for name, value in made.pipe.unet.state_dict().items()}
    whole, formats = type(made.pipe.vae).decode, []

    def overflowing(vae: Any, latents: Any, *rest: Any, **options: Any) -> Any:
        formats.append((vae.dtype, len(latents)))
        decoded = whole(vae, latents, *rest, **options)
        if vae.dtype != torch.float32:
            decoded.sample[0] = torch.inf
        return decoded

    monkeypatch.setattr(type(made.pipe.vae), "decode", overflowing)
    drawn = made.draw([spec(0), spec(1)])
    assert [image.problem for image in drawn] == [None, None] and drawn[0].image.std() > 0
    assert formats == [(torch.bfloat16, 2), (torch.float32, 1)] * 2
    again = made.draw_in_float32(spec(0))
    assert again.problem is None and formats[4:] == [(torch.float32, 1)] * 2
    for name, value in made.pipe.unet.state_dict().items():
        assert value.dtype == torch.bfloat16 and torch.equal(value, weights[name]), name
    near = np.abs(again.image.astype(int) - drawn[0].image)
    assert 0 < near.mean() < 8


def test_decoding_takes_smaller_slices_for_good_where_the_memory_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    made = sampler(tiny_pipeline(), batch_size=4)
    specs = [spec(i) for i in range(4)]
    expected = made.draw(specs)
    assert (made.decode_batch, made.fewer_decoded) == (4, 0)
    whole, sizes = type(made.pipe.vae).decode, []

    def small(vae: Any, latents: Any, *rest: Any, **options: Any) -> Any:
        sizes.append(len(latents))
        if len(latents) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(vae, latents, *rest, **options)

    monkeypatch.setattr(type(made.pipe.vae), "decode", small)
    drawn = made.draw(specs)
    assert sizes == [4, 2, 2, 2, 2] and made.fewer_decoded == 2
    for a, b in zip(expected, drawn, strict=True):
        assert np.abs(a.image.astype(int) - b.image).max() <= 1
