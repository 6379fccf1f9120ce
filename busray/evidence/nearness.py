"""Figures of two kinds: the distance of images to the nearest training image; the distances of real
images that the autoencoder encoded and decoded.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from busray.evidence.distances import arm_figures
from busray.evidence.real import REAL_AGAINST_REAL, SYNTHETIC_ONLY, ClassFeatures, RealFeatures
from busray.evidence.stats.intervals import median_interval, wilson
from busray.evidence.stats.neighbours import nearest
from busray.records import CLASS_ALL, REAL, Figure, distance_names

RECONSTRUCTION = "reconstruction"
"""Protocol: real images encoded and decoded by the autoencoder, against real images."""

VAE = "vae"
"""Arm of the reference's own images through the autoencoder; of another split it is
`vae-<split>`."""

DISTANCE, SAME_CLASS = "nearest_train_distance", "nearest_train_class"
"""Median distance to the nearest training image; share of images whose nearest training image is of
their class."""


def nearness_figures(arms: Mapping[str, ClassFeatures], real: RealFeatures, held_out: str) -> list[Figure]:
    """DISTANCE and SAME_CLASS of each arm, overall and by class; the floor: real images of
    `held_out`.

    The nearest image is sought among the training images of all classes, the same for every arm,
    so arms are comparable whatever their n.
    """
    figures: list[Figure] = []
    for arm, images in arms.items():
        figures += _nearness(arm, images, real, floor=False)
    return figures + _nearness(f"{REAL} {held_out}", real.features[held_out], real, floor=True)


def _nearness(arm: str, images: ClassFeatures, real: RealFeatures, floor: bool) -> list[Figure]:
    classes = sorted(real.features["train"])
    train = np.concatenate([real.features["train"][name] for name in classes])
    class_of = np.repeat(classes, [len(real.features["train"][name]) for name in classes])
    distances: dict[str, np.ndarray] = {}
    same_class: dict[str, np.ndarray] = {}
    for name in sorted(images):
        index, distances[name] = nearest(images[name], train)
        same_class[name] = class_of[index] == name
    # Overall first, then each class.
    distances = {CLASS_ALL: np.concatenate(list(distances.values())), **distances}
    same_class = {CLASS_ALL: np.concatenate(list(same_class.values())), **same_class}
    protocol = REAL_AGAINST_REAL if floor else SYNTHETIC_ONLY
    figures: list[Figure] = []
    for name, d in distances.items():
        same = same_class[name]
        # Intervals are over drawn images, with the training images as they are. Real images have
        # none: near-duplicates among them are not independent.
        intervals = (None, None) if floor else (median_interval(d), wilson(int(same.sum()), len(same)))
        values = float(np.median(d)), float(same.mean())
        for metric, value, interval in zip((DISTANCE, SAME_CLASS), values, intervals, strict=True):
            figure = real.figure(
                metric, value, len(d), len(train), "train", protocol, class_name=name, arm=arm, floor=floor
            )
            figures.append(replace(figure, interval=interval))
    return figures


def reconstruction_figures(
    arms: Mapping[str, ClassFeatures],
    real: RealFeatures,
    reference: str,
    units: Mapping[str, Mapping[str, np.ndarray]],
) -> list[Figure]:
    """arm_figures of real images that the autoencoder encoded and decoded.

    units: arm -> class -> labels [n] of independent draws.
    """
    distance, _ = distance_names(real.extractor)
    figures: list[Figure] = []
    for figure in arm_figures(arms, real, reference, [], units):
        # Of VAE only the Frechet distance, without interval: an image and its reconstruction are
        # not independent, as all other statistics assume. Their kernels would make the kernel
        # distance of a perfect autoencoder negative.
        if figure.protocol != SYNTHETIC_ONLY or (figure.arm == VAE and figure.metric != distance):
            continue
        # The spread of the Frechet distance needs independent parts: none where units repeat.
        dependent = figure.arm == VAE or _repeat(units[figure.arm], figure.class_name)
        if figure.metric == distance and dependent:
            figure = replace(figure, interval=None, replicates=None)
        figures.append(replace(figure, protocol=RECONSTRUCTION))
    return figures


def _repeat(units: Mapping[str, np.ndarray], name: str) -> bool:
    """Whether images of the class, or of any class for CLASS_ALL, share a unit."""
    return any(len(np.unique(labels)) < len(labels) for c, labels in units.items() if name in (c, CLASS_ALL))
