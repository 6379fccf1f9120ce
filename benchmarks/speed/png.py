"""PNG of grey images against Pillow's default."""

import io

import numpy as np
from PIL import Image

from benchmarks.speed.contest import Contest
from benchmarks.speed.images import simulated_images
from busray.corpus.encode import png_bytes, png_pixels

SIDE, IMAGES = 512, 16
MOST_BYTES = 1.25
"""Most bytes of ours over Pillow's."""


def questions() -> list[Contest]:
    images = simulated_images(IMAGES, SIDE)

    def ours() -> list[bytes]:
        return [png_bytes(image, {}) for image in images]

    def rival() -> list[bytes]:
        return [_pillow(image) for image in images]

    def same() -> str:
        mine, theirs = ours(), rival()
        for image, data in zip(images, mine, strict=True):
            assert np.array_equal(png_pixels(data), image)
        bytes_ratio = sum(map(len, mine)) / sum(map(len, theirs))
        assert bytes_ratio <= MOST_BYTES, bytes_ratio
        return f"pixels identical, {bytes_ratio:.2f} x the bytes"

    return [Contest(f"PNG, {IMAGES} of {SIDE} px", "busray", "Pillow's default", ours, rival, 15, same)]


def _pillow(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()
