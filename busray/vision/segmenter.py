"""A small segmenter of lesions: a U-Net (Ronneberger et al. 2015, arXiv 1505.04597).

It learns from the train split's images and masks, and is chosen on val. It errs, on real images
too: its masks of generated images are compared with its masks of real ones, never with true masks.
On the CPU; the same seed and number of threads give the same weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from busray.records import ContentBox
from busray.vision.classifier import moved, toned
from busray.vision.fitting import cosine, grey_tensor, load_weights, optimise, shrunk, shuffled_rows, weights_of

SIDE = 128  # pixels a side that the network sees; other squares are resized, and its answer back
# Channels of each level; the first has 2 x 2 pixels folded into channels.
WIDTHS = (16, 32, 64, 96, 96)
BATCH = 8
LEARNING_RATE = 3e-3


@dataclass(frozen=True)
class MaskedImages:
    """Images with their lesions and content boxes."""

    pixels: np.ndarray  # uint8 [n, s, s]
    masks: np.ndarray  # bool [n, s, s], true on lesions
    boxes: tuple[ContentBox, ...]


@dataclass(frozen=True)
class Validation:
    """What one validation during training found on val."""

    step: int  # optimiser steps done
    dice: float  # mean over val's images; 1 for one where there is no lesion and none is found


@dataclass(frozen=True)
class Segmenter:
    """A fitted network with the weights of its best validation."""

    weights: dict[str, np.ndarray]  # by tensor name
    chosen: Validation  # the one that the weights are of
    validations: tuple[Validation, ...]  # all of them, by step

    def to_bytes(self) -> bytes:
        """The weights as safetensors; the same segmenter gives the same bytes."""
        from safetensors.numpy import save

        return save(self.weights)

    @staticmethod
    def from_bytes(data: bytes, validations: tuple[Validation, ...]) -> "Segmenter":
        """The weights are of the best validation, the first of equals, as in `fit`."""
        from safetensors.numpy import load

        best = max(validations, key=lambda validation: validation.dice)
        return Segmenter(load(data), best, validations)


def fit(
    train: MaskedImages,
    val: MaskedImages,
    steps: int,
    seed: int,
    beat: Callable[[], None] = lambda: None,
    validated: Callable[[], None] = lambda: None,
) -> Segmenter:
    """Train for so many optimiser steps of BATCH images; keep the step whose Dice on val is best.

    The loss is cross entropy and soft Dice (Milletari et al. 2016, arXiv 1606.04797) over the
    content pixels of a batch; padding does not count. Images are augmented as the classifiers'
    under `classical`. beat is called after every optimiser step and every batch of val, validated
    after each validation. ValueError where no training image has a lesion.
    """
    if not train.masks.any():
        raise ValueError("no training image has a lesion in its mask")
    import torch

    stack, shown = _stacked(train), reduced(val.pixels)
    best: tuple[Validation, dict[str, np.ndarray]] | None = None
    validations: list[Validation] = []
    # The network's weights come from torch's global generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network()
        rows = shuffled_rows(len(stack), BATCH, np.random.default_rng(seed))
        noise = torch.Generator().manual_seed(seed)

        def loss(step: int) -> torch.Tensor:
            return _loss(network, moved(stack[next(rows)], noise), noise)

        def rate(step: int) -> float:
            return LEARNING_RATE * cosine(step, steps, warm=max(1, steps // 20))

        for done in optimise(network, loss, steps, rate, beat):
            masks = _enlarged(_logits(network, shown, beat), val.masks.shape[1]) > 0
            scores = np.nan_to_num(dice(_inside(masks, val.boxes), val.masks), nan=1)
            validations.append(Validation(done, float(scores.mean())))
            if best is None or validations[-1].dice > best[0].dice:
                best = validations[-1], weights_of(network)
            validated()
    assert best is not None
    chosen, weights = best
    return Segmenter(weights, chosen, tuple(validations))


def _network() -> Any:
    """The U-Net, untrained: grey [n, 1, SIDE, SIDE] in 0..1 -> logits of that shape."""
    import torch
    from torch import nn

    def block(inside: int, outside: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for channels in (inside, outside):
            layers.append(nn.Conv2d(channels, outside, 3, padding=1, bias=False))
            layers += [nn.BatchNorm2d(outside), nn.ReLU()]
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
            x, skipped = self.fold(grey - 0.25) * 4, []  # mean 0, deviation 1, roughly
            for i, level in enumerate(self.down):
                x = level(self.pool(x) if i else x)
                skipped.append(x)
            for level, skip in zip(self.up, skipped[-2::-1]):
                x = level(torch.cat([self.grow(x), skip], 1))
            return self.unfold(self.out(x))

    return UNet()


def _loss(network: Any, images: Any, noise: Any) -> Any:
    """Of images float [n, 3, SIDE, SIDE]: grey, lesion, content."""
    from torch.nn import functional

    grey, lesion, content = images[:, :1], images[:, 1:2], images[:, 2:]
    logits = network(toned(grey, noise))
    entropy_of = functional.binary_cross_entropy_with_logits
    entropy = entropy_of(logits, lesion, weight=content, reduction="sum")
    # Two sigmoids, not one: a shared one would add up gradients in another order.
    overlap = (logits.sigmoid() * lesion * content).sum()
    total = ((logits.sigmoid() + lesion) * content).sum()
    # The ones keep a batch without lesions from dividing by 0.
    return entropy / content.sum() + 1 - (2 * overlap + 1) / (total + 1)


def reduced(pixels: np.ndarray) -> np.ndarray:
    """uint8 [n, s, s] -> uint8 [n, SIDE, SIDE], each pixel the mean of those it covers."""
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        shape = list(pixels.shape)
        raise TypeError(f"a segmenter takes uint8 [n, s, s], not {pixels.dtype} {shape}")
    return shrunk(pixels, SIDE)


def _stacked(images: MaskedImages) -> Any:
    """float [n, 3, SIDE, SIDE] in 0..1: grey, lesion, content."""
    import torch

    content = _inside(np.ones_like(images.masks), images.boxes)
    planes = (images.pixels, images.masks.astype(np.uint8) * 255, content.astype(np.uint8) * 255)
    return torch.from_numpy(np.stack([reduced(plane) for plane in planes], 1)).float() / 255


def _inside(masks: np.ndarray, boxes: Sequence[ContentBox]) -> np.ndarray:
    """bool [n, s, s], false outside each one's content."""
    inside = np.zeros_like(masks)
    for out, mask, box in zip(inside, masks, boxes, strict=True):
        content = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
        out[content] = mask[content]
    return inside


