"""Distances of every arm to the real images, and of real images to each other, as figures.

Features in, figures out. The formula of FID is in stats/frechet.py; _frechet_figures calls it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from busray.evidence.real import REAL_AGAINST_REAL, SYNTHETIC_ONLY, ClassFeatures, RealFeatures, SplitRows
from busray.evidence.stats.frechet import Moments, frechet, frechet_at_infinity, frechet_spread
from busray.evidence.stats.intervals import Estimate
from busray.evidence.stats.kernel import kid, kid_difference, kid_p_value
from busray.evidence.stats.neighbours import neighbourhood
from busray.evidence.stats.samples import FEWEST_UNITS, Sample, random_subset, unit_numbers
from busray.evidence.stats.separability import FEWEST_TO_HALVE, separability
from busray.records import CLASS_ALL, CLEAN_TEST, REAL, SEPARABILITY_AUC, Figure, distance_names

NEIGHBOURS = 5
"""The k of precision, recall, density and coverage."""

MIXTURE = "paper-mixture"
"""Protocol: all real images against the same images with the drawn ones added."""

WHOLE_CORPUS = "whole-corpus"
"""Protocol: all images that are given out alone against the reference's images."""

FLOOR_SPLIT = {"train": "test", "val": "train", "test": "train"}
"""reference -> the split that its floor compares it with; `all` compares its two halves."""


