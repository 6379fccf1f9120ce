"""Framing: how an image of any size becomes the model's square. It depends on the image's size alone."""

import numpy as np
from PIL import Image

from busray.records import Box


def content_box(width: int, height: int, size: int, policy: str) -> Box:
    """Where an image of width x height lies in the square of side `size`; the whole square but for letterbox."""
    if policy != "letterbox":
        return Box(0, 0, size, size)
    scale = min(size / width, size / height)
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    return Box((size - w) // 2, (size - h) // 2, w, h)


def frame(image: np.ndarray, size: int, policy: str) -> np.ndarray:
    """uint8 [h, w] -> uint8 [size, size]. letterbox: scaled to fit, black bars; centre: the middle square; stretch."""
    return _place(_resize(_cut(image, policy), size, policy, Image.Resampling.LANCZOS), size, policy, image.shape)


def frame_mask(mask: np.ndarray, size: int, policy: str) -> np.ndarray:
    """bool [h, w] -> bool [size, size], framed as its image is."""
    pixels = _cut(mask, policy).astype(np.uint8) * 255
    return _place(_resize(pixels, size, policy, Image.Resampling.NEAREST), size, policy, mask.shape) > 127


def cut_share(mask: np.ndarray, policy: str) -> float:
    """Share of a lesion's pixels (bool [h, w]) that the policy cuts away; 0 for an empty mask."""
    total = int(mask.sum())
    return 1 - int(_cut(mask, policy).sum()) / total if total else 0.0


def _cut(image: np.ndarray, policy: str) -> np.ndarray:
    if policy != "centre":
        return image
    height, width = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def _resize(image: np.ndarray, size: int, policy: str, resampling: Image.Resampling) -> np.ndarray:
    box = content_box(image.shape[1], image.shape[0], size, policy)
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((box.width, box.height), resampling))


def _place(content: np.ndarray, size: int, policy: str, shape: tuple[int, ...]) -> np.ndarray:
    box = content_box(shape[1], shape[0], size, policy)
    square = np.zeros((size, size), np.uint8)
    square[box.top : box.top + box.height, box.left : box.left + box.width] = content
    return square
