"""Training images as the autoencoder's latents: posterior means and deviations, computed once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

from busray.model.sample import decode_grey, latent_weight, to_model
from busray.records import ContentBox
from busray.workers import Beat


@dataclass(frozen=True)
class EncodedImages:
    """A row for each image, then, where they are mirrored, a row for each mirrored image."""

    mean: torch.Tensor  # of the posterior, float [n, c, h, w], scaled as the UNet takes latents
    std: torch.Tensor  # likewise its standard deviation
    # Share of content in each cell, [n, 1, h, w]: the loss's weight, so that padding has none.
    weight: torch.Tensor
    images: int  # number of images without mirrored copies: row i shows image i % images

    def to_bytes(self) -> bytes:
        tensors = {"mean": self.mean, "std": self.std, "weight": self.weight}
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        return save({**tensors, "images": torch.tensor(self.images)})

    @staticmethod
    def from_bytes(data: bytes) -> "EncodedImages":
        tensors = load(data)
        return EncodedImages(tensors["mean"], tensors["std"], tensors["weight"], int(tensors["images"]))


@torch.no_grad()
def encode_images(
    pipe: Any,
    images: np.ndarray,
    boxes: Sequence[ContentBox],
    mirror: bool,
    batch_size: int,
    beat: Beat = lambda n=0: None,
) -> EncodedImages:
    """Encode grey images uint8 [n, s, s]; with mirror, their left-right mirrored copies too.

    beat counts the images that are done.
    """
    scale, size, factor = pipe.vae.config.scaling_factor, images.shape[1], pipe.vae_scale_factor
    weight = torch.stack([latent_weight(box, size, factor) for box in boxes])
    means, stds = ([], []), ([], [])  # of the images, and of their mirrored copies
    # Copies are encoded, not mirrored latents: the autoencoder's convolutions are not symmetric.
    for at in range(0, len(images), batch_size):
        pixels = to_model(images[at : at + batch_size])
        for flipped in (False, True)[: 1 + mirror]:
            shown = pixels.flip(-1) if flipped else pixels
            posterior = pipe.vae.encode(shown.to(pipe.vae.device)).latent_dist
            means[flipped].append((posterior.mean * scale).cpu())
            stds[flipped].append((posterior.std * scale).cpu())
            beat()
        beat(len(pixels))
    mean, std = torch.cat(means[0] + means[1]), torch.cat(stds[0] + stds[1])
    weight = torch.cat([weight, weight.flip(-1)]) if mirror else weight
    return EncodedImages(mean, std, weight, len(images))


@torch.no_grad()
def reconstruct(
    pipe: Any, images: np.ndarray, boxes: Sequence[ContentBox], batch_size: int, beat: Beat = lambda n=0: None
) -> np.ndarray:
    """Grey images uint8 [n, s, s], encoded to the posterior mean and decoded, as uint8 [n, s, s].

    ValueError where the result is not finite. beat counts the images that are done.
    """
    vae, batches = pipe.vae, []
    for at in range(0, len(images), batch_size):
        pixels = to_model(images[at : at + batch_size]).to(vae.device, vae.dtype)
        latents = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
        decoded, finite = decode_grey(vae, latents, boxes[at : at + batch_size])
        if not bool(finite.all()):
            raise ValueError("the autoencoder's output is not finite: load it in float32")
        batches.append(decoded)
        beat(len(decoded))
    return np.concatenate(batches)
