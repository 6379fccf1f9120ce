"""Openly licensed real scans as training data: `openus`, which holds no scan of a breast.

Its PROVENANCE.json files name licences, citations and what a release must confirm first. Images of
BUSI and BUS-BRA never come here.
"""

import json
from pathlib import Path

import numpy as np

from busray.data.framing import frame
from busray.data.pixels import read_grey
from tools.tiny_base.pictures import SIDE

VIEWS = {"hc18": 2, "timtrack_cc0": 8, "timtrack_ccby": 8}
"""Folder -> views of each of its images. Muscle is nearest to breast and rarest, so it has most."""


def views(image: np.ndarray, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """uint8 [h, w] -> so many uint8 [SIDE, SIDE]: the whole image, then crops; all letterboxed.

    A crop has 50 to 100 % of each side. So depth and stretch vary.
    """
    made = [frame(image, SIDE, "letterbox")]
    height, width = image.shape
    for _ in range(count - 1):
        h, w = (int(rng.uniform(0.5, 1) * side) for side in (height, width))
        top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        made.append(frame(image[top : top + h, left : left + w], SIDE, "letterbox"))
    return made


def load_openus(folder: Path, seed: int) -> np.ndarray:
    """All views of all images, uint8 [n, SIDE, SIDE]; FileNotFoundError where a part is missing."""
    made: list[np.ndarray] = []
    for name, count in VIEWS.items():
        provenance = json.loads((folder / name / "PROVENANCE.json").read_text())
        paths = sorted((folder / name).glob("*.png"))
        if len(paths) != provenance["images"]:
            raise FileNotFoundError(
                f"{folder / name}: {len(paths)} images, PROVENANCE.json says {provenance['images']}"
            )
        for i, path in enumerate(paths):
            made += views(read_grey(path), count, np.random.default_rng([seed, i]))
    return np.stack(made)
