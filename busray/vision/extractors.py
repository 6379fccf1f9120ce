"""The extractors that evaluate.extractors names: what of each must be there before work starts, and how one is made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from busray.config import Evaluate
from busray.records import INCEPTION, ContentBox, UserError
from busray.vision import texture
from busray.vision.classifier import Classifier, predict, represent
from busray.vision.dinov2 import DinoFeatures, DinoWeights, find_dino_weights
from busray.vision.inception import InceptionFeatures, InceptionWeights, find_weights
from busray.vision.lesion_shape import measures
from busray.vision.segmenter import Segmenter, segment

Features = Callable[[np.ndarray, Sequence[ContentBox]], np.ndarray]
"""uint8 images [n, s, s] and where their content lies -> features [n, d]"""


@dataclass(frozen=True)
class Extractor:
    """An extractor by the name that its figures and stored features carry; `weights` are None where it has none."""

    name: str
    weights: InceptionWeights | DinoWeights | Segmenter | Classifier | None
    """Segmenters and classifiers compute on the CPU; their features are a lesion's measures, and probabilities [n,
    classes]."""

    def load(self, device: str) -> Features:
        """The function itself, ready on a device; one without weights computes on the CPU."""
        if self.weights is None:
            return texture.texture_features
        if isinstance(self.weights, Segmenter):
            segmenter = self.weights
            return lambda images, boxes: measures(segment(segmenter, images, boxes), boxes)
        if isinstance(self.weights, Classifier):
            judge = self.weights
            return lambda images, boxes: predict(judge, represent(images, judge.architecture))
        kind = InceptionFeatures if isinstance(self.weights, InceptionWeights) else DinoFeatures
        network = kind(self.weights, device)  # pyright: ignore[reportArgumentType] (the kind is that of the weights)
        return lambda images, boxes: network(images)


def find_extractors(settings: Evaluate) -> dict[str, Extractor]:
    """name -> extractor, in the order of evaluate.extractors; UserError where weights are not to be had."""
    found = []
    for kind in settings.extractors:
        if kind == "inception":
            found.append(Extractor(INCEPTION, find_weights(settings.inception)))
        elif kind == "dinov2":
            weights = find_dino_weights(settings.dinov2)
            found.append(Extractor(weights.name, weights))
        else:
            found.append(Extractor(texture.NAME, None))
    return {extractor.name: extractor for extractor in found}


def refuse_small_content(extractors: dict[str, Extractor], boxes: Sequence[tuple[str, ContentBox]]) -> None:
    """UserError where texture is wanted and an image, given as (file, content box), is framed too small for it."""
    for file, box in boxes if texture.NAME in extractors else ():
        if min(box.width, box.height) < texture.SMALLEST:
            raise UserError(
                f"evaluate.extractors: {file} is framed to {box.width} x {box.height} px, and texture needs "
                f"{texture.SMALLEST} on each side: leave texture out, or change dataset.frame or base.size"
            )
