"""sampling.preset=fast against the default steps, on the embedded base. What it costs in quality is
measured by benchmarks/fast_preset.py."""

import numpy as np

from benchmarks.speed.contest import Contest
from benchmarks.speed.generate import image_specs
from busray import config
from busray.config_file import validate
from busray.model.base import load_pipeline
from busray.model.sample import Sampler

SIDE = 128
BATCH = 4
GUIDANCE = 2.0


def questions() -> list[Contest]:
    fast, default = drawing(fast=True), drawing(fast=False)
    specs = image_specs(BATCH, SIDE)

    def ours() -> np.ndarray:
        return np.stack([drawn.image for drawn in fast.draw(specs)])

    def rival() -> np.ndarray:
        return np.stack([drawn.image for drawn in default.draw(specs)])

    def same() -> str:
        differing = np.abs(ours().astype(int) - rival().astype(int)).mean()
        return f"pixels differ by {differing:.1f}/255 on average; distances: sampling.md"

    name = f"sampling.preset=fast, {BATCH} images of {SIDE} px"
    return [Contest(name, "preset fast", "50 + 15 steps", ours, rival, 2, same)]


def drawing(fast: bool) -> Sampler:
    sampling = {"guidance_scale": GUIDANCE, "batch_size": BATCH} | ({"preset": "fast"} if fast else {})
    refine = {"guidance_scale": GUIDANCE, "handover": "latent"}
    classes, dataset = {"benign": {}}, {"phantoms": {}}
    settings = validate({"sampling": sampling, "refine": refine, "classes": classes, "dataset": dataset})
    return Sampler(load_pipeline(config.Base()), settings.sampling, settings.refine, SIDE, keep_txt2img=False)
