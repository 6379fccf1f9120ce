"""A small segmenter of lesions: a U-Net (Ronneberger et al. 2015, arXiv 1505.04597) from random weights, fitted on the
train split's images and masks, chosen on val, and nothing else.

It gives drawn images pseudo-masks. It errs, on real images too: what is measured by it is compared with real images
measured by it, never with true masks. On the CPU; the same seed and threads give the same weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from busray.records import Box
from busray.vision.classifier import moved, toned

SIDE = 128
"""Pixels a side that the network sees: larger squares are reduced to it, its answer is enlarged again."""


WIDTHS = (16, 32, 64, 96, 96)
"""Channels of each level; the first has SIDE / 2 pixels a side, with 2 x 2 pixels folded into channels."""


BATCH = 8


LEARNING_RATE = 3e-3


CHECKS = 10
"""Times in a fit at which val is looked at; the best of them is kept."""


@dataclass(frozen=True)
class Masked:
    """Images uint8 [n, s, s] with their lesions bool [n, s, s] (empty where there is none) and content boxes [n]."""

    pixels: np.ndarray
    masks: np.ndarray
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Look:
    """One look at val during training: the mean over its images of Dice, which is 1 where there is nothing to find and
    nothing found."""

    step: int
    dice: float


@dataclass(frozen=True)
class Segmenter:
    """A fitted network: `weights` by tensor name; `looks` are all looks at val, `chosen` the one that was kept."""

    weights: dict[str, np.ndarray]
    chosen: Look
    looks: tuple[Look, ...]

    def to_bytes(self) -> bytes:
        """The weights as safetensors; the same segmenter gives the same bytes."""
        from safetensors.numpy import save

        return save(self.weights)

    @staticmethod
    def from_bytes(data: bytes, looks: tuple[Look, ...]) -> "Segmenter":
        from safetensors.numpy import load

        return Segmenter(load(data), max(looks, key=lambda look: look.dice), looks)


def fit(
    train: Masked,
    val: Masked,
    steps: int,
    seed: int,
    beat: Callable[[], None] = lambda: None,
    looked: Callable[[], None] = lambda: None,
) -> Segmenter:
    """Train for so many optimiser steps of BATCH images; keep the step whose Dice on val is best.

    The loss is cross entropy and soft Dice (Milletari et al. 2016, arXiv 1606.04797) over a batch's content pixels:
    padding carries none. Images are mirrored, turned, moved, scaled and toned as the classifiers' under `classical`.
    beat is called after every optimiser step and every batch of val, looked after each look at val. ValueError where
    there is no lesion to learn from.
    """
    if not train.masks.any():
        raise ValueError("no training image has a lesion in its mask")
    import torch

    from tools.tiny_base.training import cosine

    best: tuple[Look, dict[str, np.ndarray]] | None = None
    looks: list[Look] = []
    checked = {round(steps * (i + 1) / CHECKS) for i in range(CHECKS)}
    stack, shown = _stacked(train), reduced(val.pixels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network()
        optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
        order, noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        waiting = np.zeros(0, np.int64)
        for step in range(1, steps + 1):
            while len(waiting) < BATCH:
                waiting = np.concatenate([waiting, order.permutation(len(stack))])
            picked, waiting = waiting[:BATCH], waiting[BATCH:]
            network.train()
            for group in optimiser.param_groups:
                group["lr"] = LEARNING_RATE * cosine(step - 1, steps, warm=max(1, steps // 20))
            loss = _loss(network, moved(stack[picked], noise), noise)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            beat()
            if step in checked:
                found = _enlarged(_logits(network, shown, beat), val.masks.shape[1]) > 0
                looks.append(Look(step, float(np.nan_to_num(dice(_inside(found, val.boxes), val.masks), nan=1).mean())))
                if best is None or looks[-1].dice > best[0].dice:
                    best = looks[-1], {k: v.detach().numpy().copy() for k, v in network.state_dict().items()}
                looked()
    assert best is not None
    return Segmenter(best[1], best[0], tuple(looks))


def _network() -> Any:
    """The U-Net with random weights: grey [n, 1, SIDE, SIDE] in 0..1 -> logits of the same shape."""
    import torch
    from torch import nn

    def block(inside: int, outside: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for channels in (inside, outside):
            layers += [nn.Conv2d(channels, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
        return nn.Sequential(*layers)

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fold, self.unfold = nn.PixelUnshuffle(2), nn.PixelShuffle(2)
            self.down = nn.ModuleList(block(i, o) for i, o in zip((4, *WIDTHS), WIDTHS))
            self.up = nn.ModuleList(block(i + o, o) for i, o in zip(WIDTHS[:0:-1], WIDTHS[-2::-1]))
            self.pool, self.grow = nn.MaxPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear")
            self.out = nn.Conv2d(WIDTHS[0], 4, 1)

        def forward(self, grey: torch.Tensor) -> torch.Tensor:
            x, kept = self.fold(grey - 0.25) * 4, []
            for i, level in enumerate(self.down):
                x = level(self.pool(x) if i else x)
                kept.append(x)
            for level, beside in zip(self.up, kept[-2::-1]):
                x = level(torch.cat([self.grow(x), beside], 1))
            return self.unfold(self.out(x))

    return UNet()


def _loss(network: Any, images: Any, noise: Any) -> Any:
    """Of images float [n, 3, SIDE, SIDE]: grey, lesion, content."""
    from torch.nn import functional

    grey, lesion, content = images[:, :1], images[:, 1:2], images[:, 2:]
    logits = network(toned(grey, noise))
    entropy = functional.binary_cross_entropy_with_logits(logits, lesion, weight=content, reduction="sum")
    overlap, total = (logits.sigmoid() * lesion * content).sum(), ((logits.sigmoid() + lesion) * content).sum()
    return entropy / content.sum() + 1 - (2 * overlap + 1) / (total + 1)


def reduced(pixels: np.ndarray) -> np.ndarray:
    """uint8 [n, s, s] -> uint8 [n, SIDE, SIDE], each pixel the mean of those it covers."""
    import torch
    from torch.nn import functional

    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        raise TypeError(f"a segmenter takes uint8 [n, s, s], not {pixels.dtype} {list(pixels.shape)}")
    if pixels.shape[1:] == (SIDE, SIDE) or not len(pixels):
        return pixels.reshape(-1, SIDE, SIDE)
    grey = torch.from_numpy(np.ascontiguousarray(pixels))[:, None].float()
    return functional.adaptive_avg_pool2d(grey, SIDE)[:, 0].round().byte().numpy()


def _stacked(images: Masked) -> Any:
    """float [n, 3, SIDE, SIDE] in 0..1: grey, lesion, content."""
    import torch

    content = _inside(np.ones_like(images.masks), images.boxes)
    planes = (images.pixels, images.masks.astype(np.uint8) * 255, content.astype(np.uint8) * 255)
    return torch.from_numpy(np.stack([reduced(plane) for plane in planes], 1)).float() / 255


def _inside(masks: np.ndarray, boxes: Sequence[Box]) -> np.ndarray:
    """bool [n, s, s], false outside each one's content."""
    kept = np.zeros_like(masks)
    for out, mask, box in zip(kept, masks, boxes, strict=True):
        content = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
        out[content] = mask[content]
    return kept


