"""What judges the texture of decoded images: a patch discriminator that learns, frozen features.

Frechet distances are of Inception, so the features here are another network's: EfficientNet-Lite0.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from busray.vision import efficientnet

CRITIC_WIDTHS = (24, 48, 96)


SCALES = 2
"""The critic sees an image at full and at half resolution."""


TAPS = (0, 2, 4)
"""Blocks of Lite0 whose outputs count: at 1/2, 1/4 and 1/8 of the resolution."""


class Critic(nn.Module):
    """A patch discriminator for each scale (Isola et al. 2017, arXiv 1611.07004), spectrally
    normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ModuleList(_patches() for _ in range(SCALES))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """[b, 1, h, w] -> a map of verdicts [b, 1, h', w'] for each scale; high means real."""
        verdicts = []
        for i, scale in enumerate(self.scales):
            verdicts.append(scale(F.avg_pool2d(images, 2**i) if i else images))
        return verdicts


def _patches() -> nn.Sequential:
    layers: list[nn.Module] = []
    inside = 1
    for i, width in enumerate(CRITIC_WIDTHS):
        convolution = nn.Conv2d(inside, width, 3 if i == 0 else 4, stride=1 if i == 0 else 2, padding=1)
        layers += [nn.utils.parametrizations.spectral_norm(convolution), nn.LeakyReLU(0.2)]
        inside = width
    return nn.Sequential(*layers, nn.Conv2d(inside, 1, 3, padding=1))


def critic_loss(critic: Critic, real: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """Hinge loss of the critic; made carries no gradient."""
    pairs = zip(critic(real), critic(made.detach()), strict=True)
    return torch.stack([F.relu(1 - a).mean() + F.relu(1 + b).mean() for a, b in pairs]).mean()


def maker_loss(critic: Critic, made: torch.Tensor) -> torch.Tensor:
    """What the decoder lowers by being taken for real."""
    return -torch.stack([verdict.mean() for verdict in critic(made)]).mean()


class Features:
    """Frozen features of grey images, and how far those of two batches are apart."""

    def __init__(self) -> None:
        self.network: Any = efficientnet.load().requires_grad_(False)

    def __call__(self, images: torch.Tensor) -> list[torch.Tensor]:
        """[b, 1, h, w] in -1..1 -> features [b, c, h', w'] of each tap."""
        x = (images.expand(-1, 3, -1, -1) * 127.5 + 0.5) / 128  # as the weights were trained
        x = F.relu6(self.network._bn0(self.network._conv_stem(x)))
        taps = []
        for i, block in enumerate(self.network._blocks[: TAPS[-1] + 1]):
            x = block(x)
            if i in TAPS:
                taps.append(x)
        return taps

    def distances(self, made: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(differences in place, differences of each channel's spread), both relative, mean over
        taps.

        The second does not ask where a grain lies, so it is what texture is compared by.
        """
        with torch.no_grad():
            wanted = self(real)
        place, spread = [], []
        for a, b in zip(self(made), wanted, strict=True):
            place.append((a - b).abs().mean() / b.abs().mean())
            deviation = b.std((2, 3))
            spread.append((a.std((2, 3)) - deviation).abs().mean() / deviation.mean())
        return torch.stack(place).mean(), torch.stack(spread).mean()
