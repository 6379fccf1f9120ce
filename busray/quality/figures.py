"""Features of every arm and of the real images -> the flat list of figures, and what they say in sentences."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from busray.quality.frechet import Moments, frechet
from busray.quality.kernel import Estimate, kid, kid_difference, kid_p_value, numbered
from busray.quality.neighbours import neighbourhood
from busray.records import CLASS_ALL, Figure, distance_names

Features = Mapping[str, np.ndarray]
"""class -> float32 [n, d]"""
REAL = "real"
FEWEST = 3
"""Independent images a side below which a class has no figure of its own."""
NEIGHBOURS = 5
"""The k of precision, recall, density and coverage."""
OTHER = {"train": "test", "val": "train", "test": "train"}
"""reference -> the split it is held against for the floor; `all` holds its own halves against each other."""


@dataclass(frozen=True)
class Real:
    """The real images as one extractor sees them, and what every figure about them must say."""

    features: Mapping[str, Features]
    """By split: train, val, test."""
    units: Mapping[str, Mapping[str, np.ndarray]]
    """split -> class -> labels [n]: images of one label (SourceImage.unit) count as one independent draw."""
    extractor: str
    frame: str
    size: int
    """Side of the framed images in pixels."""

    def split(self, name: str) -> dict[str, "Sample"]:
        """class -> the images of a split, or of all three for `all`."""
        splits = list(self.features) if name == "all" else [name]
        classes = sorted({c for split in splits for c in self.features[split]})
        return {
            c: Sample.joined([Sample(self.features[s][c], self.units[s][c]) for s in splits if c in self.features[s]])
            for c in classes
        }


class Sample(NamedTuple):
    """Images of one side of a comparison: features [n, d] and labels [n] of independent draws."""

    features: np.ndarray
    units: np.ndarray

    def rows(self, chosen: slice | np.ndarray) -> "Sample":
        return Sample(self.features[chosen], self.units[chosen])

    @staticmethod
    def drawn(features: np.ndarray, class_name: str) -> "Sample":
        """Of images that each came from a seed of their own."""
        return Sample(features, np.array([f"{class_name} {i}" for i in range(len(features))]))

    @staticmethod
    def joined(samples: Sequence["Sample"]) -> "Sample":
        return Sample(np.concatenate([s.features for s in samples]), np.concatenate([s.units for s in samples]))


def arm_figures(
    arms: Mapping[str, Features], real: Real, reference: str, pairs: Sequence[tuple[str, str]] | None = None
) -> list[Figure]:
    """FID, KID and neighbourhood of each arm, the real floor, and seed-paired KID differences of `pairs` of arms.

    pairs: (before, after); default: each arm and the one after it.

    Another extractor's distances have its distance_names: they are never called FID or KID.

    arms: arm -> class -> features, row i of a class drawn from the same seed in each arm. Overall figures pool the
    classes. `paper-mixture` holds all real images against the same images with the arm's added, as the ISBI 2026 paper
    seems to.
    """
    distance, kernel = distance_names(real.extractor)
    wanted = real.split(reference)
    everything = Sample.joined(list(real.split("all").values()))
    drawn = {
        arm: {name: Sample.drawn(rows, name) for name, rows in sorted(features.items())}
        for arm, features in arms.items()
    }
    figures = list(_floor(real, wanted, reference, next(iter(arms.values()))))
    for arm, samples in drawn.items():
        for name, images, others in _sides(samples, wanted):
            of = _About(real, images, others, reference, "synthetic-only", name, arm)
            figures.append(of.figure(distance, of.frechet()))
            figures.append(of.figure(kernel, kid(*of.features, others.units)))
            figures.append(of.figure(f"{kernel}_p_value", kid_p_value(*of.features, others.units)))
            figures += [of.figure(metric, value) for metric, value in _neighbours(*of.features)]
        mixture = Sample.joined([everything, *samples.values()])
        of = _About(real, mixture, everything, "all", "paper-mixture", CLASS_ALL, arm)
        figures.append(of.figure(distance, of.frechet()))
    for before, after in pairwise(arms) if pairs is None else pairs:
        for (name, images, others), (_, earlier, _) in zip(
            _sides(drawn[after], wanted), _sides(drawn[before], wanted), strict=True
        ):
            of = _About(real, images, others, reference, "synthetic-only", name, f"{after} - {before}")
            difference = kid_difference(images.features, earlier.features, others.features, others.units)
            figures.append(of.figure(f"{kernel}_difference", difference))
    return figures


class _About(NamedTuple):
    """What the figures of one comparison have in common."""

    real: Real
    images: Sample
    others: Sample
    reference: str
    protocol: str
    class_name: str
    arm: str

    @property
    def features(self) -> tuple[np.ndarray, np.ndarray]:
        return self.images.features, self.others.features

    def frechet(self) -> float:
        return frechet(*map(Moments.of, self.features))

    def figure(self, metric: str, value: float | Estimate) -> Figure:
        number, interval = (value.value, value.interval) if isinstance(value, Estimate) else (value, None)
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
        )


def _sides(images: Mapping[str, Sample], others: Mapping[str, Sample]) -> Iterator[tuple[str, Sample, Sample]]:
    """(class, images, reference) for all classes together, then for each that has enough on both sides."""
    yield CLASS_ALL, Sample.joined(list(images.values())), Sample.joined(list(others.values()))
    for name, sample in images.items():
        if name in others and min(len(np.unique(side.units)) for side in (sample, others[name])) >= FEWEST:
            yield name, sample, others[name]


def _floor(real: Real, wanted: Mapping[str, Sample], reference: str, first: Features) -> Iterator[Figure]:
    """Real against real, with as many images a class as the arms have where there are: FID depends on n."""
    distance, kernel = distance_names(real.extractor)
    if reference == "all":
        odd = {name: numbered(sample.units, sample.features) % 2 == 1 for name, sample in wanted.items()}
        other = {name: sample.rows(~odd[name]) for name, sample in wanted.items()}
        wanted = {name: sample.rows(odd[name]) for name, sample in wanted.items()}
    else:
        other = real.split(OTHER[reference])
    other = {name: sample.rows(slice(len(first[name]) if name in first else None)) for name, sample in other.items()}
    for name, images, others in _sides(other, wanted):
        of = _About(real, images, others, reference, "real-against-real", name, REAL)
        clusters = others.units, images.units
        yield of.figure(f"{distance}_floor", of.frechet())
        yield of.figure(f"{kernel}_floor", kid(*of.features, *clusters))
        yield of.figure(f"{kernel}_p_value_floor", kid_p_value(*of.features, *clusters))
        for metric, value in _neighbours(*of.features):
            yield of.figure(f"{metric}_floor", value)


def _neighbours(images: np.ndarray, others: np.ndarray) -> list[tuple[str, float]]:
    """Precision, recall, density and coverage by name, where there are neighbours enough."""
    if min(len(images), len(others)) <= NEIGHBOURS:
        return []
    return list(asdict(neighbourhood(images, others, NEIGHBOURS)).items())


def verdicts(figures: list[Figure]) -> list[str]:
    """The order found and whether differences between arms stand out from chance, as sentences."""
    sentences = []
    for metric, digits, scale in (("fid", 1, 1), ("kid", 2, 1000)):
        found = [f for f in figures if (f.metric, f.protocol, f.class_name) == (metric, "synthetic-only", CLASS_ALL)]
        if found:
            ranked = sorted(found, key=lambda f: f.value)
            order = " < ".join(f"{f.arm} {scale * f.value:.{digits}f}" for f in ranked)
            unit = " x 1000" if scale != 1 else ""
            sentences.append(f"Order by {metric.upper()}{unit} (lower is nearer to the real images): {order}.")
    chances = [f for f in figures if f.metric.startswith("kid_p_value") and f.class_name == CLASS_ALL]
    if chances:
        told = ", ".join(f"{f.arm} {f.value:.3f}" for f in chances)
        sentences.append(
            f"Probability of such a KID if nothing but chance set the images apart (permutations): {told}."
        )
    for figure in figures:
        if figure.metric == "kid_difference" and figure.class_name == CLASS_ALL and figure.interval:
            low, high = figure.interval
            says = "excludes 0" if _excludes_zero(figure) else "contains 0, so the arms are not told apart"
            sentences.append(
                f"KID x 1000, {figure.arm}, seed-paired: {1000 * figure.value:+.2f}, 95 % interval "
                f"{1000 * low:+.2f} to {1000 * high:+.2f}, which {says}."
            )
    return sentences + _texture_verdict(figures)


def _texture_verdict(figures: list[Figure]) -> list[str]:
    """The order by texture beside what other real images reach, and which arms it tells apart, in one sentence."""
    overall = [f for f in figures if f.class_name == CLASS_ALL and f.protocol != "paper-mixture"]
    ranked = sorted((f for f in overall if f.metric == "fd-texture"), key=lambda f: f.value)
    if not ranked:
        return []
    order = " < ".join(f"{f.arm} {f.value:.2f}" for f in ranked)
    floor = "".join(f"; other real images {f.value:.2f}" for f in overall if f.metric == "fd-texture_floor")
    apart = [f.arm for f in overall if f.metric == "kd-texture_difference" and _excludes_zero(f)]
    told = f"; seed-paired intervals of KD-texture exclude 0 for: {', '.join(apart) or 'no pair of arms'}"
    return [f"Order by ultrasound texture (FD-texture; lower is nearer to the real images): {order}{floor}{told}."]


def _excludes_zero(figure: Figure) -> bool:
    return figure.interval is not None and not figure.interval[0] <= 0 <= figure.interval[1]
