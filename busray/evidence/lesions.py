"""Size and shape of lesions, drawn and real, as figures. vision/lesion_shape.py measures them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from busray.evidence.real import REAL_AGAINST_REAL, SYNTHETIC_ONLY, ClassFeatures, RealFeatures
from busray.evidence.stats.intervals import jackknife_mean, share_of_units
from busray.evidence.stats.samples import FEWEST_UNITS, Sample, random_subset
from busray.evidence.stats.wasserstein import enough_permutations, wasserstein, wasserstein_p_value
from busray.records import CLASS_ALL, REAL, Figure
from busray.vision.lesion_shape import COLUMNS, MEASURES, NAME

LESION_FLOOR_SPLIT = {"test": "val", "val": "test"}
"""reference -> the split that its floor compares it with. Not train: the segmenter was trained on
it, so its pseudo-masks of training images are too good."""

DICE, LESION_FOUND, TALLER = "lesion_dice", "lesion_found", "lesion_taller_than_wide"
"""Dice of the segmenter's masks on real test images with lesions; share of images with a lesion;
share of lesions whose aspect is above 1."""


@dataclass(frozen=True)
class DiceScores:
    """Dice [n] of the segmenter on test images with lesions, with their classes and units [n]."""

    dice: np.ndarray
    classes: np.ndarray
    units: np.ndarray
    trained_on: int
    """Images."""


def unmeasurable(masks: Mapping[str, np.ndarray]) -> str | None:
    """Why masks bool [n, s, s] by split allow no figure; None where they do."""
    for split, of_split in masks.items():
        n = int(of_split.any((1, 2)).sum())
        if n < FEWEST_UNITS:
            return f"{n} {split} images have a mask with a lesion, and {FEWEST_UNITS} are needed (files NAME_mask.png)"
    return None


def dice_figures(scores: DiceScores, frame: str, size: int) -> list[Figure]:
    """DICE overall and by class, its interval over test units; n counts training images."""
    segmenter = RealFeatures({}, {}, NAME, frame, size)
    figures: list[Figure] = []
    for name in (CLASS_ALL, *sorted(set(scores.classes.tolist()))):
        of_class = (scores.classes == name) | (name == CLASS_ALL)
        dice, units = scores.dice[of_class], scores.units[of_class]
        if len(np.unique(units)) >= FEWEST_UNITS:
            n = scores.trained_on, len(dice)
            mean = jackknife_mean(dice, units)
            figures.append(segmenter.figure(DICE, mean, *n, "test", "single-split", class_name=name, arm=REAL))
    return figures


class _Side(NamedTuple):
    """An arm, or the floor in its place."""

    arm: str
    samples: Mapping[str, Sample]
    floor: bool

    @property
    def protocol(self) -> str:
        return REAL_AGAINST_REAL if self.floor else SYNTHETIC_ONLY


class _Test(NamedTuple):
    """The lesions of one side and of the reference, whose distributions a p-value compares."""

    measure: str
    side: _Side
    class_name: str
    lesions: Sample
    others: Sample


def geometry_figures(
    arms: Mapping[str, ClassFeatures], real: RealFeatures, truth: RealFeatures, reference: str
) -> list[Figure]:
    """Shares, means and distances of every class's lesions.

    arms, real, truth: lesion_shape.measures as features, the arms' in random order. `real` are
    those of pseudo-masks, `truth` those of the data set's own masks.

    LESION_FOUND, TALLER and the mean of each of MEASURES: for the arms, for the real images of
    `reference` by both kinds of masks, and for the floor. A mean is over the lesions found, and
    so is n.

    Wasserstein-1 distances of arms and floor to `reference` with p-values, by pseudo-masks only.
    """
    others = real.split(reference)
    floor_split = LESION_FLOOR_SPLIT[reference]
    sides = [_Side(f"{REAL} {floor_split}", real.split(floor_split), floor=True)]
    for arm, by_class in arms.items():
        samples = {name: Sample.drawn(by_class[name], name) for name in sorted(by_class)}
        sides.append(_Side(arm, samples, floor=False))
    figures: list[Figure] = []
    for measured in (truth, real):
        for name, images in measured.split(reference).items():
            n = len(images.units)
            figures += _about_lesions(images, n, measured, reference, REAL_AGAINST_REAL, name, REAL)
    tests: list[_Test] = []
    sizes = _fewest_images(sides)
    for side in sides:
        for name, images in side.samples.items():
            if name in others:
                n = len(others[name].units)
                figures += _about_lesions(images, n, real, reference, side.protocol, name, side.arm)
                # Distances fall as n grows: every side counts as many images of a class. They
                # have no interval, since they are above 0 by chance alone and resampling does not
                # show that; the floor and the p-value are in its place. A p-value holds at any n
                # and takes all.
                equal = random_subset(images, sizes[name])
                figures += [_distance_figure(t, real, reference) for t in _tests(side, name, equal, others[name])]
                tests += _tests(side, name, images, others[name])
    return figures + [_p_value_figure(test, len(tests), real, reference) for test in tests]


def _fewest_images(sides: list[_Side]) -> dict[str, int]:
    """class -> images that every side has."""
    sizes: dict[str, int] = {}
    for side in sides:
        for name, images in side.samples.items():
            sizes[name] = min(sizes.get(name, len(images.units)), len(images.units))
    return sizes


def _about_lesions(
    images: Sample, n_reference: int, real: RealFeatures, reference: str, protocol: str, name: str, arm: str
) -> Iterator[Figure]:
    """LESION_FOUND of a class's images; TALLER and means where there are enough lesions."""
    about = n_reference, reference, protocol
    has_lesion = images.features[:, 0] == 1
    found = share_of_units(has_lesion, images.units)
    yield real.figure(LESION_FOUND, found, len(has_lesion), *about, class_name=name, arm=arm)
    lesions = images.rows(has_lesion)
    if len(np.unique(lesions.units)) < FEWEST_UNITS:
        return
    n = len(lesions.units)
    for measure, values in zip(MEASURES, lesions.features[:, 1:].T.astype(np.float64), strict=True):
        mean = jackknife_mean(values, lesions.units)
        yield real.figure(f"lesion_{measure}", mean, n, *about, class_name=name, arm=arm)
    taller = share_of_units(lesions.features[:, COLUMNS.index("aspect")] > 1, lesions.units)
    yield real.figure(TALLER, taller, n, *about, class_name=name, arm=arm)


