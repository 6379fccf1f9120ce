"""Training images as the autoencoder's latents: posterior means and deviations, computed once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save

from busray.model.memory import fits_on, in_slices
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
    def in_file(path: Path) -> "EncodedImages":
        """Of a file of to_bytes(); its rows stay there until they are looked at (memory map)."""
        tensors = load_file(path)
        return EncodedImages(tensors["mean"], tensors["std"], tensors["weight"], int(tensors["images"]))

    def on(self, device: torch.device) -> "EncodedImages":
        return EncodedImages(self.mean.to(device), self.std.to(device), self.weight.to(device), self.images)

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(tensor.nbytes for tensor in (self.mean, self.std, self.weight))


class TrainingImages:
    """The encoded images of a split, in parts, as one: row i of them shows image i % images.

    Each of the first parts has as many images as the first one.
    """

    def __init__(self, parts: Sequence[EncodedImages]) -> None:
        self.parts = list(parts)
        self.images = sum(part.images for part in parts)
        self.rows = sum(len(part.mean) for part in parts)
        self.shape = tuple(parts[0].mean.shape[1:])  # [c, h, w] of an image's latents

    def batch(self, rows: Sequence[int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(mean [b, c, h, w], std likewise, weight [b, 1, h, w]) of these rows, on the device."""
        means, stds, weights = [], [], []
        for row in rows:
            mirrored, image = divmod(row, self.images)
            number, at = divmod(image, self.parts[0].images)
            part = self.parts[number]
            at += mirrored * part.images
            means.append(part.mean[at])
            stds.append(part.std[at])
            weights.append(part.weight[at])
        mean, std, weight = torch.stack(means), torch.stack(stds), torch.stack(weights)
        return mean.to(device), std.to(device), weight.to(device)


def training_images(parts: Sequence[EncodedImages], device: torch.device) -> TrainingImages:
    """These parts as one, on a GPU where they are a small part of its memory, else where they are:
    of files the system keeps in memory what fits there."""
    if device.type == "cuda" and fits_on(device, sum(part.size for part in parts)):
        parts = [part.on(device) for part in parts]
    return TrainingImages(parts)


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

    batch_size images at once, or half as many as often as the memory asks for it. beat counts the
    images that are done.
    """
    scale, size, factor = pipe.vae.config.scaling_factor, images.shape[1], pipe.vae_scale_factor
    weight = torch.stack([latent_weight(box, size, factor) for box in boxes])
    means, stds = ([], []), ([], [])  # of the images, and of their mirrored copies
    # Copies are encoded, not mirrored latents: the autoencoder's convolutions are not symmetric.

    def encode(part: slice) -> None:
        pixels, encoded = to_model(images[part]), []
        for flipped in (False, True)[: 1 + mirror]:
            shown = pixels.flip(-1) if flipped else pixels
            posterior = pipe.vae.encode(shown.to(pipe.vae.device)).latent_dist
            encoded.append(((posterior.mean * scale).cpu(), (posterior.std * scale).cpu()))
            beat()
        for flipped, (mean, std) in enumerate(encoded):
            means[flipped].append(mean)
            stds[flipped].append(std)
        beat(len(pixels))

    in_slices(len(images), batch_size, encode)
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
