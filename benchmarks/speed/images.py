"""The simulated images that the benchmarks work on."""

import numpy as np

from busray.data.phantom import CLASSES, PROBES, phantom


def simulated_images(count: int, side: int) -> list[np.ndarray]:
    """Grey uint8 [side, side], of all classes in turn."""
    images = []
    for i in range(count):
        images.append(phantom(i, CLASSES[i % len(CLASSES)], PROBES["general"], (side, side)).image)
    return images
