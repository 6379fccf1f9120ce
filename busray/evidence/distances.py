"""Features of every arm and of the real images -> the flat list of figures, and what they say in sentences."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from busray.evidence.real import ClassFeatures, RealFeatures
from busray.evidence.stats.frechet import FrechetSpread, Moments, frechet, frechet_at_infinity, frechet_spread
from busray.evidence.stats.intervals import Estimate
from busray.evidence.stats.kernel import kid, kid_difference, kid_p_value
from busray.evidence.stats.neighbours import neighbourhood
from busray.evidence.stats.samples import FEWEST_UNITS, Sample, random_subset, unit_numbers
from busray.evidence.stats.separability import FEWEST_TO_HALVE as FEWEST_HALVED
from busray.evidence.stats.separability import separability
from busray.records import CLASS_ALL, CLEAN_TEST, REAL, SEPARABILITY_AUC, Figure, distance_names

NEIGHBOURS = 5
"""The k of precision, recall, density and coverage."""


MIXTURE = "paper-mixture"
"""Protocol: all real images against the same with the drawn ones added."""


FLOOR_SPLIT = {"train": "test", "val": "train", "test": "train"}
"""reference -> the split it is held against for the floor; `all` holds its own halves against each other."""


def arm_figures(
    arms: Mapping[str, ClassFeatures],
    real: RealFeatures,
    reference: str,
    pairs: Sequence[tuple[str, str]] | None = None,
    units: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> list[Figure]:
    """Distances, neighbourhood and a classifier's AUC of each arm and of the real floor, and seed-paired differences.

    arms: arm -> class -> features in an order by chance, row i of a class drawn from the same seed in each arm. Each
    class counts as many images in every arm and in the floor, as far as there are; of the Frechet distance, whose
    spread further disjoint replicates tell, more are used. Overall figures pool the classes that are drawn and are on
    both sides of the floor, in the shares that they have in the reference: else a difference in class mix would count,
    and tell even real images from real ones.
    `paper-mixture` holds all real images against the same images with the arm's added, as the ISBI 2026 paper seems to;
    it has no kernel distance, whose estimate takes the two sides for independent.
    pairs: (before, after) of KID differences; default: each arm and the one after it.
    units: arm -> class -> labels [n] of independent draws, of arms made from real images.

    Another extractor's distances have its distance_names: they are never called FID or KID.
    """
    distance, kernel = distance_names(real.extractor)
    wanted = real.split(reference)
    all_real = real.split("all")
    everything = Sample.joined(list(all_real.values()))
    first = next(iter(arms.values()))
    against, beside = _halves(wanted) if reference == "all" else (wanted, real.split(FLOOR_SPLIT[reference]))
    sizes = {name: min(len(features[name]) for features in arms.values()) for name in sorted(first)}
    sizes = {name: min(n, len(beside[name].units)) if name in beside else n for name, n in sizes.items()}
    floor = {name: random_subset(beside[name], n) for name, n in sizes.items() if name in beside}
    shared = [name for name in sizes if all(name in side and len(side[name].units) for side in (against, beside))]
    figures: list[Figure] = []
    for name, images, others in _sides(floor, against, shared):
        of = _About(real, images, others, reference, "real-against-real", name, REAL, floor=True)
        figures += [of.figure(distance, of.frechet()), *_further(of)]
    drawn = {
        arm: {
            name: Sample.of(features[name], units[arm][name], name).rows(slice(n))
            if units
            else Sample.drawn(features[name][:n], name)
            for name, n in sizes.items()
        }
        for arm, features in arms.items()
    }
    for arm, samples in drawn.items():
        sides = list(_sides(samples, wanted, shared))
        for name, images, others in sides:
            of = _About(real, images, others, reference, "synthetic-only", name, arm)
            pool = {c: arms[arm][c] for c in (shared if name == CLASS_ALL else [name])}
            compared = _mix({c: sizes[c] for c in pool}, wanted)
            most = _mix({c: len(rows) for c, rows in pool.items()}, wanted)
            spread = frechet_spread(list(pool.values()), list(compared.values()), others.features)
            figures.append(replace(of.figure(distance, spread), drawn=sum(most.values())))
            at_infinity = frechet_at_infinity([pool[c][:n] for c, n in most.items()], others.features)
            if at_infinity is not None:
                figures.append(replace(of.figure(f"{distance}_infinity", at_infinity), n=sum(most.values())))
            figures += _further(of)
        for name, *_ in sides:
            whole, added = (everything, samples.values()) if name == CLASS_ALL else (all_real[name], [samples[name]])
            of = _About(real, Sample.joined([whole, *added]), whole, "all", MIXTURE, name, arm)
            figures.append(of.figure(distance, of.frechet()))
    for before, after in pairwise(arms) if pairs is None else pairs:
        for (name, images, others), (_, earlier, _) in zip(
            _sides(drawn[after], wanted, shared), _sides(drawn[before], wanted, shared), strict=True
        ):
            of = _About(real, images, others, reference, "synthetic-only", name, after, before)
            difference = kid_difference(images.features, earlier.features, others.features, others.units)
            figures.append(of.figure(f"{kernel}_difference", difference))
    return figures


def _mix(sizes: Mapping[str, int], reference: Mapping[str, Sample]) -> dict[str, int]:
    """Images a class in the shares of the reference, as many as `sizes` allow."""
    counts = {name: len(reference[name].units) for name in sizes}
    scale = min(sizes[name] / count for name, count in counts.items())
    return {name: max(1, int(scale * count + 1e-9)) for name, count in counts.items()}


def _halves(images: Mapping[str, Sample]) -> tuple[dict[str, Sample], dict[str, Sample]]:
    """Two halves that share no cluster."""
    odd = {name: unit_numbers(sample.units, sample.features) % 2 == 1 for name, sample in images.items()}
    halves = ({name: sample.rows(odd[name] == half) for name, sample in images.items()} for half in (True, False))
    return next(halves), next(halves)


Kept = Mapping[str, Mapping[str, np.ndarray]]
"""split -> class -> bool [n]: images without burned-in annotations."""


def clean_figures(
    arms: Mapping[str, ClassFeatures], real: RealFeatures, clean: Kept, pairs: Sequence[tuple[str, str]] | None = None
) -> list[Figure]:
    """arm_figures of the arms and pairs against the test images without burned-in annotations.

    None where every test image is clean, or where a class has too few clean ones for figures of its own.
    """
    if _all_clean(clean) or too_few_clean(real.units, clean, list(next(iter(arms.values())))):
        return []
    found = arm_figures(arms, real.only(clean), "test", pairs)
    return [replace(f, reference=CLEAN_TEST) for f in found if f.reference == "test"]


def _all_clean(clean: Kept) -> bool:
    return all(kept.all() for kept in clean["test"].values())


def too_few_clean(
    units: Mapping[str, Mapping[str, np.ndarray]], clean: Kept, classes: Sequence[str]
) -> dict[tuple[str, str], int]:
    """(split, class) -> independent clean images, where these are fewer than FEWEST; of test and its floor's split."""
    counts = {
        (split, name): len(np.unique(units[split][name][clean[split][name]])) if name in units[split] else 0
        for split in ("test", FLOOR_SPLIT["test"])
        for name in classes
    }
    return {side: n for side, n in counts.items() if n < FEWEST_UNITS}


