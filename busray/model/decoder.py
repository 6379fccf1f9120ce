"""Tuning of the autoencoder's decoder on the user's images, so that its texture becomes theirs.

The encoder and so the latents stay as they are: the UNet, its LoRA and other decoders still fit.
Noise on the latents teaches the decoder to forgive what a denoiser leaves wrong in them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from busray.identity import seed_for
from busray.model.sample import to_model

T = TypeVar("T")

MOST_IMAGES = 2048  # that a decoder is tuned on, evenly spread over all
BATCH = 8  # crops of half a side
WARM_UP = 20  # steps
MOST_NOISE = 0.3  # on the latents, in standard deviations of each channel
CLIP_NORM = 1.0
EDGES = 0.25  # weight of the differences between neighbours, beside that of the pixels
TEXTURE = 2.0  # weight of the local spectra: what latents cannot hold, the decoder has to make up


@dataclass(frozen=True)
class Decoding:
    """How a decoder is tuned."""

    steps: int
    learning_rate: float  # its peak; it falls to 0 along half a cosine
    seed: int


def evenly_chosen(images: Sequence[T]) -> tuple[T, ...]:
    """At most MOST_IMAGES of these, evenly spread: a decoder needs no more."""
    places = np.linspace(0, len(images) - 1, min(len(images), MOST_IMAGES)).round().astype(int)
    return tuple(images[place] for place in np.unique(places))


def tune_decoder(
    vae: Any, images: np.ndarray, how: Decoding, beat: Callable[[int], None] = lambda n: None
) -> list[float]:
    """Tune the decoder of this autoencoder on grey images uint8 [n, s, s], in place.

    Returns the loss of each step. beat(1) after each step. Samples follow from the seed and the
    step. ValueError where a loss is not finite.
    """
    parameters = [*vae.decoder.parameters()]
    if vae.post_quant_conv is not None:
        parameters += vae.post_quant_conv.parameters()
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(parameters, lr=how.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    samples = _Samples(vae, images, how.seed)
    losses = []
    for step in range(how.steps):
        latents, wanted = samples.batch(step)
        loss = decoding_loss(vae.decode(latents).sample, wanted)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise ValueError(f"the decoder's loss is {losses[-1]} at step {step}: lower adapters.decoder_learning_rate")
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        rate = min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / how.steps))
        optimiser.param_groups[0]["lr"] = how.learning_rate * rate
        optimiser.step()
        beat(1)
    for parameter in parameters:
        parameter.requires_grad_(False)
    return losses


class _Samples:
    """Crops of training images with their latents, seeded by step."""

    def __init__(self, vae: Any, images: np.ndarray, seed: int) -> None:
        self.images, self.seed = images, seed
        means, deviations = [], []
        with torch.no_grad():
            for at in range(0, len(images), BATCH):
                posterior = vae.encode(to_model(images[at : at + BATCH]).to(vae.device, vae.dtype)).latent_dist
                means.append(posterior.mean)
                deviations.append(posterior.std)
        self.means, self.deviations = torch.cat(means), torch.cat(deviations)
        # Of all cells and images, [c, 1, 1]: noise is as strong everywhere.
        self.spread = self.means.std((0, 2, 3))[:, None, None]
        self.cell = images.shape[1] // self.means.shape[-1]  # pixels

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """(latents [b, c, h, w] as the decoder takes them, crops [b, 1, s, s] in -1..1)."""
        rng = np.random.default_rng(seed_for(self.seed, "all", step, 0, "decoder"))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        cells = self.means.shape[-1]
        side = max(1, cells // 2)
        latents, crops = [], []
        for _ in range(BATCH):
            row = int(rng.integers(len(self.images)))
            top, left = (int(at) for at in rng.integers(0, cells - side + 1, 2))
            noise = float(rng.uniform(0, MOST_NOISE))
            place = (slice(None), slice(top, top + side), slice(left, left + side))
            mean, deviation = self.means[row][place], self.deviations[row][place]
            drawn, wrong = (torch.randn(mean.shape, generator=generator).to(mean) for _ in range(2))
            latents.append(mean + deviation * drawn + noise * self.spread * wrong)
            y, x, pixels = top * self.cell, left * self.cell, side * self.cell
            crops.append(self.images[row, y : y + pixels, x : x + pixels])
        wanted = to_model(np.stack(crops))[:, :1]
        return torch.stack(latents), wanted.to(self.means)


def decoding_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """Of decoded images [b, c, h, w] beside grey ones [b, 1, h, w], both in -1..1.

    Pixels count in each channel, so that the channels stay alike; edges and texture in their mean,
    which is what is drawn.
    """
    grey = made.mean(1, keepdim=True)
    loss = (made - wanted).abs().mean()
    for a, b in zip(differences(grey), differences(wanted), strict=True):
        loss = loss + EDGES * (a - b).abs().mean()
    return loss + TEXTURE * texture_loss(grey, wanted)


def differences(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences between neighbours, down and across."""
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def texture_loss(made: Tensor, real: Tensor, size: int = 16) -> Tensor:
    """How far the local amplitude spectra of two images [b, 1, h, w] are apart, phases aside.

    The absolute difference of amplitudes, plus the log ratio of power summed over rings of
    frequency: the first keeps each grain's strength where its place is known, the second gives
    back the energy that a code cannot hold.
    """
    powers = []
    for images in (made, real):
        powers.append(torch.fft.rfft2(_windows(images, size), norm="ortho").abs().square())
    made_power, real_power = powers
    amplitude = ((made_power + 1e-6).sqrt() - (real_power + 1e-6).sqrt()).abs().mean()
    fy, fx = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None]
    ring = (torch.sqrt(fy**2 + fx**2) * size).round().long().clamp(max=size // 2).flatten()
    rings = functional.one_hot(ring).to(made)
    floor = 5e-5 * rings.sum(0)  # speckle of 2 grey levels
    ratio = torch.log(made_power.flatten(1) @ rings + floor) - torch.log(real_power.flatten(1) @ rings + floor)
    return 2 * amplitude + 0.25 * ratio.abs().mean()


def _windows(x: Tensor, size: int) -> Tensor:
    """[b, 1, h, w] -> half-overlapping windows [n, size, size], their means taken off, under a
    Hann window."""
    windows = x[:, 0].unfold(1, size, size // 2).unfold(2, size, size // 2).reshape(-1, size, size)
    hann = torch.hann_window(size + 2, periodic=False)[1:-1].to(x)
    return (windows - windows.mean((1, 2), keepdim=True)) * torch.outer(hann, hann)
