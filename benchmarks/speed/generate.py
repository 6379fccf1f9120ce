"""Two-stage generation with the embedded base against loops of diffusers' own pipelines.

The rivals run txt2img and then img2img on the decoded picture, with the same prompts, steps,
scheduler, noise and dtype. One takes a prompt at a time, the other as many as busray's batch.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline

from benchmarks.speed.contest import Contest
from busray import config
from busray.model.base import load_pipeline
from busray.model.sample import Sampler, scheduler_for
from busray.records import ContentBox, ImageSpec

BATCH = 8
IMAGES = BATCH  # of a call
SAMPLING = config.Sampling(steps=15, guidance_scale=2.0, batch_size=BATCH)
REFINE = config.Refine(strength=0.3, steps=20, guidance_scale=2.0)
PROMPTS = (
    "an ultrasound image of breast tissue with a lesion, an oval spot, smooth edge",
    "an ultrasound image of breast tissue with a lesion, a ragged spot, irregular edge",
    "an ultrasound image of breast tissue, without lesion",
)
DOWNSCALE = 4
"""Pixels a latent cell, of the embedded base."""


def questions() -> list[Contest]:
    found = []
    for latent_side, goal in ((16, 2.2), (32, 1.6)):
        found.append(_contest(latent_side, 1, goal))
        found.append(_contest(latent_side, BATCH, 1.15))
    return found


def _contest(latent_side: int, rival_batch: int, goal: float) -> Contest:
    side = latent_side * DOWNSCALE
    specs = image_specs(IMAGES, side)
    sampler = Sampler(load_pipeline(config.Base()), SAMPLING, REFINE, side, keep_txt2img=False)
    theirs = diffusers_images(config.Base(size=side), SAMPLING, REFINE)

    def ours() -> np.ndarray:
        return np.stack([drawn.image for drawn in sampler.draw(specs)])

    def rival() -> np.ndarray:
        drawn = []
        for at in range(0, IMAGES, rival_batch):
            drawn.append(theirs(specs[at : at + rival_batch]))
        return np.concatenate(drawn)

    def same() -> str:
        differing = np.abs(ours().astype(int) - rival().astype(int)).max()
        assert differing <= 1, differing
        return f"pixels within {differing}/255"

    name = f"{IMAGES} images of {side} px (latents {latent_side} x {latent_side}), 15 + 6 steps"
    rival_name = "diffusers, a prompt at a time" if rival_batch == 1 else f"diffusers, batch {rival_batch}"
    return Contest(name, f"busray, batch {BATCH}", rival_name, ours, rival, goal, same)


def image_specs(images: int, side: int) -> list[ImageSpec]:
    """What is drawn: whole squares, with all prompts in turn."""
    box, specs = ContentBox(0, 0, side, side), []
    for i in range(images):
        specs.append(ImageSpec(f"i-{i}", "benign", i, 0, PROMPTS[i % len(PROMPTS)], 2 * i, 2 * i + 1, box, {}))
    return specs


def diffusers_images(
    base: config.Base, sampling: config.Sampling, refine: config.Refine | None, device: str = "cpu"
) -> Callable[[list[ImageSpec]], np.ndarray]:
    """What draws grey uint8 [b, side, side] by diffusers' own pipelines, loaded once."""
    assert refine is not None
    text_pipe = load_pipeline(base, device)
    text_pipe.scheduler = scheduler_for(sampling.scheduler, text_pipe.scheduler.config)
    parts = {name: part for name, part in text_pipe.components.items() if name != "image_encoder"}
    image_pipe: Any = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    image_pipe.set_progress_bar_config(disable=True)

    def images(specs: list[ImageSpec]) -> np.ndarray:
        prompts = [spec.prompt for spec in specs]
        drawn = text_pipe(
            prompts,
            height=base.size,
            width=base.size,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            generator=[torch.Generator().manual_seed(spec.seed_txt2img) for spec in specs],
            output_type="np",
        ).images
        refined = image_pipe(
            prompts,
            image=_grey(drawn)[..., None].repeat(3, -1).astype(np.float32) / 255,
            strength=refine.strength,
            num_inference_steps=refine.steps,
            guidance_scale=refine.guidance_scale,
            generator=[torch.Generator().manual_seed(spec.seed_img2img) for spec in specs],
            output_type="np",
        ).images
        return _grey(refined)

    return images


def _grey(images: np.ndarray) -> np.ndarray:
    """uint8 [b, h, w] of float [b, h, w, 3] in 0..1."""
    return (images.mean(-1) * 255).round().astype(np.uint8)
