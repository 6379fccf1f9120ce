"""The extractors of evaluate.extractors: their weights are found before work starts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from busray.config import Evaluate
from busray.records import INCEPTION, ContentBox, UserError
from busray.vision import texture
from busray.vision.classifier import Classifier, probabilities
from busray.vision.dinov2 import DinoFeatures, DinoWeights, find_dino_weights
from busray.vision.inception import InceptionFeatures, InceptionWeights, find_weights
from busray.vision.lesion_shape import measures
from busray.vision.segmenter import Segmenter, segment

Features = Callable[[np.ndarray, Sequence[ContentBox]], np.ndarray]
"""Images uint8 [n, s, s] and their content boxes -> features float [n, d]."""


@dataclass(frozen=True)
class Extractor:
    """What turns images into features. It travels to the workers, which load it."""

    name: str  # as in figures and in the keys of stored features
    # None of texture. A segmenter gives measures of lesions, a classifier probabilities.
    weights: InceptionWeights | DinoWeights | Segmenter | Classifier | None

    def load(self, device: str) -> Features:
        """The function, ready to call; only Inception and DINOv2 compute on the device."""
        weights = self.weights
        if weights is None:
            return texture.texture_features
        if isinstance(weights, Segmenter):
            return lambda images, boxes: measures(segment(weights, images, boxes), boxes)
        if isinstance(weights, Classifier):
            return lambda images, boxes: probabilities(weights, images)
        if isinstance(weights, InceptionWeights):
            network = InceptionFeatures(weights, device)
        else:
            network = DinoFeatures(weights, device)
        return lambda images, boxes: network(images)


def find_extractors(settings: Evaluate) -> dict[str, Extractor]:
    """name -> extractor, in the order of the setting. UserError where weights are missing."""
    extractors = {}
    for kind in settings.extractors:
        if kind == "inception":
            name, weights = INCEPTION, find_weights(settings.inception)
        elif kind == "dinov2":
            weights = find_dino_weights(settings.dinov2)
            name = weights.name
        else:
            name, weights = texture.NAME, None
        extractors[name] = Extractor(name, weights)
    return extractors


def refuse_small_content(extractors: dict[str, Extractor], boxes: Sequence[tuple[str, ContentBox]]) -> None:
    """UserError where texture is wanted and the content of a (file, box) is too small."""
    for file, box in boxes if texture.NAME in extractors else ():
        if min(box.width, box.height) < texture.SMALLEST:
            raise UserError(
                f"evaluate.extractors: {file} is framed to {box.width} x {box.height} px, and texture "
                f"needs {texture.SMALLEST} on each side: leave texture out, or change dataset.frame or "
                "base.size"
            )
