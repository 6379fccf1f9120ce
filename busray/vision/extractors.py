"""The extractors of evaluate.extractors: their weights are found before work starts, and loaded."""

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

    name: str
    """As in figures and in the keys of stored features."""
    weights: InceptionWeights | DinoWeights | Segmenter | Classifier | None
    """None of texture. A segmenter gives measures of lesions, a classifier probabilities."""

    def load(self, device: str) -> Features:
        """The function, ready to call; only Inception and DINOv2 compute on the device."""
        if self.weights is None:
            return texture.texture_features
        if isinstance(self.weights, Segmenter):
            segmenter = self.weights
            return lambda images, boxes: measures(segment(segmenter, images, boxes), boxes)
        if isinstance(self.weights, Classifier):
            classifier = self.weights
            return lambda images, boxes: probabilities(classifier, images)
        kind = InceptionFeatures if isinstance(self.weights, InceptionWeights) else DinoFeatures
        network = kind(self.weights, device)  # pyright: ignore[reportArgumentType] (the kind is that of the weights)
        return lambda images, boxes: network(images)


def find_extractors(settings: Evaluate) -> dict[str, Extractor]:
    """name -> extractor, in the order of the setting. UserError where weights are missing."""
    extractors = []
    for kind in settings.extractors:
        if kind == "inception":
            extractors.append(Extractor(INCEPTION, find_weights(settings.inception)))
        elif kind == "dinov2":
            weights = find_dino_weights(settings.dinov2)
            extractors.append(Extractor(weights.name, weights))
        else:
            extractors.append(Extractor(texture.NAME, None))
    return {extractor.name: extractor for extractor in extractors}


def refuse_small_content(extractors: dict[str, Extractor], boxes: Sequence[tuple[str, ContentBox]]) -> None:
    """UserError where texture is wanted and the content of a (file, box) is too small."""
    for file, box in boxes if texture.NAME in extractors else ():
        if min(box.width, box.height) < texture.SMALLEST:
            raise UserError(
                f"evaluate.extractors: {file} is framed to {box.width} x {box.height} px, and texture needs "
                f"{texture.SMALLEST} on each side: leave texture out, or change dataset.frame or base.size"
            )