def _logits(network: Any, shown: np.ndarray, beat: Callable[[], None]) -> Any:
    """float [n, 1, SIDE, SIDE] of uint8 [n, SIDE, SIDE]."""
    import torch

    network.eval()
    with torch.inference_mode():
        grey = torch.from_numpy(np.ascontiguousarray(shown))[:, None].float() / 255
        batches = []
        for batch in grey.split(32):
            batches.append(network(batch))
            beat()
        return torch.cat(batches)


def _enlarged(logits: Any, side: int) -> np.ndarray:
    """float [n, side, side] of logits [n, 1, SIDE, SIDE]."""
    from torch.nn import functional

    if side == SIDE:
        return logits[:, 0].numpy()
    return functional.interpolate(logits, (side, side), mode="bilinear", align_corners=False)[:, 0].numpy()


def segment(
    segmenter: Segmenter, pixels: np.ndarray, boxes: Sequence[Box], beat: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Pseudo-masks bool [n, s, s] of images uint8 [n, s, s]; inside the content, likelier lesion than not.

    beat is called after each batch.
    """
    import torch

    if not len(pixels):
        return np.zeros(pixels.shape, bool)
    network = _network()
    network.load_state_dict({name: torch.from_numpy(value) for name, value in segmenter.weights.items()})
    return _inside(_enlarged(_logits(network, reduced(pixels), beat), pixels.shape[1]) > 0, boxes)


def dice(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Dice of masks bool [n, s, s], float [n]: twice the overlap over both areas; NaN where both are empty."""
    overlap, total = (found & truth).sum((1, 2)), found.sum((1, 2)) + truth.sum((1, 2))
    return np.divide(2.0 * overlap, total, out=np.full(len(found), np.nan), where=total > 0)
