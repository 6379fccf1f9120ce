"""Size and shape of lesions, drawn and real, as figures."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from busray.evidence.real import ClassFeatures, RealFeatures
from busray.evidence.stats.intervals import Estimate, jackknife_mean, share_of_units
from busray.evidence.stats.samples import FEWEST_UNITS, Sample, random_subset
from busray.evidence.stats.wasserstein import enough_permutations, wasserstein, wasserstein_p_value
from busray.records import CLASS_ALL, REAL, Figure
from busray.vision.lesion_shape import COLUMNS, MEASURES, NAME

LESION_FLOOR_SPLIT = {"test": "val", "val": "test"}
"""reference -> the split held against it: neither was trained on. Of training images pseudo-masks are too good."""


DICE, LESION_FOUND, TALLER = "lesion_dice", "lesion_found", "lesion_taller_than_wide"
"""Dice of the segmenter's masks of real test images with lesions; share of images in which there is a lesion; share of
lesions whose aspect is above 1."""


def unmeasurable(masks: Mapping[str, np.ndarray]) -> str | None:
    """Why masks bool [n, s, s] of each split allow no figure; None where they do."""
    for split, of_split in masks.items():
        count = int(of_split.any((1, 2)).sum())
        if count < FEWEST_UNITS:
            return (
                f"{count} {split} images have a mask with a lesion, and {FEWEST_UNITS} are needed (files NAME_mask.png)"
            )
    return None


@dataclass(frozen=True)
class DiceScores:
    """Dice of the segmenter on test images with lesions: [n], their classes and clusters."""

    dice: np.ndarray
    classes: np.ndarray
    units: np.ndarray
    trained_on: int


def dice_figures(scored: DiceScores, frame: str, size: int) -> list[Figure]:
    """DICE overall and a class, interval over test clusters; n is the number of images trained on."""
    figures = []
    for name in (CLASS_ALL, *sorted(set(scored.classes.tolist()))):
        mine = np.ones(len(scored.dice), bool) if name == CLASS_ALL else scored.classes == name
        if len(np.unique(scored.units[mine])) < FEWEST_UNITS:
            continue
        found = jackknife_mean(scored.dice[mine], scored.units[mine])
        common = (scored.trained_on, int(mine.sum()), "test", "single-split", NAME, name, REAL, frame, size)
        figures.append(Figure(DICE, found.value, found.interval, *common))
    return figures


def geometry_figures(
    arms: Mapping[str, ClassFeatures], real: RealFeatures, truth: RealFeatures, reference: str
) -> list[Figure]:
    """Of each class: FOUND, TALLER and the mean of each of MEASURES, for the arms, for the real images of `reference`
    and of its FLOOR by pseudo-masks (`real`), for those of `reference` by true masks (`truth`); Wasserstein-1 distances
    of the arms and the FLOOR to `reference`, all by pseudo-masks, with the probability of such a one by chance.

    arms, real, truth: `measures` as features, the arms' in an order by chance. A mean is over the lesions found, and so
    is n. The distances have no interval: they are above 0 by chance alone, so resampling misses them; floor and
    probability are in its place. They fall as n grows, so arms and floor count as many images of a class, as far as
    there are; a probability holds at any n and is of all images.
    """
    other = LESION_FLOOR_SPLIT[reference]
    held_out, against = real.split(reference), real.split(other)
    drawn = {arm: {name: Sample.drawn(rows, name) for name, rows in sorted(by.items())} for arm, by in arms.items()}
    sides = [(f"{REAL} {other}", against, "real-against-real", True)]
    sides += [(arm, samples, "synthetic-only", False) for arm, samples in drawn.items()]
    sizes: dict[str, int] = {}
    for _, samples, _, _ in sides:
        for name, images in samples.items():
            sizes[name] = min(sizes.get(name, len(images.units)), len(images.units))
    figures, tests = [], []
    for name, images in truth.split(reference).items():
        figures += _about(images, len(images.units), truth, reference, "real-against-real", name, REAL)
    for name, images in held_out.items():
        figures += _about(images, len(images.units), real, reference, "real-against-real", name, REAL)
    for arm, samples, protocol, is_floor in sides:
        for name, images in samples.items():
            if name not in held_out:
                continue
            figures += _about(images, len(held_out[name].units), real, reference, protocol, name, arm)
            about = (reference, protocol, real.extractor, name, arm, real.frame, real.size)
            for measure, mine, theirs in _lesions(random_subset(images, sizes[name]), held_out[name]):
                far, n = wasserstein(mine.features, theirs.features), (len(mine.units), len(theirs.units))
                figures.append(Figure(f"lesion_{measure}_distance", far, None, *n, *about, floor=is_floor))
            tests += [
                (f"lesion_{measure}_p_value", mine, theirs, about, is_floor)
                for measure, mine, theirs in _lesions(images, held_out[name])
            ]
    for metric, mine, theirs, about, is_floor in tests:
        chance = wasserstein_p_value(mine, theirs, permutations=enough_permutations(len(tests)))
        figures.append(Figure(metric, chance, None, len(mine.units), len(theirs.units), *about, floor=is_floor))
    return figures


def _about(
    images: Sample, against: int, real: RealFeatures, reference: str, protocol: str, name: str, arm: str
) -> Iterator[Figure]:
    """FOUND of a class's images, and of the lesions, where there are clusters enough, TALLER and the means."""

    def figure(metric: str, found: Estimate, n: int) -> Figure:
        common = (n, against, reference, protocol, real.extractor, name, arm, real.frame, real.size)
        return Figure(metric, found.value, found.interval, *common)

    there = images.features[:, 0] == 1
    yield figure(LESION_FOUND, share_of_units(there, images.units), len(there))
    lesions = images.rows(there)
    if len(np.unique(lesions.units)) < FEWEST_UNITS:
        return
    n = len(lesions.units)
    for measure, values in zip(MEASURES, lesions.features[:, 1:].T.astype(np.float64), strict=True):
        yield figure(f"lesion_{measure}", jackknife_mean(values, lesions.units), n)
    yield figure(TALLER, share_of_units(lesions.features[:, COLUMNS.index("aspect")] > 1, lesions.units), n)


def _lesions(images: Sample, others: Sample) -> Iterator[tuple[str, Sample, Sample]]:
    """(measure, its values among the lesions of one side, of the other), where both have clusters enough."""
    sides = [side.rows(side.features[:, 0] == 1) for side in (images, others)]
    if min(len(np.unique(side.units)) for side in sides) < FEWEST_UNITS:
        return
    for i, measure in enumerate(MEASURES, 1):
        first, second = (side._replace(features=side.features[:, i].astype(np.float64)) for side in sides)
        yield measure, first, second
