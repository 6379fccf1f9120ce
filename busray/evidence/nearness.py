"""Nearness of drawn images to the training images, and real images through the autoencoder, as figures."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from busray.evidence.distances import arm_figures
from busray.evidence.real import ClassFeatures, RealFeatures
from busray.evidence.stats.intervals import median_interval, wilson
from busray.evidence.stats.neighbours import nearest
from busray.records import CLASS_ALL, REAL, Figure, distance_names

RECONSTRUCTION = "reconstruction"
"""Protocol of real images encoded and decoded by the autoencoder, against real images."""


VAE = "vae"
"""Arm of the reference's own images so made; those of another split are `vae-<split>`."""


DISTANCE, SAME_CLASS = "nearest_train_distance", "nearest_train_class"
"""Median distance to the nearest training image; share of images whose nearest training image is of their class."""


def nearness_figures(arms: Mapping[str, ClassFeatures], real: RealFeatures, held_out: str) -> list[Figure]:
    """DISTANCE and SAME_CLASS of each arm, overall and a class, and as floor those of the real images of `held_out`.

    The nearest one is looked for among the training images of all classes, for every arm the same ones, so that arms
    are comparable whatever their n. The intervals are over drawn images, with the training images as they are; the
    real images have none, since near-duplicates among them are not independent.
    """
    training = real.features["train"]
    classes = sorted(training)
    train = np.concatenate([training[name] for name in classes])
    owners = np.repeat(np.arange(len(classes)), [len(training[name]) for name in classes])
    figures = []
    sides = [(arm, images, "synthetic-only", False) for arm, images in arms.items()]
    floor = (f"{REAL} {held_out}", real.features[held_out], "real-against-real", True)
    for arm, images, protocol, is_floor in [*sides, floor]:
        distances, same = {}, {}
        for name in sorted(images):
            index, distances[name] = nearest(images[name], train)
            same[name] = owners[index] == classes.index(name)
        for name in (CLASS_ALL, *sorted(images)):
            d = np.concatenate(list(distances.values())) if name == CLASS_ALL else distances[name]
            s = np.concatenate(list(same.values())) if name == CLASS_ALL else same[name]
            common = (len(d), len(train), "train", protocol, real.extractor, name, arm, real.frame, real.size)
            intervals = (None, None) if is_floor else (median_interval(d), wilson(int(s.sum()), len(s)))
            figures.append(Figure(DISTANCE, float(np.median(d)), intervals[0], *common, floor=is_floor))
            figures.append(Figure(SAME_CLASS, float(s.mean()), intervals[1], *common, floor=is_floor))
    return figures


def reconstruction_figures(
    arms: Mapping[str, ClassFeatures], real: RealFeatures, reference: str, units: Mapping[str, Mapping[str, np.ndarray]]
) -> list[Figure]:
    """arm_figures of real images that the autoencoder encoded and decoded, units their labels of independent draws.

    Of VAE the Frechet distance alone, without interval: an image and its own reconstruction are not independent, which
    the intervals, the permutations, the classifier's halves and a line through 1/n all take them to be. Nor has it a
    kernel distance: the kernels of images with their own reconstructions would make it negative for a perfect
    autoencoder. The Frechet distance's spread is over parts that must be independent: none where units repeat.
    """
    distance, _ = distance_names(real.extractor)
    figures = []
    for f in arm_figures(arms, real, reference, [], units):
        if f.protocol != "synthetic-only" or (f.arm == VAE and f.metric != distance):
            continue
        made = replace(f, protocol=RECONSTRUCTION)
        if f.metric == distance and (f.arm == VAE or _repeat(units[f.arm], f.class_name)):
            made = replace(made, interval=None, replicates=None)
        figures.append(made)
    return figures


def _repeat(units: Mapping[str, np.ndarray], name: str) -> bool:
    """Whether images of the class, or of any for CLASS_ALL, share a unit."""
    return any(len(np.unique(labels)) < len(labels) for c, labels in units.items() if name in (c, CLASS_ALL))
