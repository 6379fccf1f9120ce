"""What is found of adapters in a folder, and what they do: how they change predictions."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from busray.model.adapters import load_adapters, offered_adapters
from busray.model.base import BaseIdentity, load_pipeline
from busray.model.checkpoints import fetch_adapters
from busray.run.record import Run


def check_adapters(
    folder: Path, method: str, tokens: Mapping[str, str], base: BaseIdentity, dataset_hash: str | None
) -> dict[str, Any]:
    """The record of the adapters in a folder."""
    return offered_adapters(folder, method, tokens, base, dataset_hash).record


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