def clean_sentences(units: Mapping[str, Mapping[str, np.ndarray]], clean: Kept, classes: Sequence[str]) -> list[str]:
    """Why there are no figures on the clean test images, where some are annotated and clean_figures has none."""
    few = {} if _all_clean(clean) else too_few_clean(units, clean, classes)
    if not few:
        return []
    there = ", ".join(f"{n} of {name} in {split}" for (split, name), n in few.items())
    return [
        "No figures without burned-in annotations: each class needs "
        f"{FEWEST_UNITS} independent images that have none in test and {FLOOR_SPLIT['test']}, and there are {there}."
    ]


class _About(NamedTuple):
    """What the figures of one comparison have in common."""

    real: RealFeatures
    images: Sample
    others: Sample
    reference: str
    protocol: str
    class_name: str
    arm: str
    before: str | None = None
    floor: bool = False

    @property
    def features(self) -> tuple[np.ndarray, np.ndarray]:
        return self.images.features, self.others.features

    def frechet(self) -> float:
        return frechet(*map(Moments.of, self.features))

    def figure(self, metric: str, value: float | Estimate | FrechetSpread) -> Figure:
        number, interval = (
            (value.value, value.interval) if isinstance(value, (Estimate, FrechetSpread)) else (value, None)
        )
        return Figure(
            metric=metric,
            value=number,
            interval=interval,
            n=len(self.images.features),
            n_reference=len(self.others.features),
            reference=self.reference,
            protocol=self.protocol,
            extractor=self.real.extractor,
            class_name=self.class_name,
            arm=self.arm,
            frame=self.real.frame,
            size=self.real.size,
            replicates=value.replicates if isinstance(value, FrechetSpread) else None,
            floor=self.floor,
            against=self.before,
        )


def _sides(
    images: Mapping[str, Sample], others: Mapping[str, Sample], shared: Sequence[str]
) -> Iterator[tuple[str, Sample, Sample]]:
    """(class, images, reference) for the shared classes together, then for each that has enough on both sides."""
    mix = _mix({name: len(images[name].units) for name in shared}, others)
    pooled = Sample.joined([images[name].rows(slice(n)) for name, n in mix.items()])
    yield CLASS_ALL, pooled, Sample.joined([others[name] for name in mix])
    for name, sample in images.items():
        if name in others and min(len(np.unique(side.units)) for side in (sample, others[name])) >= FEWEST_UNITS:
            yield name, sample, others[name]


def _further(of: _About) -> Iterator[Figure]:
    """Kernel distance and its chance, neighbourhood, AUC of a classifier."""
    _, kernel = distance_names(of.real.extractor)
    clusters = of.others.units, of.images.units
    yield of.figure(kernel, kid(*of.features, *clusters))
    p_value = kid_p_value(*of.features, *clusters, of.others.classes, of.images.classes)
    yield of.figure(f"{kernel}_p_value", p_value)
    for metric, value in _neighbours(*of.features):
        yield of.figure(metric, value)
    if min(len(np.unique(units)) for units in clusters) >= FEWEST_HALVED:
        yield of.figure(SEPARABILITY_AUC, separability(*of.features, *clusters))


def _neighbours(images: np.ndarray, others: np.ndarray) -> list[tuple[str, float]]:
    """Precision, recall, density and coverage by name, where there are neighbours enough."""
    if min(len(images), len(others)) <= NEIGHBOURS:
        return []
    return list(asdict(neighbourhood(images, others, NEIGHBOURS)).items())
