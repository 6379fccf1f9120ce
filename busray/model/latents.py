"""Training images as posterior means and deviations of the autoencoder, encoded once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

from busray.model.sample import decode_grey, latent_weight, to_model
from busray.records import ContentBox


@dataclass(frozen=True)
class EncodedImages:
    """Row i: posterior mean and std float [n, c, h, w] in the UNet's scale, and the share of content a cell
    [n, 1, h, w], which weights the loss so that padding carries none. Mirrored copies follow the images as they are."""

    mean: torch.Tensor
    std: torch.Tensor
    weight: torch.Tensor
    images: int
    """Without the mirrored copies: row i shows image i % images."""

    def to_bytes(self) -> bytes:
        count = torch.tensor(self.images)
        tensors = {"mean": self.mean, "std": self.std, "weight": self.weight, "images": count}
        return save({name: tensor.contiguous() for name, tensor in tensors.items()})

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
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EncodedImages:
    """Encode grey images uint8 [n, s, s]; with mirror, their left-right mirrored copies too."""
    scale, size, factor = pipe.vae.config.scaling_factor, images.shape[1], pipe.vae_scale_factor
    means, stds, weights = [], [], []
    for flipped in (False, True)[: 1 + mirror]:
        for at in range(0, len(images), batch_size):
            pixels = to_model(images[at : at + batch_size])
            posterior = pipe.vae.encode((pixels.flip(-1) if flipped else pixels).to(pipe.vae.device)).latent_dist
            means.append((posterior.mean * scale).cpu())
            stds.append((posterior.std * scale).cpu())
            progress(at // (1 + mirror) if not flipped else (len(images) + at) // 2, len(images))
        weight = torch.stack([latent_weight(box, size, factor) for box in boxes])
        weights.append(weight.flip(-1) if flipped else weight)
    progress(len(images), len(images))
    return EncodedImages(torch.cat(means), torch.cat(stds), torch.cat(weights), len(images))


@torch.no_grad()
def reconstruct(
    pipe: Any,
    images: np.ndarray,
    boxes: Sequence[ContentBox],
    batch_size: int,
    progress: Callable[[int], None] = lambda more: None,
) -> np.ndarray:
    """Grey images uint8 [n, s, s], encoded (posterior mean) and decoded: what the autoencoder alone makes of them.

    ValueError where what comes out is not finite. progress is told how many more are done.
    """
    vae, made = pipe.vae, []
    for at in range(0, len(images), batch_size):
        pixels = to_model(images[at : at + batch_size]).to(vae.device, vae.dtype)
        latents = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
        decoded, finite = decode_grey(vae, latents, boxes[at : at + batch_size])
        if not bool(finite.all()):
            raise ValueError("the autoencoder's output is not finite: load it in float32")
        made.append(decoded)
        progress(len(decoded))
    return np.concatenate(made)