def arm_figures(
    arms: Mapping[str, ClassFeatures],
    real: RealFeatures,
    reference: str,
    pairs: Sequence[tuple[str, str]] | None = None,
    units: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> list[Figure]:
    """Distances, neighbourhood and AUC of each arm and of the floor, and seed-paired differences.

    arms: arm -> class -> features in random order; row i of a class has the same seed in each arm.
    pairs: (before, after) arms of the kernel distances' differences; default: each and the next.
    units: arm -> class -> labels [n] of independent draws, for arms made from real images.

    Each class counts as many images in every arm and in the floor, if there are enough; only the
    Frechet distance uses more, for its spread. Overall figures pool the classes that are drawn
    and are on both sides of the floor, in the reference's shares: a difference in class shares
    would count, and would even set real images apart from real ones.

    The protocol MIXTURE compares all real images with the same images and the arm's, as the ISBI
    2026 paper seems to. It has no kernel distance, whose estimate takes the two sides for
    independent.
    """
    setup = _setup(arms, real, reference)
    figures = _floor_figures(setup)
    drawn = {arm: _samples(features, setup.sizes, units[arm] if units else None) for arm, features in arms.items()}
    for arm, samples in drawn.items():
        figures += _drawn_figures(setup, arm, arms[arm], samples)
        figures += _mixture_figures(setup, arm, samples)
    for before, after in pairwise(arms) if pairs is None else pairs:
        figures += _difference_figures(setup, (before, drawn[before]), (after, drawn[after]))
    return figures


@dataclass(frozen=True)
class _Setup:
    """The real images of one reference, and how many images of a class are compared with them."""

    real: RealFeatures
    reference: str
    images: Mapping[str, Sample]
    """class -> the reference's images."""
    floor: Mapping[str, Sample]
    """class -> other real images, which stand in for drawn ones."""
    floor_against: Mapping[str, Sample]
    """class -> what the floor is compared with."""
    sizes: Mapping[str, int]
    """class -> images, the same number in every arm and in the floor."""
    pooled: Sequence[str]
    """Classes of the overall figures."""


def _setup(arms: Mapping[str, ClassFeatures], real: RealFeatures, reference: str) -> _Setup:
    images = real.split(reference)
    if reference == "all":
        # All real images have no others beside them, so their halves stand in for both sides.
        floor_against, others = _halves(images)
    else:
        floor_against, others = images, real.split(FLOOR_SPLIT[reference])
    sizes: dict[str, int] = {}
    floor: dict[str, Sample] = {}
    pooled: list[str] = []
    for name in sorted(next(iter(arms.values()))):
        # The Frechet distance falls with n, so only equal n can be compared.
        sizes[name] = min(len(features[name]) for features in arms.values())
        if name in others:
            sizes[name] = min(sizes[name], len(others[name].units))
            floor[name] = random_subset(others[name], sizes[name])
            if len(others[name].units) and name in floor_against and len(floor_against[name].units):
                pooled.append(name)
    return _Setup(real, reference, images, floor, floor_against, sizes, pooled)


def _halves(images: Mapping[str, Sample]) -> tuple[dict[str, Sample], dict[str, Sample]]:
    """Two halves that share no unit."""
    odd_half: dict[str, Sample] = {}
    even_half: dict[str, Sample] = {}
    for name, sample in images.items():
        # By unit: near-duplicates on both sides would make the floor too low.
        odd = unit_numbers(sample.units, sample.features) % 2 == 1
        odd_half[name], even_half[name] = sample.rows(odd), sample.rows(~odd)
    return odd_half, even_half


def _samples(
    features: ClassFeatures, sizes: Mapping[str, int], units: Mapping[str, np.ndarray] | None
) -> dict[str, Sample]:
    """class -> the images of an arm that are compared."""
    samples: dict[str, Sample] = {}
    for name, n in sizes.items():
        if units is None:
            # Each drawn image has noise of its own: it is a unit by itself.
            samples[name] = Sample.drawn(features[name][:n], name)
        else:
            samples[name] = Sample.of(features[name][:n], units[name][:n], name)
    return samples


class _Comparison(NamedTuple):
    """Images beside those that they are compared with, and what all figures of the two say."""

    real: RealFeatures
    images: Sample
    others: Sample
    reference: str
    protocol: str
    class_name: str
    arm: str
    floor: bool = False
    against: str | None = None

    @property
    def features(self) -> tuple[np.ndarray, np.ndarray]:
        return self.images.features, self.others.features

    def frechet(self) -> float:
        return frechet(Moments.of(self.images.features), Moments.of(self.others.features))

    def figure(self, metric: str, value: float | Estimate) -> Figure:
        return self.real.figure(
            metric,
            value,
            len(self.images.features),
            len(self.others.features),
            self.reference,
            self.protocol,
            class_name=self.class_name,
            arm=self.arm,
            floor=self.floor,
            against=self.against,
        )


def _floor_figures(setup: _Setup) -> list[Figure]:
    """The best that an arm can reach: other real images in its place."""
    distance, _ = distance_names(setup.real.extractor)
    figures: list[Figure] = []
    for name, images, others in _sides(setup.floor, setup.floor_against, setup.pooled):
        comparison = _Comparison(setup.real, images, others, setup.reference, REAL_AGAINST_REAL, name, REAL, floor=True)
        figures += [comparison.figure(distance, comparison.frechet()), *_further_figures(comparison)]
    return figures


def _drawn_figures(setup: _Setup, arm: str, features: ClassFeatures, samples: Mapping[str, Sample]) -> list[Figure]:
    """An arm's images alone against the reference."""
    figures: list[Figure] = []
    for name, images, others in _sides(samples, setup.images, setup.pooled):
        comparison = _Comparison(setup.real, images, others, setup.reference, SYNTHETIC_ONLY, name, arm)
        # A class of its own is not weighted: `features` then has one class.
        classes = setup.pooled if name == CLASS_ALL else [name]
        figures += _frechet_figures(setup, comparison, {c: features[c] for c in classes})
        figures += _further_figures(comparison)
    return figures


def _frechet_figures(setup: _Setup, comparison: _Comparison, features: ClassFeatures) -> list[Figure]:
    """Frechet distance (FID by Inception) with its spread; at infinitely many images if estimable.

    features: all drawn images of the classes; comparison.images are the first of them.
    """
    distance, _ = distance_names(setup.real.extractor)
    compared = _in_shares({c: setup.sizes[c] for c in features}, setup.images)
    available = _in_shares({c: len(rows) for c, rows in features.items()}, setup.images)
    n_available = sum(available.values())
    spread = frechet_spread(list(features.values()), list(compared.values()), comparison.others.features)
    plain = comparison.figure(distance, spread.value)
    figures = [replace(plain, interval=spread.interval, replicates=spread.replicates, drawn=n_available)]
    rows = [features[c][:n] for c, n in available.items()]
    at_infinity = frechet_at_infinity(rows, comparison.others.features)
    if at_infinity is not None:
        figures.append(replace(comparison.figure(f"{distance}_infinity", at_infinity), n=n_available))
    return figures


def _further_figures(comparison: _Comparison) -> Iterator[Figure]:
    """Kernel distance and its p-value, neighbourhood, AUC of a classifier; the last two only where
    there are enough images."""
    _, kernel = distance_names(comparison.real.extractor)
    images, others = comparison.images, comparison.others
    units = others.units, images.units
    yield comparison.figure(kernel, kid(*comparison.features, *units))
    # Classes are permuted apart: a difference in class shares must not look like one in images.
    p_value = kid_p_value(*comparison.features, *units, others.classes, images.classes)
    yield comparison.figure(f"{kernel}_p_value", p_value)
    if min(len(images.features), len(others.features)) > NEIGHBOURS:
        near = neighbourhood(*comparison.features, NEIGHBOURS)
        for metric, value in asdict(near).items():
            yield comparison.figure(metric, value)
    # Halves of units, since near-duplicates in both halves would be recognised.
    if min(len(np.unique(side)) for side in units) >= FEWEST_TO_HALVE:
        yield comparison.figure(SEPARABILITY_AUC, separability(*comparison.features, *units))


def _mixture_figures(setup: _Setup, arm: str, samples: Mapping[str, Sample]) -> list[Figure]:
    """The Frechet distance by the protocol MIXTURE."""
    distance, _ = distance_names(setup.real.extractor)
    all_real = setup.real.split("all")
    figures: list[Figure] = []
    for name, *_ in _sides(samples, setup.images, setup.pooled):
        if name == CLASS_ALL:
            real_images, added = Sample.joined(list(all_real.values())), list(samples.values())
        else:
            real_images, added = all_real[name], [samples[name]]
        # The real images are on both sides: this distance is small by construction.
        mixed = Sample.joined([real_images, *added])
        comparison = _Comparison(setup.real, mixed, real_images, "all", MIXTURE, name, arm)
        figures.append(comparison.figure(distance, comparison.frechet()))
    return figures


def _difference_figures(
    setup: _Setup,
    before: tuple[str, Mapping[str, Sample]],
    after: tuple[str, Mapping[str, Sample]],
) -> list[Figure]:
    """Kernel distance of the arm `after` minus that of `before`, their images paired by seed."""
    _, kernel = distance_names(setup.real.extractor)
    sides_after = _sides(after[1], setup.images, setup.pooled)
    sides_before = _sides(before[1], setup.images, setup.pooled)
    figures: list[Figure] = []
    for (name, images, others), (_, earlier, _) in zip(sides_after, sides_before, strict=True):
        comparison = _Comparison(
            setup.real, images, others, setup.reference, SYNTHETIC_ONLY, name, after[0], against=before[0]
        )
        # Paired: noise that two arms share drops out, so small differences can be seen.
        difference = kid_difference(images.features, earlier.features, others.features, others.units)
        figures.append(comparison.figure(f"{kernel}_difference", difference))
    return figures


def _sides(
    images: Mapping[str, Sample], others: Mapping[str, Sample], pooled: Sequence[str]
) -> Iterator[tuple[str, Sample, Sample]]:
    """(class, images, others): the pooled classes, then each class with enough on both sides."""
    shares = _in_shares({name: len(images[name].units) for name in pooled}, others)
    together = Sample.joined([images[name].rows(slice(n)) for name, n in shares.items()])
    yield CLASS_ALL, together, Sample.joined([others[name] for name in shares])
    for name, sample in images.items():
        if name in others and min(_units(sample), _units(others[name])) >= FEWEST_UNITS:
            yield name, sample, others[name]


def _units(sample: Sample) -> int:
    return len(np.unique(sample.units))


def _in_shares(sizes: Mapping[str, int], reference: Mapping[str, Sample]) -> dict[str, int]:
    """class -> images in the reference's shares, as many as `sizes` allow and at least one."""
    counts = {name: len(reference[name].units) for name in sizes}
    scale = min(sizes[name] / count for name, count in counts.items())
    # The smallest amount keeps a product that is a whole number, but for rounding, from losing one.
    return {name: max(1, int(scale * count + 1e-9)) for name, count in counts.items()}


def whole_corpus_figures(moments: Mapping[str, Moments], real: RealFeatures, reference: str, arm: str) -> list[Figure]:
    """Frechet distance of all images from the reference's, and the part of it that is of the means.

    moments: of each class and, under CLASS_ALL, of all its classes together. There each class has
    as many images as the corpus has of it, not its share of the reference. A class has figures
    where there are FEWEST_UNITS images of it on both sides. There is no interval: no other images
    of the corpus could have been chosen.
    """
    distance, _ = distance_names(real.extractor)
    images = real.split(reference)
    sides = {CLASS_ALL: Sample.joined([images[name] for name in sorted(images) if name in moments])}
    sides |= {name: images[name] for name in sorted(images) if name in moments}
    figures: list[Figure] = []
    for name, others in sides.items():
        drawn = moments[name]
        if min(drawn.n, _units(others)) < FEWEST_UNITS:
            continue
        target = Moments.of(others.features)
        values = {distance: frechet(drawn, target), f"{distance}_means": float(((drawn.mean - target.mean) ** 2).sum())}
        for metric, value in values.items():
            figure = real.figure(
                metric,
                value,
                drawn.n,
                target.n,
                reference,
                WHOLE_CORPUS,
                class_name=name,
                arm=arm,
            )
            figures.append(figure)
    return figures


def clean_figures(
    arms: Mapping[str, ClassFeatures],
    real: RealFeatures,
    clean: SplitRows,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> list[Figure]:
    """arm_figures of the arms and pairs against the test images without burned-in annotations.

    clean: bool, no annotation was found. No figures where every test image is clean, or where a
    class has too few clean ones.
    """
    if _all_clean(clean) or too_few_clean(real.units, clean, list(next(iter(arms.values())))):
        return []
    figures = arm_figures(arms, real.only(clean), "test", pairs)
    return [replace(figure, reference=CLEAN_TEST) for figure in figures if figure.reference == "test"]


def _all_clean(clean: SplitRows) -> bool:
    return all(rows.all() for rows in clean["test"].values())


def too_few_clean(units: SplitRows, clean: SplitRows, classes: Sequence[str]) -> dict[tuple[str, str], int]:
    """(split, class) -> independent clean images, where they are fewer than FEWEST_UNITS.

    Of the test split and of the one that its floor compares it with.
    """
    few: dict[tuple[str, str], int] = {}
    for split in ("test", FLOOR_SPLIT["test"]):
        for name in classes:
            n = len(np.unique(units[split][name][clean[split][name]])) if name in units[split] else 0
            if n < FEWEST_UNITS:
                few[split, name] = n
    return few


def clean_sentences(units: SplitRows, clean: SplitRows, classes: Sequence[str]) -> list[str]:
    """Why clean_figures has none although some test images are annotated; else nothing."""
    few = {} if _all_clean(clean) else too_few_clean(units, clean, classes)
    if not few:
        return []
    counts = ", ".join(f"{n} of {name} in {split}" for (split, name), n in few.items())
    return [
        "No figures without burned-in annotations: each class needs "
        f"{FEWEST_UNITS} independent images that have none in test and {FLOOR_SPLIT['test']}, "
        f"and there are {counts}."
    ]