def _logits(network: Any, shown: np.ndarray, beat: Callable[[], None]) -> Any:
    """float [n, 1, SIDE, SIDE] of uint8 [n, SIDE, SIDE]."""
    import torch

    network.eval()
    batches = []
    with torch.inference_mode():
        for batch in grey_tensor(shown).split(32):
            batches.append(network(batch))
            beat()
    return torch.cat(batches)


def _enlarged(logits: Any, side: int) -> np.ndarray:
    """float [n, side, side] of logits [n, 1, SIDE, SIDE]."""
    from torch.nn import functional

    if side == SIDE:
        return logits[:, 0].numpy()
    size = (side, side)
    return functional.interpolate(logits, size, mode="bilinear", align_corners=False)[:, 0].numpy()


def segment(
    segmenter: Segmenter, pixels: np.ndarray, boxes: Sequence[ContentBox], beat: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Pseudo-masks bool [n, s, s] of images uint8 [n, s, s]; beat after each batch."""
    if not len(pixels):
        return np.zeros(pixels.shape, bool)
    network = _network()
    load_weights(network, segmenter.weights)
    return _inside(_enlarged(_logits(network, reduced(pixels), beat), pixels.shape[1]) > 0, boxes)


def dice(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Dice of masks bool [n, s, s], float [n]: twice the overlap over both areas, or NaN."""
    overlap, total = (found & truth).sum((1, 2)), found.sum((1, 2)) + truth.sum((1, 2))
    return np.divide(2.0 * overlap, total, out=np.full(len(found), np.nan), where=total > 0)
