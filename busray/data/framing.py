"""Framing: how an image of any size becomes the model's square. Only the image's size decides.

`letterbox` scales the image to fit and pads it with black, `centre` takes the middle square,
`stretch` scales both sides to the square's.
"""

import numpy as np
from PIL import Image

from busray.records import ContentBox

FRAMINGS = ("letterbox", "centre", "stretch")


def content_box(width: int, height: int, size: int, framing: str) -> ContentBox:
    """Where an image of width x height lies in a square of side `size`, in pixels.

    Only letterbox leaves a part of the square empty.
    """
    if framing != "letterbox":
        return ContentBox(0, 0, size, size)
    scale = min(size / width, size / height)
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    return ContentBox((size - w) // 2, (size - h) // 2, w, h)


def frame(image: np.ndarray, size: int, framing: str) -> np.ndarray:
    """uint8 [h, w] -> uint8 [size, size]."""
    return _place(_crop(image, framing), size, framing, Image.Resampling.LANCZOS)


def frame_mask(mask: np.ndarray, size: int, framing: str) -> np.ndarray:
    """bool [h, w] -> bool [size, size], framed as its image is."""
    pixels = _crop(mask, framing).astype(np.uint8) * 255
    return _place(pixels, size, framing, Image.Resampling.NEAREST) > 127


def cut_share(mask: np.ndarray, framing: str) -> float:
    """Share of a lesion's pixels (bool [h, w]) that the framing cuts off; 0 for an empty mask."""
    total = int(mask.sum())
    return 1 - int(_crop(mask, framing).sum()) / total if total else 0.0


def _crop(image: np.ndarray, framing: str) -> np.ndarray:
    if framing != "centre":
        return image
    height, width = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def _place(image: np.ndarray, size: int, framing: str, resampling: Image.Resampling) -> np.ndarray:
    """The cropped image uint8 [h, w], resized into its content box of a black square."""
    box = content_box(image.shape[1], image.shape[0], size, framing)
    pixels = Image.fromarray(np.ascontiguousarray(image)).resize((box.width, box.height), resampling)
    square = np.zeros((size, size), np.uint8)
    square[box.top : box.top + box.height, box.left : box.left + box.width] = np.asarray(pixels)
    return square
