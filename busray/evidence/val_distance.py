"""A quick distance of drawn images to the val images, for training to look at.

The mean over classes of the KID (evidence/stats/kernel.py) of a class's drawn images against its
val images. Features are those of EfficientNet-Lite0, or texture where its weights are not
installed. With so few images it orders the weights of one training, whose images share seeds; it is
no figure of the report.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from busray.data.images import Images
from busray.evidence.stats.kernel import FEWEST_TO_JACKKNIFE, kid
from busray.records import ContentBox
from busray.vision import efficientnet, texture

EFFICIENTNET = "efficientnet-lite0"
MOST_IMAGES = 64
"""Val images of a class that are enough."""


@dataclass(frozen=True)
class ValImages:
    """The val images of each class that has enough of them, as features."""

    extractor: str
    features: Mapping[str, np.ndarray]  # class -> [n, d]
    units: Mapping[str, np.ndarray]  # class -> str [n]; images of one unit count once
    mean: np.ndarray  # [d]; features of texture are scaled by it and `sd`
    sd: np.ndarray

    def distance(self, drawn: Mapping[str, np.ndarray], boxes: Mapping[str, Sequence[ContentBox]]) -> float:
        """Of drawn images uint8 [n, s, s] by class, with their content boxes."""
        distances = []
        for name, of_val in self.features.items():
            features = (described(self.extractor, drawn[name], boxes[name]) - self.mean) / self.sd
            distances.append(kid(features, of_val, self.units[name]).value)
        return float(np.mean(distances))


def extractor_at_hand() -> str:
    """EFFICIENTNET, or texture's name where its weights are not installed."""
    return EFFICIENTNET if efficientnet.is_installed() else texture.NAME


def described(
    extractor: str, images: np.ndarray, boxes: Sequence[ContentBox], beat: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Features [n, d] of images uint8 [n, s, s]."""
    if extractor == EFFICIENTNET:
        return efficientnet.features(images, beat)
    return texture.texture_features(images, boxes)


def val_images(images: Images, classes: Sequence[str], extractor: str, beat: Callable[[], None]) -> ValImages | None:
    """The features of these val images; None where no class has enough of them, or where they are
    too small for texture."""
    smallest = min((min(box.width, box.height) for box in images.boxes), default=0)
    if extractor == texture.NAME and smallest < texture.SMALLEST:
        return None
    rows = {}
    for number, name in enumerate(classes):
        of_class = np.flatnonzero(images.labels == number)
        if len(set(images.units[of_class])) >= FEWEST_TO_JACKKNIFE:
            rows[name] = of_class
    if not rows:
        return None
    raw = {}
    for name, of_class in rows.items():
        raw[name] = described(extractor, images.pixels[of_class], [images.boxes[row] for row in of_class], beat)
        beat()
    every = np.concatenate(list(raw.values()))
    mean, sd = np.zeros(every.shape[1]), np.ones(every.shape[1])
    if extractor != EFFICIENTNET:  # features of texture have units of their own
        mean, sd = every.mean(0), every.std(0)
        sd[sd == 0] = 1
    units = {name: images.units[of_class] for name, of_class in rows.items()}
    return ValImages(extractor, {name: (values - mean) / sd for name, values in raw.items()}, units, mean, sd)