def _tests(side: _Side, name: str, images: Sample, others: Sample) -> list[_Test]:
    """One for each measure, where both sides have enough independent lesions."""
    lesions, other_lesions = (sample.rows(sample.features[:, 0] == 1) for sample in (images, others))
    if min(len(np.unique(sample.units)) for sample in (lesions, other_lesions)) < FEWEST_UNITS:
        return []
    return [
        _Test(measure, side, name, _column(lesions, column), _column(other_lesions, column))
        for column, measure in enumerate(MEASURES, 1)
    ]


def _column(lesions: Sample, column: int) -> Sample:
    return lesions._replace(features=lesions.features[:, column].astype(np.float64))


def _distance_figure(test: _Test, real: RealFeatures, reference: str) -> Figure:
    distance = wasserstein(test.lesions.features, test.others.features)
    return _test_figure(f"lesion_{test.measure}_distance", distance, test, real, reference)


def _p_value_figure(test: _Test, tests: int, real: RealFeatures, reference: str) -> Figure:
    p_value = wasserstein_p_value(test.lesions, test.others, permutations=enough_permutations(tests))
    return _test_figure(f"lesion_{test.measure}_p_value", p_value, test, real, reference)


def _test_figure(metric: str, value: float, test: _Test, real: RealFeatures, reference: str) -> Figure:
    n, side = (len(test.lesions.units), len(test.others.units)), test.side
    return real.figure(
        metric, value, *n, reference, side.protocol, class_name=test.class_name, arm=side.arm, floor=side.floor
    )
