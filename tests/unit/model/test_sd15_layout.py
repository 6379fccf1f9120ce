"""Stable Diffusion v1.5's configurations, with random weights, go through the code that loads and
draws: a quarter as wide, and (slow) at their true width."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from busray.config import Base, Refine, Sampling
from busray.model.base import identify_base, load_pipeline
from busray.model.sample import Sampler
from busray.records import ContentBox, ImageSpec
from tests.support.paths import SHARED

LAYOUT = SHARED / "fixtures" / "sd15-layout"
SIZE = 128
"""A quarter of the real side: a sixteenth of the work, the same networks."""


def filled(model: Any, dtype: torch.dtype) -> Any:
    """A model built on the meta device, given small random weights; values do not change
    shapes, speed or memory."""
    model = model.to(dtype).to_empty(device="cpu")
    some = torch.empty(2**20).uniform_(-0.02, 0.02, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(some.repeat(-(-parameter.numel() // len(some)))[: parameter.numel()].view_as(parameter))
    return model


def narrowed(config: dict[str, Any], narrower: int) -> dict[str, Any]:
    """Of a UNet or an autoencoder: as many blocks and layers of fewer channels."""
    channels = [width // narrower for width in config["block_out_channels"]]
    return {**config, "block_out_channels": channels, "norm_num_groups": config["norm_num_groups"] // narrower}


@pytest.fixture(scope="module", params=[4, pytest.param(1, marks=pytest.mark.slow)], ids=["a quarter", "whole"])
def narrower(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory, narrower: int) -> Path:
    if not LAYOUT.is_dir():
        pytest.skip(f"Stable Diffusion v1.5's configurations are not here: no folder {LAYOUT}")
    if narrower == 1 and os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") < 12 * 2**30:
        pytest.skip("needs 12 GB of memory: the real UNet has 860 million parameters")
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(narrowed(UNet2DConditionModel.load_config(LAYOUT / "unet"), narrower))
        vae = AutoencoderKL.from_config(narrowed(AutoencoderKL.load_config(LAYOUT / "vae"), narrower))
    text_config = CLIPTextConfig.from_pretrained(LAYOUT / "text_encoder")
    text_config.num_hidden_layers //= narrower
    text = CLIPTextModel(text_config)
    folder = tmp_path_factory.mktemp("sd15") / "base"
    StableDiffusionPipeline(
        unet=filled(unet, torch.float16),
        vae=filled(vae, torch.float16),
        text_encoder=text,
        tokenizer=CLIPTokenizer.from_pretrained(LAYOUT / "tokenizer"),
        scheduler=PNDMScheduler.from_pretrained(LAYOUT / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def test_stable_diffusion_v1_5_is_loaded_and_draws_both_stages(layout: Path, narrower: int) -> None:
    settings = Base(path=str(layout), size=SIZE)
    assert any(name.startswith("unet/") and name.endswith(".safetensors") for name in identify_base(settings).files)
    pipe = load_pipeline(settings)
    if narrower == 1:
        assert sum(p.numel() for p in pipe.unet.parameters()) == 859_520_964
    assert pipe.unet.config.in_channels == 4 and pipe.vae_scale_factor == 8
    sampler = Sampler(
        pipe,
        Sampling(steps=1, guidance_scale=7.5, batch_size=1),
        Refine(strength=0.5, steps=2),
        SIZE,
        keep_txt2img=True,
    )
    prompt = "an ultrasound image of a malignant breast lesion with irregular borders"
    (drawn,) = sampler.draw([ImageSpec("id", "malignant", 0, 0, prompt, 1, 2, ContentBox(0, 16, SIZE, 96))])
    assert drawn.problem is None
    assert drawn.image.shape == (SIZE, SIZE) and drawn.txt2img is not None
    assert not drawn.image[:16].any() and drawn.image[16:112].any()
