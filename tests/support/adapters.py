"""What a run's adapters do: how they change the UNet's predictions."""

import tempfile
from pathlib import Path

import numpy as np
import torch

from busray.model.adapters import load_adapters
from busray.model.base import load_pipeline
from busray.model.checkpoints import fetch_adapters
from busray.run.record import Run


def effect(run: Run) -> np.ndarray:
    """Predictions of noise with the run's adapters, minus those of the bare base: float [2, c,
    h, w]."""
    return _predictions(run, adapted=True) - _predictions(run, adapted=False)


def _predictions(run: Run, adapted: bool) -> np.ndarray:
    pipe = load_pipeline(run.config.base)
    token, prompt = next(iter(run.config.tokens().values())), "benign ultrasound image"
    if adapted:
        with tempfile.TemporaryDirectory() as folder:
            adapters = fetch_adapters(run.store, Path(folder))
            load_adapters(pipe, adapters, run.config.adapters.method, run.config.tokens())
        prompt = pipe.maybe_convert_prompt(f"{token} ultrasound image", pipe.tokenizer)
    size = run.config.base.size // pipe.vae_scale_factor
    noise = torch.Generator().manual_seed(5)
    latents = torch.randn((2, pipe.unet.config.in_channels, size, size), generator=noise)
    with torch.no_grad():
        text, _ = pipe.encode_prompt(prompt, pipe.unet.device, 2, do_classifier_free_guidance=False)
        return pipe.unet(latents, torch.tensor([300, 700]), text).sample.numpy()
