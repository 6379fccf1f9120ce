"""A base as Stable Diffusion 2.x is made, only smaller, is drawn as diffusers draws it.

What it has and Stable Diffusion 1.x has not: v-prediction, linear projections, a number of heads
that grows with the width, OpenCLIP's text encoder (GELU, another padding token).
"""

from pathlib import Path

import pytest
import torch

from busray.config import Base, Sampling
from busray.model.base import TINY, identify_base, inspect_base, load_pipeline
from busray.model.sample import Sampler
from busray.model.steps import unit_noise
from busray.records import ContentBox, ImageSpec

SIZE, WIDTH = 64, 64


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(TINY / "tokenizer", pad_token="!")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2,
        num_attention_heads=2, hidden_act="gelu", bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=WIDTH,
        attention_head_dim=(2, 4), use_linear_projection=True,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, sample_size=SIZE,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type="v_prediction",
    )  # fmt: skip
    folder: Path = tmp_path_factory.mktemp("sd2") / "base"
    StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return Base(path=str(folder), size=SIZE)


def test_it_passes_the_checks_before_work(base: Base) -> None:
    assert "unet/diffusion_pytorch_model.safetensors" in identify_base(base).files
    inspect_base(base)


def test_its_latents_are_those_of_diffusers_own_pipeline(base: Base) -> None:
    prompt, negative, seed = "a breast ultrasound scan", "blurred", 5
    sampling = Sampling(scheduler="ddim", steps=4, guidance_scale=3.0, negative_prompt=negative, batch_size=1)
    sampler = Sampler(load_pipeline(base), sampling, None, SIZE, keep_txt2img=False)
    spec = ImageSpec("id", "benign", 0, 0, prompt, seed, 6, ContentBox(0, 0, SIZE, SIZE))
    with torch.no_grad():
        found = sampler._txt2img([spec])
    theirs = load_pipeline(base)
    noise = unit_noise((4, SIZE // 8, SIZE // 8), [torch.Generator().manual_seed(seed)])
    wanted = theirs(
        prompt, negative_prompt=negative, latents=noise, num_inference_steps=4, guidance_scale=3.0, output_type="latent"
    ).images
    assert theirs.scheduler.config.prediction_type == "v_prediction"
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    theirs.scheduler.register_to_config(prediction_type="epsilon")
    other = theirs(
        prompt, negative_prompt=negative, latents=noise, num_inference_steps=4, guidance_scale=3.0, output_type="latent"
    ).images
    assert (other - wanted).norm() > 0.1 * wanted.norm()
